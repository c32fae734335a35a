"""Pages of HTML that load nothing: one look for all, and everything from data escaped by the template engine."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from recbole_edt.cleaning import harmless


def render(template: str, **values: Any) -> str:
    """A page from the template ``pages/TEMPLATE``; every value but ``Markup`` is made harmless and escaped."""
    return _environment().get_template(template).render(**values)


def png_uri(content: bytes) -> str:
    """A picture as the address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


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
    return environment


def _inline_script(name: str) -> dict[str, Any]:
    """The text of a script and the hash by which the page's policy lets it, and nothing else, run."""
    loader = _environment().loader
    assert loader is not None
    text = loader.get_source(_environment(), name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return {"text": Markup(text), "hash": f"sha256-{digest}"}
