"""The questions of the three steps of profiling, and how their answers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_edt.cleaning import MAX_DOMAIN, clean, quote
from recbole_edt.llm.questions import ChatRequest
from recbole_edt.llm.templates import (
    MAX_BALANCE,
    MAX_PREFERENCE,
    MAX_PROFILE,
    Writer,
    listed,
    quoted_domains,
    request_from,
    text_schema,
)


@dataclass(frozen=True)
class Group:
    """Similar items of one user in one domain."""

    domain: int
    size: int
    """Items of the user in this group, at least as many as are told."""
    items: Sequence[str]
    """Texts, oldest first."""


def summarize(writer: Writer, groups: Sequence[Group], domains: tuple[str, str], tag: str) -> ChatRequest:
    """Ask for the preference behind each of a user's groups, all in one call (section 3.4.2)."""
    keys = _group_keys(len(groups))
    texts = [
        f"{key}, of the domain {quote(domains[group.domain], MAX_DOMAIN)}{_extent(group)}:\n{listed(group.items)}"
        for key, group in zip(keys, groups, strict=True)
    ]
    named = keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"
    values = {"groups": "\n\n".join(texts), "keys": named}
    schema = dict.fromkeys(keys, text_schema(MAX_PREFERENCE))
    names = quoted_domains(domain_a=domains[0], domain_b=domains[1])
    return request_from(writer, "summarize", tag, schema, values | names)


def parse_summaries(value: Mapping[str, Any]) -> list[str]:
    """The text on each group of an answer to ``summarize``, in the order in which they were told."""
    return [clean(value[key], MAX_PREFERENCE) for key in _group_keys(len(value))]


def _group_keys(n: int) -> list[str]:
    return [f"group_{place}" for place in range(1, n + 1)]


def _extent(group: Group) -> str:
    return f" (the latest {len(group.items)} of {group.size})" if group.size > len(group.items) else ""


def reform(writer: Writer, balance: str, major: str, minor: str, examples: Sequence[Sequence[str]]) -> ChatRequest:
    """Ask to put a hand-written description of the imbalance into the words of two domains (section 3.4.2).

    Args:
        writer: whose templates are used.
        balance: the description.
        major: name of the stronger domain.
        minor: name of the other.
        examples: texts of typical items of the stronger and of the other domain.
    """
    values = {
        "balance": quote(balance, MAX_BALANCE),
        "examples_major": listed(examples[0]),
        "examples_minor": listed(examples[1]),
    }
    names = quoted_domains(major=major, minor=minor)
    return request_from(writer, "reform", f"balance: {balance}", {"text": text_schema(MAX_BALANCE)}, values | names)


def parse_reformed(value: Mapping[str, Any]) -> str:
    """The text of an answer to ``reform``."""
    return clean(value["text"], MAX_BALANCE)


def analyze(
    writer: Writer, preferences: Sequence[Sequence[str]], balance: str, domains: tuple[str, str], tag: str
) -> ChatRequest:
    """Ask for a profile from the summaries of both domains and the reformed imbalance (section 3.4.2).

    Args:
        writer: whose templates are used.
        preferences: for each domain a text per group, the largest group first.
        balance: the answer to ``reform``.
        domains: names.
        tag: for people.
    """
    values = _preferences(preferences, domains) | {"balance": quote(balance, MAX_BALANCE)}
    return request_from(writer, "analyze", tag, {"profile": text_schema(MAX_PROFILE)}, values)


def compose(writer: Writer, preferences: Sequence[Sequence[str]], domains: tuple[str, str], tag: str) -> ChatRequest:
    """Ask for a profile from the summaries of both domains alone (LLM4CDSR's hierarchical profiling).

    Args:
        writer: whose templates are used.
        preferences: for each domain a text per group, the largest group first.
        domains: names.
        tag: for people.
    """
    schema = {"profile": text_schema(MAX_PROFILE)}
    return request_from(writer, "compose", tag, schema, _preferences(preferences, domains))


def _preferences(preferences: Sequence[Sequence[str]], domains: tuple[str, str]) -> dict[str, str]:
    """The variables for names of domains and texts on their groups."""
    names = quoted_domains(domain_a=domains[0], domain_b=domains[1])
    parts = [
        f"In the domain {name}:\n{listed(texts, MAX_PREFERENCE) if texts else 'nothing is known'}"
        for name, texts in zip(names.values(), preferences, strict=True)
    ]
    return {"preferences": "\n\n".join(parts), **names}


def plain(writer: Writer, items: Sequence[tuple[int, str]], domains: tuple[str, str], tag: str) -> ChatRequest:
    """Ask for a profile straight from a user's items (the ablation without summarize, reform and analyze).

    Args:
        writer: whose templates are used.
        items: domain and text of each, oldest first.
        domains: names.
        tag: for people.
    """
    names = quoted_domains(domain_a=domains[0], domain_b=domains[1])
    quoted = list(names.values())
    lines = [f"- {quoted[domain]}: {quote(text)}" for domain, text in items]
    schema = {"profile": text_schema(MAX_PROFILE)}
    return request_from(writer, "plain", tag, schema, {"items": "\n".join(lines)} | names)


def parse_profile(value: Mapping[str, Any]) -> str:
    """The text of an answer to ``analyze``, ``compose`` or ``plain``."""
    return clean(value["profile"], MAX_PROFILE)
