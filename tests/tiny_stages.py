"""The stages before training on the data set ``tiny``, as the tests of several modules run them."""

from __future__ import annotations

from pathlib import Path

from conftest import QUICK

from recbole_edt.config.settings import load_settings
from recbole_edt.data import atomic, two_domains
from recbole_edt.experiments import compare


def silent(line: str) -> None:
    pass


def settings(**keys):
    return load_settings("tiny", [], {**QUICK, **keys})


def augmented(**keys) -> two_domains.TwoDomainData:
    for stage in ("embed", "augment"):
        compare.STAGES[stage](settings(**keys), silent)
    return atomic.read(Path("atomic_files/tiny-edt"), "tiny-edt")
