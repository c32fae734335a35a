"""What runs share: whether own items compete, and what each user had before a target."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import QUICK
from toy import dataset

from recbole_edt.cli import run
from recbole_edt.config.settings import load_settings
from recbole_edt.data import split
from recbole_edt.evaluate.metrics import domain_metrics
from recbole_edt.evaluate.ranking import read_ranks, with_seen_items
from recbole_edt.render.tables import read
from recbole_edt.train.comparison import open_experiment, seen_before, seen_items_of


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["f1 f2 k1 k2", "f1 k1 f2"], ("masked", "no training row repeats one")),
        (["f1 f2 k1 f1", "f1 f2 f1 k1"], ("masked", "no training row repeats one")),  # held-out rows do not decide
        (["f1 f2 *f1 k1 k2"], ("masked", "no training row repeats one")),  # nor do inserted ones
        (["f1 f2 f1 k1 k2", "f1 f1 f1 f2 k1"], ("ranked", "3 training rows repeat one")),
    ],
)
def test_own_items_are_masked_where_no_training_row_repeats_one(rows, expected):
    assert seen_items_of(dataset(rows), "auto") == expected
    for chosen in ("masked", "ranked"):
        assert seen_items_of(dataset(rows), chosen) == (chosen, f"seen_items: {chosen}")


def test_stored_negatives_hold_no_own_items_whatever_is_chosen():
    repeats = dataset(["f1 f2 f1 k1 k2"])
    for chosen in ("auto", "ranked"):
        assert seen_items_of(repeats, chosen, "sampled-3") == ("masked", "stored negatives hold none")


def settings(prepared, **keys):
    return load_settings("tiny", [], {**QUICK, "data_path": str(prepared), **keys})


def test_before_the_test_target_a_user_has_the_validation_target_too_and_no_inserted_item(prepared, tmp_path):
    experiment = open_experiment(settings(prepared, runs_path=str(tmp_path)))
    data = experiment.dataset
    rows = data.sequences
    assert rows.generated.any()
    for user in rows.user.unique().tolist():
        own = (rows.user == user) & ~rows.generated
        for mark in (split.VALID, split.TEST):
            expected = set(rows.item[own & (rows.mark < mark)].tolist())
            found = seen_before(data, mark).of(rows.user.new_tensor([user]))[0]
            assert sorted(expected) == sorted(found[found > 0].tolist())


def test_masked_and_ranked_runs_lie_apart_and_each_answers_both_questions(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--dataset=tiny", f"--data_path={prepared}", "--model=Pop"]
    found = {}
    for seen in ("masked", "ranked"):
        assert run(["train", *given, f"--seen_items={seen}"]) == 0
        folder = open_experiment(settings(prepared, seen_items=seen)).folder
        (path,) = folder.glob("Pop-*/ranks.csv")
        found[seen] = read_ranks(path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "without the user's own earlier items (seen_items: masked)" in printed
    assert "the user's own earlier items among them (seen_items: ranked)" in printed
    assert (found["ranked"]["higher"] > found["masked"]["higher"]).any()
    folder = open_experiment(settings(prepared, seen_items="ranked")).folder
    assert run(["report", *given, f"--runs={folder}", "--seen_items=masked", "--output=other"]) == 0
    shown = read(tmp_path / "other" / "tables" / "results.json")
    masked = domain_metrics(found["masked"], (10,)).loc["overall", "ndcg@10"]
    names = [(column.name, column.group) for column in shown.columns]
    assert shown.rows[0][names.index(("ndcg@10", "overall"))] == pytest.approx(masked)
    assert "(training was stopped by the other ranking)" in (tmp_path / "other" / "report.md").read_text("utf-8")
    columns = ["user", "higher", "tied"]
    pd.testing.assert_frame_equal(
        with_seen_items(found["ranked"], "masked")[columns], found["masked"][columns], check_like=True
    )
