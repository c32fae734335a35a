"""The text of an item: its title and other text columns in one line."""

from __future__ import annotations

import html
from collections.abc import Iterable

import pandas as pd

TEXT_TEMPLATE_VERSION = 1
TEXT_COLUMNS = (("title", "name"), ("brand",), ("category", "categories", "class"), ("description",))
"""Parts of an item's text in order; of each group the first column that has something to say."""


def item_text(fields: pd.DataFrame) -> list[str]:
    """One text per item from its title, brand, category and description; missing parts are left out.

    Used alike for catalogue and generated items, so that their cosines mean the same thing (eq. 5).
    HTML entities, which shop titles are full of, are resolved.
    """
    parts = [_first_filled(fields, group) for group in TEXT_COLUMNS]
    return [". ".join(part for part in row if part) for row in zip(*parts, strict=True)]


def _first_filled(fields: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    text = [""] * len(fields)
    for column in columns:
        if column in fields:
            text = [old or _clean(new) for old, new in zip(text, fields[column], strict=True)]
    return text


def _clean(text: str) -> str:
    return " ".join(html.unescape(str(text)).split())
