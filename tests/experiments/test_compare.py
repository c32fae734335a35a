"""The stages together: compare and its report."""

from __future__ import annotations

import shutil
from pathlib import Path

from tiny_stages import augmented, settings, silent

from recbole_edt.experiments import compare
from recbole_edt.pipeline import manifest, stages
from recbole_edt.render.sections import Page, Section


def test_models_are_compared_where_the_augmented_files_are_all_there_is(workplace):
    augmented()
    stages.profile(settings(), silent)
    shutil.rmtree("atomic_files/tiny")
    compare.compare(settings(models=["Pop"], topk=[3, 10]), silent)
    (folder,) = Path("runs").glob("tiny-*")
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "The data set is not at hand: " in text and "No language model was called" in text
    header = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"hit@3", "ndcg@10"} < set(header) and "hit@5" not in header


def test_names_of_domains_are_text_in_the_report_and_nothing_else(workplace):
    path = Path("atomic_files/tiny/tiny.item")
    path.write_text(path.read_text(encoding="utf-8").replace("\tfood\t", "\t<img src=x>|*a*\t"), encoding="utf-8")
    parts = [*manifest.data_parts(settings()), *manifest.cost_parts(settings(), {})]
    text = Page("t", [], [Section("Data", parts)]).markdown()
    assert "img src" in text and "<img" not in text and "x>|" not in text and "*a*" not in text.replace("\\*", "")
    assert "It is not known whether a language model was called" in text
    assert manifest.llm_note(settings()) == "not known how rows and profiles were made"
