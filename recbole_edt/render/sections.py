"""A page as values: a title and sections of texts, tables, pictures and listings; and the page as Markdown.

`html.page` and `console.print_page` show the same. Whoever makes a page hands over texts as they are: what shows them
escapes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from recbole_edt.render.tables import ResultTable, code, escape_markdown


@dataclass(frozen=True)
class Picture:
    """A figure that stands as ``PATH.png``, and perhaps as ``PATH.pdf``."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Listing:
    """Lines of text that are shown as they are; on a page they open on demand."""

    title: str
    text: str
    opened: bool = False


Part: TypeAlias = "str | ResultTable | Picture | Listing"


@dataclass(frozen=True)
class Section:
    """One heading and what stands below it."""

    title: str
    parts: Sequence[Part]
    name: str = ""
    """For its address, if not the title."""

    @property
    def anchor(self) -> str:
        return slug(self.name or self.title)


@dataclass(frozen=True)
class Page:
    """A title, lines below it, and sections; those without a part are left out."""

    title: str
    lines: Sequence[str]
    sections: Sequence[Section]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", tuple(filter(None, self.lines)))
        object.__setattr__(self, "sections", tuple(one for one in self.sections if one.parts))

    @property
    def tables(self) -> list[ResultTable]:
        return [part for section in self.sections for part in section.parts if isinstance(part, ResultTable)]

    def markdown(self, folder: Path = Path()) -> str:
        """The page as Markdown, with pictures as files relative to ``folder``."""
        blocks = [f"# {escape_markdown(self.title)}", *map(escape_markdown, self.lines)]
        for section in self.sections:
            blocks.append(f"## {escape_markdown(section.title)}")
            for part in section.parts:
                if isinstance(part, ResultTable | Listing) and part.title != section.title:
                    blocks.append(f"### {escape_markdown(part.title)}")
                blocks.append(_as_markdown(part, folder))
        return "\n\n".join(filter(None, blocks)) + "\n"


def _as_markdown(part: Part, folder: Path) -> str:
    if isinstance(part, str):
        return escape_markdown(part)
    if isinstance(part, ResultTable):
        return part.markdown()
    if isinstance(part, Listing):
        return code(part.text.splitlines())
    # What Markdown would obey in a path is written as in an address.
    link = quote(Path(os.path.relpath(part.path.resolve(), folder.resolve())).as_posix())
    return f"![{escape_markdown(part.caption)}]({link}.png)"


def slug(text: str) -> str:
    """A name for addresses and files: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "table"
