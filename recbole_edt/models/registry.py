"""The methods of this library by name; what a method is, reads and trains it says in its own file.

Everything that treats a method unlike a model of RecBole asks here; nothing else names one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

DEFAULT = "LLMEDT"
"""The model where none is named."""
MODULES = {DEFAULT: "recbole_edt.models.llmedt", "LLM4CDSR": "recbole_edt.models.llm4cdsr"}
"""Module of each method's class, which has the method's name."""
NO_PROFILES = "none"


@dataclass(frozen=True)
class Phase:
    """One phase of training, from the best weights of the phase before.

    Its epochs, learning rate and patience are the keys ``epochs``, ``learning_rate`` and ``stopping_step`` after its
    prefix. One without epochs is left out.
    """

    name: str = "train"
    prefix: str = ""
    """Of its keys; without one they are RecBole's own."""
    trains: tuple[str, ...] = ()
    """Modules of the model that train; all others are frozen: no gradient, no dropout. Empty: all is left as it is."""
    keeps_states: bool = False
    """Its batches are states of the frozen part (``frozen_states``, ``last_states``), computed once where they fit."""
    new_scores: str = ""
    """A key with which it starts at other scores than the phase before ended with, and need not beat them."""

    def key(self, name: str) -> str:
        """Its key for ``epochs``, ``learning_rate`` or ``stopping_step``."""
        return self.prefix + name


@dataclass(frozen=True)
class Method:
    """What a method says of itself; ``method`` of its class."""

    title: str
    """As its paper writes it."""
    settings: tuple[type, ...]
    """Classes of its keys with their defaults; each may say in ``faults()`` what is wrong with their values."""
    text: bool = True
    """Whether it reads the items' text vectors."""
    profiles: str = NO_PROFILES
    """Its kind of users' profiles, one of ``profile.pipeline``, or `NO_PROFILES`."""
    use_generated: bool = False
    """Whether it sees the inserted rows unless told otherwise."""
    phases: tuple[Phase, ...] = (Phase(),)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows of the stage ``ablate``: keys by name."""
    recbole: dict[str, Any] = field(default_factory=dict)
    """RecBole's keys whose default is another for this method."""

    def defaults(self) -> dict[str, Any]:
        """Every key of the method with its default."""
        return {**self.recbole, **{one.name: one.default for cls in self.settings for one in fields(cls)}}

    def faults(self, values: Mapping[str, Any]) -> list[str]:
        """What is wrong with values by key, one ``key: message`` each; keys that are not the method's are ignored."""
        found = []
        for cls in self.settings:
            given = {one.name: values[one.name] for one in fields(cls) if one.name in values}
            found += cls(**given).faults()
        return found


def model_class(name: str) -> Any:
    """A method's class, a `base.TwoDomainModel`; with it torch is imported."""
    return getattr(importlib.import_module(MODULES[name]), name)


class _Methods(Mapping[str, Method]):
    """By name, each read when it is first asked for."""

    def __getitem__(self, name: str) -> Method:
        return model_class(name).method

    def __contains__(self, name: object) -> bool:
        return name in MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


METHODS = _Methods()


def phases_of(name: str) -> tuple[Phase, ...]:
    """The phases of a method, or the one of a model of RecBole."""
    return METHODS[name].phases if name in METHODS else (Phase(),)


def read_by(name: str, use_generated: Any = None) -> set[str]:
    """What a model reads beyond raw rows: ``text``, ``profiles``, ``generated`` (rows); as `Method` says it.

    Args:
        use_generated: the key of this name; None is the method's own.
    """
    method = METHODS.get(name)
    sees = bool(method and method.use_generated) if use_generated is None else bool(use_generated)
    read = {"generated": sees, "text": method and method.text, "profiles": method and method.profiles != NO_PROFILES}
    return {what for what, it_does in read.items() if it_does}
