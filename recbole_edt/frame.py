"""Pages of HTML that load nothing: one look for all, and everything from data escaped by the template engine."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# What a terminal or a browser would obey instead of show: controls but line feed and tab, line separators, marks and
# overrides of direction, invisible characters and tags, halves of surrogate pairs.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def harmless(text: object) -> str:
    """Text in which every character that would be obeyed stands as its escape, such as ``\\x1b`` or ``\\u202e``."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), str(text))


def render(template: str, **values: Any) -> str:
    """A page from the template ``pages/TEMPLATE``; every value but ``Markup`` is made harmless and escaped."""
    return _environment().get_template(template).render(**values)


def png_uri(content: bytes) -> str:
    """A picture as the address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("recbole_edt", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else harmless(value),
    )
    environment.globals["inline_script"] = _inline_script
    return environment


def _inline_script(name: str) -> dict[str, Any]:
    """The text of a script and the hash by which the page's policy lets it, and nothing else, run."""
    loader = _environment().loader
    assert loader is not None
    text = loader.get_source(_environment(), name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return {"text": Markup(text), "hash": f"sha256-{digest}"}
