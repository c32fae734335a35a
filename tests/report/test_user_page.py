import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import LetterEmbedder, ScriptedWriter, dataset, table_of

from recbole_edt.augment.augment import augment
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.cleaning import harmless
from recbole_edt.errors import DataError
from recbole_edt.render import console, html
from recbole_edt.report.user_page import page_of
from recbole_edt.report.user_view import Exchange, view_of
from recbole_edt.text.item_text import item_text

TITLES = {"f1": "a", "f2": "b", "f3": "bc", "k1": "ab", "k2": "cd"}
CONFIG = AugmentConfig(generator="llm", tau=0.9, k=2, n_clusters=6)
ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></details></style><b>",
    "&lt;i&gt; &#60;u&#62;",
    "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "rye \u202egnp.exe\u2069",
    "[red]markup[/red] [link=http://x.example]y[/link]",
    "line\u2028separator\u0085next\r\rreturn",
    "javascript:alert(1) http://x.example/?q=1",
    "zero\u200bwidth \ud800 tag\U000e0041",
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0041]")


def seen(titles=TITLES, answers=("aab", "AB", "cd"), profile="Likes a.", user="u0", exchanges=None, failure=None):
    """A view of ``u0``: f1 f2 k1, then k2 and f3 held out."""
    data = dataset(["f1 f2 k1 k2 f3", "f1 k1 k2"], items=titles, titles=titles)
    table = table_of(data, LetterEmbedder().embed(item_text(data.item_fields)))
    said = failure or {"items": [{"title": title} for title in answers]}
    writer = ScriptedWriter(lambda request: said, LetterEmbedder())
    found = augment(data, table, CONFIG, writer)
    told = [] if failure else [json.dumps(said)]
    noted = [Exchange(request.tag, request.messages, told, failure) for request in writer.asked]
    mine = [each for each in noted if each.title.startswith("u0")] if exchanges is None else exchanges
    return view_of(data, found.data, table, CONFIG, found.trace, mine, profile, user)


def printed(shown):
    file = io.StringIO()
    console.print_page(page_of(shown), file)
    return file.getvalue()


def html_page(shown):
    return html.page(page_of(shown), sorts=False)


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails on markup that no browser should have to guess."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.said, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.said.append(text)

    @property
    def text(self):
        return "".join(self.said)


TAGS = set(
    "html head meta title style body main header nav a section h1 h2 h3 p div table thead tbody tr th td span i "
    "details summary pre".split()
)
ATTRIBUTES = set(
    "lang charset http-equiv content name class dir title style id href scope role tabindex open aria-label data-v "
    "data-missing".split()
)


def check_page(text):
    page = Page(text)
    assert set(page.tags) <= TAGS and not page.open
    assert {name for _, name, _ in page.attributes} <= ATTRIBUTES
    for tag, name, value in page.attributes:
        assert name != "style" or (tag == "i" and re.fullmatch(r"width:\d+%", value))
        assert name != "class" or re.fullmatch(r"[a-z ]+", value)
        assert name not in ("id", "href") or re.fullmatch(r"#?[a-z0-9-]+", value)
        assert name != "href" or value.startswith("#")
    assert not OBEYED.search(text)
    assert text.encode("utf-8")
    return page


class TestView:
    def test_the_history_has_raw_and_inserted_rows_with_their_parts(self):
        rows = [(row.place, row.text, row.part, row.speaks) for row in seen().rows]
        assert rows == [
            (1, "a", "training", True),
            (1, "aab", "inserted", False),
            (2, "b", "training", True),
            (3, "ab", "training", True),
            (4, "cd", "validation", False),
            (5, "bc", "test", False),
        ]

    def test_a_proposal_of_the_catalogue_is_shown_with_its_item(self):
        assert [row for row in seen().trace["text"]][:3] == ["aab", "AB → ab", "cd"]

    def test_only_the_rows_of_the_user_are_shown(self):
        assert set(seen().trace["user"]) == {"u0"} and set(seen(user="u1").trace["user"]) == {"u1"}

    def test_an_unknown_user_is_named(self):
        with pytest.raises(DataError, match="no user 'nobody'"):
            seen(user="nobody")

    def test_augmented_rows_of_other_data_are_refused(self):
        data, other = dataset(["f1 k1 k2"], items=TITLES), dataset(["f1 k2 k2"], items=TITLES)
        table = table_of(data, np.eye(len(data.items)))
        trace = augment(data, table, replace(CONFIG, insertion="none")).trace
        with pytest.raises(DataError, match="other rows in the augmented files"):
            view_of(data, other, table, CONFIG, trace, [], "", "u0")

    def test_before_augmentation_there_is_the_history_alone(self):
        data = dataset(["f1 k1 k2"], items=TITLES)
        table = table_of(data, np.eye(len(data.items)))
        trace = augment(data, table, replace(CONFIG, insertion="none")).trace
        shown = view_of(data, None, table, CONFIG, trace, [], "", "u0")
        assert [row.part for row in shown.rows] == ["training", "validation", "test"]
        assert "none" in check_page(html_page(shown)).text and "none" in printed(shown)

    def test_offline_proposals_are_shown_with_the_texts_of_the_catalogue(self):
        data = dataset(["f1 f2 k1 k1", "f1 k1 k2 k1 k1"], items=TITLES, titles=TITLES)
        table = table_of(data, LetterEmbedder().embed(item_text(data.item_fields)))
        config = AugmentConfig(tau=-1.0)
        found = augment(data, table, config)
        shown = view_of(data, found.data, table, config, found.trace, [], "", "u0")
        assert shown.trace["text"].tolist() == ["ab", "cd"] or shown.trace["text"].tolist() == ["cd", "ab"]


