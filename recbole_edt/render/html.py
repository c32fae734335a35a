"""Pages of HTML that load nothing: one look for all, and everything from data escaped by the template engine."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from recbole_edt.cleaning import harmless
from recbole_edt.files import read_bytes
from recbole_edt.render.sections import Page, Picture, slug
from recbole_edt.render.tables import ResultTable, groups_of


def page(page: Page, sorts: bool = True) -> str:
    """The page as one file; every text in it is made harmless and escaped.

    Args:
        page: what it says.
        sorts: whether tables can be sorted, by the page's only script, and copied in other forms.
    """
    return _environment().get_template("page.html").render(page=page, sorts=sorts)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("recbole_edt.render", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else harmless(value),
    )
    environment.globals["inline_script"] = _inline_script
    environment.filters |= {"png_uri": _png_uri, "rows": _rows, "groups": groups_of, "slug": slug}
    environment.tests |= {
        "table": lambda part: isinstance(part, ResultTable),
        "picture": lambda part: isinstance(part, Picture),
    }
    return environment


def _inline_script(name: str) -> dict[str, Any]:
    """The text of a script and the hash by which the page's policy lets it, and nothing else, run."""
    loader = _environment().loader
    assert loader is not None
    text = loader.get_source(_environment(), name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return {"text": Markup(text), "hash": f"sha256-{digest}"}


def _png_uri(picture: Picture) -> str:
    """A picture as the address that holds it."""
    content = read_bytes(picture.path.with_name(picture.path.name + ".png"))
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _rows(table: ResultTable) -> Iterator[list[dict[str, Any]]]:
    """By row the cells: their text, the number by which they sort, and how they look."""
    numeric = [table.is_numeric(place) for place in range(len(table.columns))]
    for row, texts, best in zip(table.rows, table.shown(), table.best(), strict=True):
        numbers = [value[0] if isinstance(value, tuple) else value for value in row]
        yield [
            {
                "text": text,
                "sorts": number if isinstance(number, int | float) and not isinstance(number, bool) else None,
                "missing": number is None,
                "best": bool(marked),
                "numeric": right,
                "form": column.form,
            }
            for text, number, marked, right, column in zip(texts, numbers, best, numeric, table.columns, strict=True)
        ]
