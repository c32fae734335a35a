"""A page as Markdown, HTML and terminal text: the same said in each, and nothing in a text is obeyed."""

from __future__ import annotations

import html as entities
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_edt.render import console, html
from recbole_edt.render.figures import new, save
from recbole_edt.render.sections import Listing, Page, Picture, Section
from recbole_edt.render.tables import Column, ResultTable

EVIL = "a|b\n# c <script>alert(1)</script> [x](http://y) `z` \x1b[2J\u202e"


def page_of(text: str, folder) -> Page:
    """A page with ``text`` in every place where a text may stand."""
    table = ResultTable(text, text, [Column(text, text), text], [(text, 1.0), ("b", None)], text, tones=["good", ""])
    parts = [text, table, Picture(folder / "a b", text), Listing(text, text), Listing("list", f"one\n{text}")]
    return Page(text, [text, ""], [Section(text, parts), Section("empty", [])])


@pytest.fixture
def folder(tmp_path):
    save(new()[0], tmp_path / "a b")
    return tmp_path


def shown(page: Page) -> str:
    file = io.StringIO()
    console.print_page(page, file)
    return file.getvalue()


def test_every_form_says_everything_and_leaves_empty_sections_out(folder):
    page = page_of("word", folder)
    for text in (page.markdown(folder), html.page(page), shown(page)):
        assert "empty" not in text and text.count("word") >= 8
        assert "one" in text and "list" in text and "n/a" in text
    assert "![word](a%20b.png)" in page.markdown(folder)
    assert "\n## word\n\nword\n\n| word word | word |\n" in page.markdown(folder)
    assert [table.title for table in page.tables] == ["word"]


def test_markdown_has_one_heading_per_section_and_obeys_no_text(folder):
    text = page_of(EVIL, folder).markdown(folder)
    obeyed = [line for line in text.splitlines() if not line.startswith("    ")]  # the rest is code
    assert sum(line.startswith("# ") for line in obeyed) == sum(line.startswith("## ") for line in obeyed) == 1
    assert not any(sign in "\n".join(obeyed) for sign in ("<script", "a|b", " [x](", " `z`"))
    assert "\x1b" not in text and "\u202e" not in text


def test_a_page_holds_no_script_where_nothing_is_sorted_and_none_of_the_texts(folder):
    page = page_of(EVIL, folder)
    assert html.page(page).count("<script") == 1 and "<script" not in html.page(page, sorts=False)
    for text in (html.page(page), html.page(page, sorts=False)):
        assert "\x1b" not in text and "\u202e" not in text and entities.escape("<script>alert(1)</script>") in text


@given(st.text(max_size=30))
def test_no_text_moves_a_cursor(text):
    table = ResultTable("t", text, ["a", "b"], [(text, 1)], text)
    said = shown(Page(text, [text], [Section(text, [text, table, Listing(text, text)])]))
    assert not set(said) & {"\x1b", "\x07", "\x9b", "\u202e", "\u200b"}
