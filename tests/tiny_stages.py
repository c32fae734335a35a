"""The stages before training on the data set ``tiny``, as the tests of several modules run them."""

from __future__ import annotations

from pathlib import Path

from conftest import QUICK

from recbole_edt import atomic, config, pipeline


def silent(line: str) -> None:
    pass


def settings(**keys):
    return config.load("tiny", [], {**QUICK, **keys})


def augmented(**keys) -> atomic.TwoDomainData:
    for stage in ("embed", "augment"):
        pipeline.STAGES[stage](settings(**keys), silent)
    return atomic.read(Path("atomic_files/tiny-edt"), "tiny-edt")