class TestTerminal:
    def test_everything_about_the_user_is_there(self):
        text = printed(seen())
        for part in (
            "User u0 of toy",
            "5 rows, 1 inserted; 6 proposals, 2 prompts",
            "● 1",
            "validation",
            "Proposed: food to kitchen",
            "after row 1: a",
            "own item",
            "u0: food to kitchen: user",
            '- "a"',
            '{"items": [{"title": "aab"}',
            "Likes a.",
        ):
            assert part in text, part

    def test_one_is_no_plural_and_tau_is_told_in_words(self):
        shown = seen()
        one = shown.trace.iloc[:1].assign(fate="tau", source=shown.domains[0])
        text = printed(replace(shown, trace=one, exchanges=shown.exchanges[:1]))
        assert re.search("; 1 proposal, 1 prompt *\n", text) and "below tau" in text

    def test_a_failure_is_told_by_kind(self):
        text = printed(seen(failure="cut off"))
        assert "answer (cut off)" in text and text.count("cut off") >= 4

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_untrusted_text_moves_no_cursor_and_turns_no_line(self, attack):
        text = printed(everywhere(attack))
        assert not OBEYED.search(text)
        assert text.count("[red]") == text.count("markup") == text.count("[/red]")
        assert text.count("markup") >= 8 or "markup" not in attack


def everywhere(text):
    """A view with ``text`` wherever data or a model could put it."""
    exchange = Exchange(text, [{"role": text, "content": text}], [text, text], text)
    whole = text.encode("utf-8", "replace").decode()  # neither a file nor an answer holds half a surrogate pair
    shown = seen({**TITLES, "f1": whole}, answers=(whole, "aab"), profile=text, exchanges=[exchange])
    rows = [replace(row, item=text) for row in shown.rows]
    return replace(shown, user=text, dataset=text, rows=rows, trace=shown.trace.assign(after=whole))


class TestPage:
    def test_everything_about_the_user_is_there(self):
        page = check_page(html_page(seen()))
        for part in (
            "User u0 of toy",
            "● 1",
            "after row 1: a",
            "0.894",
            "0.949",
            "own item",
            "Exactly 10 different",
            "Likes a.",
        ):
            assert part in page.text, part

    def test_it_loads_and_runs_nothing(self):
        text = html_page(seen())
        assert "default-src 'none'" in text
        assert not re.search(r"<(script|link|img|iframe|object|embed|base|form)|url\(|@import|https?:|\bon\w+=", text)

    def test_a_browser_shows_it_loads_nothing_else_and_has_nothing_to_complain_about(self, browser, tmp_path):
        path = tmp_path / "user.html"
        path.write_text(html_page(everywhere("<script>document.title = 'broken'</script>")), encoding="utf-8")
        for width in (360, 1400):
            browser.open(path, width)
            assert browser.requests() == [path.as_uri()] and browser.complaints() == []
            assert browser.evaluate("document.querySelectorAll('script').length") == 0
            assert browser.evaluate("document.title").startswith("User <script>")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width

    def test_dark_and_light_are_both_there(self):
        assert "prefers-color-scheme: dark" in html_page(seen())

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_untrusted_text_is_shown_and_not_obeyed(self, attack):
        page = check_page(html_page(everywhere(attack)))
        assert page.text.count(harmless(attack)) >= 6

    @settings(max_examples=60)
    @given(st.text(max_size=40))
    def test_no_text_whatever_opens_a_tag(self, text):
        base = check_page(html_page(everywhere("word")))
        assert sorted(set(check_page(html_page(everywhere(text))).tags)) == sorted(set(base.tags))


class TestHarmless:
    @pytest.mark.parametrize(
        "text, shown",
        [
            ("\x1b[31m", "\\x1b[31m"),
            ("\u202egnp", "\\u202egnp"),
            ("\ud800", "\\ud800"),
            ("a\tb\nc", "a\tb\nc"),
            ("茶", "茶"),
        ],
    )
    def test_what_would_be_obeyed_stands_as_its_escape(self, text, shown):
        assert harmless(text) == shown
