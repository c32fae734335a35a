"""What a language model is asked and how its answer is read: templates, requests and their JSON schemas.

Everything here is pure: strings in, requests and records out. Texts of items, domains and earlier answers are never
trusted: each stands on one line between double quotes, cleaned and cut to length, and no rule is written beside it.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recbole_edt.atomic import ANSI
from recbole_edt.errors import ConfigError
from recbole_edt.files import sha256_of
from recbole_edt.llm import ChatAnswer, ChatRequest

VARIABLES: dict[str, tuple[str, ...]] = {
    "generate": ("source", "target", "items", "n", "fields"),
    "summarize": ("domain_a", "domain_b", "groups", "keys"),
    "reform": ("major", "minor", "examples_major", "examples_minor", "balance"),
    "analyze": ("domain_a", "domain_b", "preferences", "balance"),
    "compose": ("domain_a", "domain_b", "preferences"),
    "plain": ("domain_a", "domain_b", "items"),
}
"""The templates and what each must speak of."""

FIELDS = {"title": 160, "brand": 80, "category": 120, "description": 300}
"""Parts of a generated item, and how many characters each may have."""

MAX_ITEM, MAX_DOMAIN = 200, 60
"""Characters of an item and of a domain's name in a prompt."""
MAX_PREFERENCE, MAX_BALANCE, MAX_PROFILE = 400, 600, 1500
"""Characters of an answer on one group, on the spread over the domains, and of a profile."""

_HINTS = {
    "title": "title (at most 15 words)",
    "brand": "brand (or maker)",
    "category": "category",
    "description": "description (one short sentence)",
}
# Control characters and line ends part words. Those that are invisible, or turn the direction of text, part nothing:
# soft hyphens, zero-width spaces, marks and overrides of direction, tags; the two joiners that scripts need may stay.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_HIDDEN = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]+"
)
_SECTION = re.compile(r"^--- (system|user)[ \t]*$", re.MULTILINE)
_VERSION = re.compile(r"version: ([\w.-]+)[ \t]*")


# ---- templates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """One prompt with ``$variables``."""

    name: str
    version: str
    system: str
    """May be empty: then the user's message is the only one."""
    user: str

    @property
    def label(self) -> str:
        """Name and version, such as ``generate@1``: part of the key under which an answer is stored."""
        return f"{self.name}@{self.version}"

    def messages(self, **values: str) -> tuple[dict[str, str], ...]:
        """The messages with every variable filled in; a ``$`` inside a value stays as it is."""
        texts = {"system": self.system, "user": self.user}
        return tuple(
            {"role": role, "content": string.Template(text).substitute(values)} for role, text in texts.items() if text
        )


class Templates(Mapping[str, Template]):
    """All templates by name."""

    def __init__(self, templates: Mapping[str, Template]) -> None:
        self._templates = dict(templates)

    def __getitem__(self, name: str) -> Template:
        return self._templates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._templates)

    def __len__(self) -> int:
        return len(self._templates)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all texts and versions."""
        return sha256_of({name: [each.version, each.system, each.user] for name, each in self.items()})


class Writer(Protocol):
    """The language model as the stages see it: who asks, what is asked, and who embeds what was answered."""

    @property
    def templates(self) -> Templates:
        """As ``load`` gives them."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of an answer."""

    def ask(self, requests: Sequence[ChatRequest], desc: str) -> Sequence[ChatAnswer]:
        """One answer per request, in order; a failed one says why in ``failure``."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors ``[P, D]`` of the space of the items' own; a row of zeros or NaN could not be had."""


def load(folder: str | Path | None = None) -> Templates:
    """The packaged templates, each replaced by ``folder/NAME.txt`` where there is one.

    A file begins with ``version: TEXT``; then ``--- system`` and ``--- user``, each on a line of its own, start the
    two messages (the first may be left out). ``$name`` is filled in, ``$$`` is a dollar.

    Raises: ConfigError listing every fault with file and line: no such folder, a file with another name, an unknown,
    missing or malformed variable, no version, no user message.
    """
    packaged = resources.files("recbole_edt") / "templates"
    sources = {name: (f"templates/{name}.txt", (packaged / f"{name}.txt").read_text("utf-8")) for name in VARIABLES}
    faults: list[str] = []
    if folder is not None:
        sources.update(_own_files(Path(folder), faults))
    templates = {name: _parse(name, where, text, faults) for name, (where, text) in sources.items()}
    if faults:
        raise ConfigError("\n".join(faults))
    return Templates(templates)


