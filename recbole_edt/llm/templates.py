"""What a language model is asked and how its answer is read: templates, requests and their JSON schemas.

Everything here is pure: strings in, requests and records out. Texts of items, domains and earlier answers are never
trusted: each stands on one line between double quotes, cleaned and cut to length, and no rule is written beside it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recbole_edt.cleaning import MAX_DOMAIN, MAX_ITEM, clean, quote
from recbole_edt.errors import ConfigError
from recbole_edt.files import sha256_of
from recbole_edt.llm.questions import ChatAnswer, ChatRequest

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
MAX_PREFERENCE, MAX_BALANCE, MAX_PROFILE = 400, 600, 1500
"""Characters of an answer on one group, on the spread over the domains, and of a profile."""
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
    packaged = resources.files("recbole_edt.llm") / "templates"
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


def listed(texts: Sequence[str], limit: int = MAX_ITEM) -> str:
    """One quoted text per line, with a dash: a number would come back as part of a title."""
    return "\n".join(f"- {quote(text, limit)}" for text in texts)


def quoted_domains(**names: str) -> dict[str, str]:
    return {variable: quote(name, MAX_DOMAIN) for variable, name in names.items()}


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def text_schema(longest: int, shortest: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def request_from(
    writer: Writer, template: str, tag: str, properties: Mapping[str, Any], values: Mapping[str, str]
) -> ChatRequest:
    chosen = writer.templates[template]
    return ChatRequest(
        messages=chosen.messages(**values),
        schema=object_schema(properties),
        schema_name=template,
        template=chosen.label,
        max_tokens=writer.max_tokens,
        tag=clean(tag),
    )


def failure(answer: ChatAnswer) -> str:
    """Why there is nothing to read in an answer; ``""`` if there is something."""
    return answer.failure or ("empty" if answer.value is None else "")
