"""The methods of this library by name, each described by a file ``properties/NAME.yaml``.

Everything that treats a method unlike a model of RecBole asks here; nothing else names one.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

DEFAULT = "LLMEDT"
"""The model where none is named."""


@dataclass(frozen=True)
class Method:
    """What a file of ``properties/`` says."""

    name: str
    """Of the class, as on the command line; the name of the file."""
    title: str
    """As its paper writes it."""
    model: str
    """Where the class is, such as ``recbole_edt.models.llmedt.LLMEDT``: a `two_domain.TwoDomainModel`."""
    settings: list[str]
    """Dataclasses of its keys with their defaults; each may say in ``faults()`` what is wrong with their values."""
    trainer: str = ""
    """Class of its trainer; empty if one phase of training is all."""
    use_generated: bool = False
    """Whether it sees the inserted rows unless told otherwise."""
    profiles: str = "sra"
    """Its kind of profiles, one of ``profile.pipeline``."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows of the stage ``ablate``: keys by name."""

    def load(self) -> type:
        """The model's class."""
        return named(self.model)

    def defaults(self) -> dict[str, Any]:
        """Every key of the method with its default."""
        return {one.name: one.default for cls in map(named, self.settings) for one in fields(cls)}

    def faults(self, values: Mapping[str, Any]) -> list[str]:
        """What is wrong with values by key, one ``key: message`` each; keys that are not the method's are ignored."""
        found = []
        for cls in map(named, self.settings):
            given = {one.name: values[one.name] for one in fields(cls) if one.name in values}
            found += cls(**given).faults()
        return found


def named(path: str) -> Any:
    """The object at ``package.module.name``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _read(path: Path) -> Method:
    return Method(path.stem, **yaml.safe_load(path.read_text(encoding="utf-8")))


METHODS: dict[str, Method] = {
    path.stem: _read(path) for path in sorted((Path(__file__).parent / "properties").glob("*.yaml"))
}
