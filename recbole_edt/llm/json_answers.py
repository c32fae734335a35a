"""From what a model says to a value that fits a JSON schema, or to a sentence about why it does not."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

from recbole_edt.cleaning import short, whole_text

_LIMITS = ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "pattern", "format")
_FAULTS_TOLD = 3
_MOST_STARTS = 50  # places of a text where JSON is looked for
_MOST_CHARACTERS = 200_000
_LANGUAGE = re.compile(r"\A[\w-]*\s*")


@dataclass(frozen=True)
class Problem:
    """Why an answer is of no use.

    Attributes:
        kind: ``refused``, ``empty``, ``cut off``, ``not JSON`` or ``schema``.
        message: a sentence for the model, and for people.
    """

    kind: str
    message: str


def judge(text: str | None, finish_reason: str | None, schema: Mapping[str, Any]) -> Any | Problem:
    """The value in an answer, or the problem with it.

    Tolerated: code fences, prose and thoughts around the JSON, a bare list where an object with one list is asked for,
    keys that nobody asked for, and items beyond the largest number of a list; these are cut off.
    """
    if finish_reason in ("refusal", "content_filter"):
        return Problem("refused", f"the model refused: {short(text or finish_reason)}")
    cut_off = Problem("cut off", "the answer was too long and was cut off; it must be shorter")
    if not (text or "").strip():  # a model that thinks may use up its tokens before it says a word
        return cut_off if finish_reason == "length" else Problem("empty", "the answer was empty")
    problem = Problem("not JSON", "the answer holds no JSON")
    for value in _candidates(text or ""):
        value = _fitted(value, schema)
        fault = fault_of(value, schema)
        if fault is None:
            return value
        problem = Problem("schema", fault)
    return cut_off if finish_reason == "length" else problem


def fault_of(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Where and how a value breaks a schema, in the first few places; None if it fits."""
    errors = itertools.islice(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value), _FAULTS_TOLD)
    told = [f"{error.json_path}: {short(error.message)}".removeprefix("$").lstrip(".: ") for error in errors]
    return "; ".join(told) or None


def without_limits(schema: Any) -> Any:
    """The schema without limits on lengths and numbers, which some servers refuse."""
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        kept = {key: without_limits(one) for key, one in schema.items() if key not in _LIMITS}
        if isinstance(properties, Mapping):  # where a limit's name is the name of a property
            kept["properties"] = {key: without_limits(one) for key, one in properties.items()}
        return kept
    return [without_limits(one) for one in schema] if isinstance(schema, list) else schema


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads(schema))


def _candidates(text: str) -> Iterator[Any]:
    """JSON values in a text, the likeliest first."""
    text = _without_thoughts(text[:_MOST_CHARACTERS]).strip()
    # In the event loop of all calls: an expression would take seconds for a fence or a thought that is never closed.
    fenced = text.split("```")[1:-1:2]
    for whole in (text, *(_LANGUAGE.sub("", one) for one in fenced)):
        try:
            yield _loads(whole)
        except (ValueError, RecursionError):
            continue
    decoder, position = json.JSONDecoder(parse_constant=_no_constant), 0
    for _ in range(_MOST_STARTS):
        start = min((at for at in (text.find("{", position), text.find("[", position)) if at >= 0), default=-1)
        if start < 0:
            return
        try:
            value, position = decoder.raw_decode(text, start)
            yield whole_text(value)
        except (ValueError, RecursionError):
            position = start + 1


def _without_thoughts(text: str) -> str:
    """The text without all from ``<think>`` to the next ``</think>``."""
    kept, position = "", 0
    while (start := text.find("<think>", position)) >= 0 and (end := text.find("</think>", start)) >= 0:
        kept, position = kept + text[position:start], end + len("</think>")
    return kept + text[position:]


def _loads(text: str) -> Any:
    return whole_text(json.loads(text, parse_constant=_no_constant))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _fitted(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value with its list wrapped or unwrapped as asked for, and without what is too much."""
    properties = schema.get("properties", {})
    lists = [key for key, one in properties.items() if one.get("type") == "array"]
    if schema.get("type") == "object" and isinstance(value, list) and len(properties) == len(lists) == 1:
        value = {lists[0]: value}
    if schema.get("type") == "array" and isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if isinstance(value, dict):
        closed = schema.get("additionalProperties") is False
        return {
            key: _fitted(one, properties.get(key, {})) for key, one in value.items() if key in properties or not closed
        }
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [_fitted(one, schema["items"]) for one in value[: schema.get("maxItems")]]
    return value