def _own_files(folder: Path, faults: list[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    if not folder.is_dir():
        faults.append(f"{folder}: no such folder of templates; correct the setting llm.templates")
        return
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in VARIABLES:
            faults.append(f"{path}: no template has this name; rename or remove it (names: {', '.join(VARIABLES)})")
            continue
        try:
            yield path.stem, (str(path), path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{path}: cannot be read ({error}); write it as UTF-8 text")


def _parse(name: str, where: str, text: str, faults: list[str]) -> Template:
    first, _, rest = text.removeprefix("\ufeff").partition("\n")
    version = _VERSION.fullmatch(first)
    if not version:
        faults.append(
            f"{where}, line 1: {_shown(first)} is no version; write 'version: 1' there, and change it with the text"
        )
    before, *parts = _SECTION.split(rest)
    sections = dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))
    if before.strip() or list(parts[::2]) not in (["user"], ["system", "user"]) or not sections.get("user"):
        faults.append(
            f"{where}: below the version goes '--- system', its text, '--- user', its text; each once, in this order"
        )
    _check_variables(name, where, rest, faults)
    return Template(name, version[1] if version else "", sections.get("system", ""), sections.get("user", ""))


def _check_variables(name: str, where: str, text: str, faults: list[str]) -> None:
    known = VARIABLES[name]
    found = set()
    for match in string.Template.pattern.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        variable = match["named"] or match["braced"]
        if variable:
            found.add(variable)
            if variable not in known:
                names = ", ".join(f"${each}" for each in known)
                faults.append(f"{where}, line {line}: unknown variable '${variable}' (known: {names})")
        elif match["invalid"] is not None:
            faults.append(f"{where}, line {line}: '$' names no variable; write '$$' for a dollar")
    for variable in known:
        if variable not in found:
            faults.append(f"{where}: the variable '${variable}' is missing; without it the model does not learn of it")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


# ---- texts of others ---------------------------------------------------------------------------------------------


def clean(text: object, limit: int = MAX_ITEM) -> str:
    """Untrusted text as one line of at most ``limit`` characters, without any that are invisible or control."""
    line = " ".join(_HIDDEN.sub("", _BREAKS.sub(" ", ANSI.sub("", str(text)))).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def says_something(text: str) -> bool:
    """Whether there is a letter or digit in it."""
    return any(character.isalnum() for character in text)


def quote(text: object, limit: int = MAX_ITEM) -> str:
    """Cleaned text between double quotes, as in JSON: nothing in it can close them."""
    return json.dumps(clean(text, limit), ensure_ascii=False)


def listed(texts: Sequence[str], limit: int = MAX_ITEM) -> str:
    """One quoted text per line, with a dash: a number would come back as part of a title."""
    return "\n".join(f"- {quote(text, limit)}" for text in texts)


def _domains(**names: str) -> dict[str, str]:
    return {variable: quote(name, MAX_DOMAIN) for variable, name in names.items()}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _text(longest: int, shortest: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def _request(
    writer: Writer, template: str, tag: str, properties: Mapping[str, Any], values: Mapping[str, str]
) -> ChatRequest:
    chosen = writer.templates[template]
    return ChatRequest(
        messages=chosen.messages(**values),
        schema=_object(properties),
        schema_name=template,
        template=chosen.label,
        max_tokens=writer.max_tokens,
        tag=clean(tag),
    )


def failure(answer: ChatAnswer) -> str:
    """Why there is nothing to read in an answer; ``""`` if there is something."""
    return answer.failure or ("empty" if answer.value is None else "")


# ---- one pair of functions per step ------------------------------------------------------------------------------


def generate(
    writer: Writer, items: Sequence[str], source: str, target: str, n: int, fields: Sequence[str], tag: str
) -> ChatRequest:
    """Ask for items of another domain (eq. 4).

    Args:
        writer: whose templates are used.
        items: texts of the user's representatives in the source domain, oldest first.
        source: name of their domain.
        target: name of the domain of the items to write.
        n: items wanted.
        fields: parts of an item that the answer shall have, of ``FIELDS``.
        tag: for people.
    """
    record = {field: _text(FIELDS[field], shortest=int(field == "title")) for field in fields}
    # Fewer than n are taken as they are: what is there was paid for, and the filter wants few.
    schema = {"items": {"type": "array", "minItems": 1, "maxItems": n, "items": _object(record)}}
    values = {"items": listed(items), "n": str(n), "fields": ", ".join(_HINTS[field] for field in fields)}
    return _request(writer, "generate", tag, schema, values | _domains(source=source, target=target))


def parse_generated(value: Mapping[str, Any]) -> list[dict[str, str]]:
    """The records of an answer to ``generate``: cleaned title, brand, category, description (``""`` if not asked)."""
    return [{field: clean(item.get(field, ""), limit) for field, limit in FIELDS.items()} for item in value["items"]]


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
    schema = dict.fromkeys(keys, _text(MAX_PREFERENCE))
    return _request(writer, "summarize", tag, schema, values | _domains(domain_a=domains[0], domain_b=domains[1]))


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
    names = _domains(major=major, minor=minor)
    return _request(writer, "reform", f"balance: {balance}", {"text": _text(MAX_BALANCE)}, values | names)


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
    return _request(writer, "analyze", tag, {"profile": _text(MAX_PROFILE)}, values)


def compose(writer: Writer, preferences: Sequence[Sequence[str]], domains: tuple[str, str], tag: str) -> ChatRequest:
    """Ask for a profile from the summaries of both domains alone (LLM4CDSR's hierarchical profiling).

    Args:
        writer: whose templates are used.
        preferences: for each domain a text per group, the largest group first.
        domains: names.
        tag: for people.
    """
    return _request(writer, "compose", tag, {"profile": _text(MAX_PROFILE)}, _preferences(preferences, domains))


def _preferences(preferences: Sequence[Sequence[str]], domains: tuple[str, str]) -> dict[str, str]:
    """The variables for names of domains and texts on their groups."""
    names = _domains(domain_a=domains[0], domain_b=domains[1])
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
    names = _domains(domain_a=domains[0], domain_b=domains[1])
    quoted = list(names.values())
    lines = [f"- {quoted[domain]}: {quote(text)}" for domain, text in items]
    return _request(writer, "plain", tag, {"profile": _text(MAX_PROFILE)}, {"items": "\n".join(lines)} | names)


def parse_profile(value: Mapping[str, Any]) -> str:
    """The text of an answer to ``analyze``, ``compose`` or ``plain``."""
    return clean(value["profile"], MAX_PROFILE)
