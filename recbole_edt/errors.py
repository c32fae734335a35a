"""What can go wrong, said in words that name the thing, the place and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any


class EDTError(Exception):
    """Base of every error that recbole_edt raises for its caller's input."""


class ConfigError(EDTError):
    """A setting is unknown, missing, malformed, or contradicts another."""


class DataError(EDTError):
    """A file or table is missing, damaged, unreadable, or does not fit the others."""


class TooFewItems(DataError):
    """A domain has fewer items than candidates are to be drawn of it."""


class LLMError(EDTError):
    """A language model could not be reached, refused, or answered with something unusable."""


def choice_faults(settings: Any, allowed: Mapping[str, Sequence[str]]) -> list[str]:
    """One sentence for each named field whose value is not among those allowed."""
    return [
        f"{name}: {getattr(settings, name)!r} is not one of {', '.join(values)}"
        for name, values in allowed.items()
        if getattr(settings, name) not in values
    ]


def whole_number_faults(settings: Any, least: Mapping[str, int]) -> list[str]:
    """One sentence for each named field that is not a whole number of at least the given one."""
    return [
        f"{name}: {value!r} is not a whole number of at least {lowest}"
        for name, lowest in least.items()
        if not isinstance(value := getattr(settings, name), int) or isinstance(value, bool) or value < lowest
    ]


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def same_kind(value: Any, example: Any) -> bool:
    """Whether a value may stand where a default of this type does; a whole number is a number, too."""
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(example, bool) and isinstance(value, bool)
    if isinstance(example, float):
        return isinstance(value, Real)
    if isinstance(example, int):
        return isinstance(value, Integral)
    if isinstance(example, Mapping):
        return isinstance(value, Mapping | None)
    return isinstance(value, type(example))


def kind_of(example: Any) -> str:
    """What values like the example are called."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(example), "a mapping")
