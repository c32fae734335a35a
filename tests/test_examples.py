"""The scripts of examples/ do what they say, on the small data set."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import QUICK

from recbole_edt.cli import run

ROOT = Path(__file__).parent.parent
OPTIONS = [f"--{key}={value}" for key, value in {**QUICK, "epochs": 1, "finetune_epochs": 1}.items()]


@pytest.fixture
def examples(monkeypatch):
    """The folder, so that its scripts can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield
    for path in (ROOT / "examples").glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_own_vectors_train_a_model_that_then_recommends(workplace, examples, capsys):
    import own_vectors
    import recommend_from_run

    assert own_vectors.main(["tiny"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["python", "run_edt.py"]
    assert run([*command[2:], *OPTIONS, "--model=LLMEDT"]) == 0
    assert "with tf-idf" in capsys.readouterr().out
    (folder,) = workplace.glob("runs/*/LLMEDT-*")
    assert recommend_from_run.main([str(folder), "f1", "k3", "f2", "--k=2", "--domain=kitchen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.split()[0] == "kitchen" for line in lines[1:])


def test_what_is_wrong_is_one_line(workplace, examples, capsys):
    import own_vectors
    import recommend_from_run

    assert own_vectors.main(["nowhere"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert recommend_from_run.main(["runs/none", "f1"]) == 1
    assert capsys.readouterr().err.startswith("error: runs/none")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_says_how_it_is_run(path):
    assert f"    python examples/{path.name}" in path.read_text(encoding="utf-8")


def test_pages_of_the_documentation_link_to_files_that_are_there():
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
