"""The doctor's exit status and its counts, on three users whose figures are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_edt import compat
from recbole_edt.cli import run

ITEMS = """item_id:token\tdomain:token\ttitle:token_seq
f1\tfood\ttea
f2\tfood\t
f3\tfood\thoney
k1\tkitchen\tpan
k2\tkitchen\tkettle
"""
# ann: three rows, two of them at the same time; bob: two rows at one time; cyd: five rows.
ROWS = [
    ("ann", "f1", 1), ("ann", "k1", 2), ("ann", "f1", 2),
    ("bob", "f2", 5), ("bob", "k1", 5),
    ("cyd", "f1", 1), ("cyd", "f2", 2), ("cyd", "k1", 2), ("cyd", "f1", 2), ("cyd", "k1", 9),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "atomic_files" / "three"
    folder.mkdir(parents=True)
    (folder / "three.item").write_text(ITEMS)
    rows = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in ROWS)
    (folder / "three.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{rows}")
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "three.yaml").write_text("augment: {n_clusters: 2}\nprofile: {n_clusters: 2}\n")
    return folder


def test_a_good_data_set_is_counted_by_hand(place, capsys):
    assert run(["doctor", "--dataset=three"]) == 0
    printed = capsys.readouterr().out
    assert "data three: users 3, items food 3, items kitchen 2, interactions 10" in printed
    # Neighbours of one user: 2 + 1 + 4; equal times: ann 1, bob 1, cyd 2.
    assert "  4 of 7 neighbouring interactions have the same time" in printed
    assert "  1 users with fewer than 3 interactions only train" in printed
    assert "  2 users have a validation and a test target" in printed
    assert "  1 items without text, 2 without interactions" in printed
    assert "recbole 1.2.1" in printed and "no problem found" in printed


def test_what_keeps_a_data_set_from_telling_anything_is_said(place, capsys):
    rows = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in ROWS if item.startswith("f"))
    (place / "three.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{rows}new\tk1\t9\n")
    assert run(["doctor", "--dataset=three", "--augment.n_clusters=10"]) == 1
    printed = capsys.readouterr().out
    assert "note: food has 3 items, so that every target is among the first 10 of its domain, whatever" in printed
    assert "note: no user acts in both domains, so that nothing is learnt of one from the other" in printed
    assert "PROBLEM: augment.n_clusters: 10 is more than the 2 items of kitchen" in printed


def test_a_broken_data_set_is_a_problem_and_exit_status_1(place, capsys):
    with open(place / "three.inter", "a", encoding="utf-8") as file:
        file.write("dan\tf9\t1\n")
    assert run(["doctor", "--dataset=three"]) == 1
    printed = capsys.readouterr().out
    assert "PROBLEM: atomic_files/three/three.inter, line 12, column 'item_id': item 'f9'" in printed
    assert "1 problem(s) found" in printed


def test_no_data_yet_is_no_problem(place, capsys):
    assert run(["doctor", "--dataset=other"]) == 1
    assert "PROBLEM: atomic_files/other has no other.inter: put your data there" in capsys.readouterr().out
    assert run(["doctor", "--dataset=other", "--prepare.source=ml-100k"]) == 0
    assert "has no other.inter yet (the stage prepare makes it)" in capsys.readouterr().out


def test_nothing_is_written(place, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert run(["doctor", "--dataset=three"]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_broken_installation_is_a_problem(place, capsys, monkeypatch):
    from recbole_edt.errors import ConfigError

    def broken() -> None:
        raise ConfigError("RecBole 1.0 is installed, this package works with 1.2.1")

    monkeypatch.setattr(compat, "check", broken)
    assert run(["doctor", "--dataset=three"]) == 1
    assert "PROBLEM: RecBole 1.0 is installed" in capsys.readouterr().out


def test_the_doctor_says_whom_a_run_would_ask_and_of_the_key_only_whether_it_is_there(place, capsys, monkeypatch):
    assert run(["doctor", "--dataset=three"]) == 0
    assert "none is asked with these settings" in capsys.readouterr().out
    asked = ["--augment.generator=llm", "--llm.model=writer", "--llm.base_url=http://127.0.0.1:9/v1"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-a1b2c3d4")
    assert run(["doctor", "--dataset=three", *asked]) == 0
    printed = capsys.readouterr().out
    assert "chat: writer at http://127.0.0.1:9/v1, OPENAI_API_KEY is set" in printed and "a1b2" not in printed
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run(["doctor", "--dataset=three", *asked]) == 0
    assert "OPENAI_API_KEY is not set" in capsys.readouterr().out
    vectors = ["--embed.embedder=endpoint", "--embed.model=v", "--embed.base_url=http://127.0.0.1:8/v1"]
    assert run(["doctor", "--dataset=three", *asked, *vectors]) == 0
    assert "vectors: v at http://127.0.0.1:8/v1, no key" in capsys.readouterr().out


def test_a_model_that_is_not_named_yet_keeps_neither_the_doctor_nor_the_cache_from_working(place, capsys):
    unnamed = ["--dataset=three", "--augment.generator=llm"]
    assert run(["doctor", *unnamed, "--augment.n_clusters=2", "--profile.n_clusters=2"]) == 0
    assert "chat: no model named (llm.model) at" in capsys.readouterr().out
    assert run(["cache", "stats", *unnamed]) == 1
    assert "no answers are stored yet" in capsys.readouterr().err
    assert run(["augment", *unnamed]) == 2
    assert "needs the name of a model" in capsys.readouterr().err
