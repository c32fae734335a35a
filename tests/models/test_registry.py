"""Methods by name: what they declare, and that naming them costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from recbole_edt.models.base import TwoDomainModel
from recbole_edt.models.registry import DEFAULT, METHODS, MODULES, Phase, model_class, phases_of, read_by


def test_names_are_known_without_torch():
    code = """
import sys
from recbole_edt.models.registry import METHODS
assert "LLM4CDSR" in METHODS and len(list(METHODS)) == len(METHODS)
assert not {"torch", "recbole"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_name_of_its_class_in_a_module_of_its_own(name):
    cls = model_class(name)
    assert issubclass(cls, TwoDomainModel) and cls.__name__ == name and cls.__module__ == MODULES[name]
    assert METHODS[name] is cls.method and METHODS[name].variants


@pytest.mark.parametrize("name", METHODS)
def test_every_phase_has_its_keys_and_names_modules_of_the_model(name, opener):
    model, *_ = opener(name)()
    for phase in METHODS[name].phases:
        assert {key for key in ("epochs", "learning_rate", "stopping_step") if phase.prefix} <= {
            key.removeprefix(phase.prefix) for key in METHODS[name].defaults()
        }
        assert all(hasattr(model, module) for module in phase.trains)


def test_a_model_of_recbole_has_one_phase_and_reads_raw_rows_unless_told_otherwise():
    assert phases_of("SASRec") == (Phase("train"),) and "SASRec" not in METHODS
    assert read_by("SASRec") == set() and read_by("SASRec", True) == {"generated"}
    assert read_by(DEFAULT) == {"text", "profiles", "generated"} and read_by(DEFAULT, False) == {"text", "profiles"}
