"""Texts from data or a language model, made harmless and short before they reach a file, a prompt or a page."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_ITEM, MAX_DOMAIN = 200, 60
"""Characters of an item and of a domain's name in a prompt."""

ANSI = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
"""What colours a terminal or moves its cursor."""
_HALVES = "\ud800-\udfff"  # of surrogate pairs, which UTF-8 cannot hold
# What is invisible, or turns the direction of text: soft hyphens, zero-width spaces, marks, overrides and tags. The two
# joiners that scripts need may stay.
_UNSEEN = "\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_HIDDEN, _SURROGATE = re.compile(f"[{_UNSEEN}]+"), re.compile(f"[{_HALVES}]")
UNWRITABLE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_HALVES}]+")
"""Control characters, line ends and halves of characters, which no field of a file holds."""
_OBEYED = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_HALVES}{_UNSEEN}]")


def whole_text(value: Any) -> Any:
    """The value, a text or lists and mappings of them, without halves of characters, which no file can hold."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [whole_text(one) for one in value]
    if isinstance(value, dict):
        return {whole_text(key): whole_text(one) for key, one in value.items()}
    return value


# ---- into files and prompts --------------------------------------------------------------------------------------


def sanitize(text: str) -> str:
    """``text`` as one line that fits a field: no codes for terminals, other controls as spaces, the ends stripped."""
    # Whole codes first: without its first character the rest of one would be taken for text when it is read again.
    return UNWRITABLE.sub(" ", ANSI.sub("", text)).strip()


def clean(text: object, limit: int = MAX_ITEM) -> str:
    """Untrusted text as one line of at most ``limit`` characters, without any that are invisible or control."""
    line = " ".join(_HIDDEN.sub("", sanitize(str(text))).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def quote(text: object, limit: int = MAX_ITEM) -> str:
    """Cleaned text between double quotes, as in JSON: nothing in it can close them."""
    return json.dumps(clean(text, limit), ensure_ascii=False)


def says_something(text: str) -> bool:
    """Whether there is a letter or digit in it."""
    return any(character.isalnum() for character in text)


# ---- onto terminals and pages ------------------------------------------------------------------------------------


def harmless(text: object) -> str:
    """Text in which every character that would be obeyed stands as its escape, such as ``\\x1b`` or ``\\u202e``."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), str(text))


def short(text: str, most: int = 300) -> str:
    """The text on one line, cut to what is worth showing, with nothing in it that a terminal would obey."""
    text = harmless(" ".join(text.split()))
    return text if len(text) <= most else f"{text[: most - 3]}..."
