"""The search for hyper-parameters: one budget for all, validation alone, and nothing lost when it is stopped."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, write_tiny

from recbole_edt.cli import run
from recbole_edt.config.settings import budget_note, default_of, load_settings
from recbole_edt.errors import ConfigError, DataError, EDTError
from recbole_edt.experiments import compare, tuning
from recbole_edt.files import read_file, write_json
from recbole_edt.render import figures, tables
from recbole_edt.train import comparison
from recbole_edt.train.loop import ResumableTraining

pytest.importorskip("optuna")

FLAGS = [f"--{key}={value}" for key, value in {**QUICK, "epochs": 1, "finetune_epochs": 1}.items()]
TUNE = ["tune", "--dataset=tiny", *FLAGS, "--tune.space=space.yaml"]
SPACE = """
SASRec: {learning_rate: {low: 0.001, high: 0.1, log: true}, hidden_dropout_prob: [0.1, 0.5]}
Pop: {}
"""


def place(folder: Path, space: str = SPACE) -> Path:
    """A working directory with the tiny data set and a space."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny(folder / "atomic_files", "tiny")
    (folder / "space.yaml").write_text(space, encoding="utf-8")
    return folder


def settings(**keys):
    return load_settings("tiny", [], {**QUICK, **keys})


def trials(folder: Path, model: str) -> pd.DataFrame:
    (path,) = folder.glob(f"runs/tiny-tuning-*/{model}/trials.csv")
    return pd.read_csv(path, float_precision="round_trip")


def without_time(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """Three trials of SASRec and the one there is of Pop, never stopped."""
    folder = place(tmp_path_factory.mktemp("searched"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run([*TUNE, "--models=SASRec,Pop", "--trials=3"]) == 0
    return folder


# ---- real searches -----------------------------------------------------------------------------------------------


def test_every_model_gets_the_same_trials_or_all_that_there_are(searched):
    assert [len(trials(searched, model)) for model in ("SASRec", "Pop")] == [3, 1]
    assert list(trials(searched, "SASRec")["trial"]) == [1, 2, 3]


def test_the_scores_are_those_that_training_logged_on_validation(searched):
    (folder,) = searched.glob("runs/tiny-tuning-*/SASRec")
    for row in trials(searched, "SASRec").to_dict("records"):
        epochs = pd.read_csv(folder / f"trial-{row['trial']:04d}" / "epochs.csv")
        assert row["score"] == pytest.approx(epochs["ndcg@10"].max(), abs=1e-6)
        assert row["epochs"] == len(epochs)


def test_no_test_target_is_ranked_and_no_weights_are_left(searched):
    files = {path.name for path in searched.glob("runs/**/*") if path.is_file() and "tensorboard" not in path.parts}
    assert not {name for name in files if name.startswith(("ranks", "result")) or ".pth" in name}
    texts = [path.read_text(encoding="utf-8") for path in searched.glob("runs/**/*.json")]
    assert texts and not any('"test"' in text for text in texts)


def test_a_search_never_depends_on_a_test_target(searched, tmp_path, monkeypatch):
    folder = place(tmp_path)
    path = folder / "atomic_files" / "tiny" / "tiny.inter"
    rows = pd.read_csv(path, sep="\t")
    last = rows.groupby("user_id:token").tail(1).index
    rows.loc[last, "item_id:token"] = np.roll(rows.loc[last, "item_id:token"].to_numpy(), 1)
    rows.to_csv(path, sep="\t", index=False)
    monkeypatch.chdir(folder)
    assert run([*TUNE, "--models=SASRec", "--trials=3"]) == 0
    pd.testing.assert_frame_equal(without_time(trials(folder, "SASRec")), without_time(trials(searched, "SASRec")))


def test_a_search_stopped_in_the_middle_of_a_training_ends_as_if_it_had_not_been(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(place(tmp_path))
    flags = [*TUNE, "--models=SASRec", "--trials=3"]
    save, saved = ResumableTraining._save_state, []

    def stop_at_the_second(self, *args):
        save(self, *args)
        saved.append(args)
        if len(saved) == 2:  # the second trial's first epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResumableTraining, "_save_state", stop_at_the_second)
        assert run(flags) == 130
    assert len(trials(tmp_path, "SASRec")) == 1
    assert list(tmp_path.glob("runs/*/SASRec/trial-0002/last.pth"))
    assert run(flags) == 0
    pd.testing.assert_frame_equal(without_time(trials(tmp_path, "SASRec")), without_time(trials(searched, "SASRec")))


def test_a_larger_budget_goes_on_from_the_trials_that_are_done(searched, tmp_path, monkeypatch):
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = trials(tmp_path, "SASRec")
    assert run([*TUNE, "--models=SASRec", "--trials=4"]) == 0
    after = trials(tmp_path, "SASRec")
    pd.testing.assert_frame_equal(after.iloc[:3], before)
    assert len(after) == 4
    spaces = {"SASRec": dict.fromkeys(["learning_rate", "hidden_dropout_prob"], {"low": 0})}
    first_three = tuning.complete({"SASRec": after}, spaces, 3)["SASRec"]  # of a smaller budget the first three count
    assert tuning.best_values(first_three) == tuning.best_values(before)
    assert not tuning.complete({"SASRec": after}, spaces, 5)


def test_a_row_lost_by_a_kill_after_its_trial_comes_back(workplace, monkeypatch):
    known, space = Known(monkeypatch, 3), {"learning_rate": [1, 2, 3]}
    whole = known.search(workplace / "SASRec", space, 3)
    whole.iloc[:2].to_csv(workplace / "SASRec" / "trials.csv", index=False)
    pd.testing.assert_frame_equal(known.search(workplace / "SASRec", space, 3), whole)
    assert len(known.trained) == 3


def test_a_model_with_fewer_trials_than_the_others_is_left_out(searched, tmp_path, monkeypatch, capsys):
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert run([*TUNE, "--model=Pop", "--trials=5"]) == 0
    assert "note: SASRec has not had 5 trials with a score, and is left out" in capsys.readouterr().out
    (best,) = tmp_path.glob("runs/*/best.yaml")
    assert read_file(best)["tune"] == {"trials": 5, "tuned": ["Pop"]}


def test_the_best_values_are_a_configuration_that_compare_takes(searched, monkeypatch):
    monkeypatch.chdir(searched)
    (best,) = searched.glob("runs/*/best.yaml")
    table = trials(searched, "SASRec")
    loaded = load_settings("tiny", [best])
    wanted = table.loc[table["score"].idxmax(), ["learning_rate", "hidden_dropout_prob"]].to_dict()
    assert loaded.model_settings["SASRec"] == wanted
    assert budget_note(loaded, ["SASRec", "Pop"]) == (
        "Hyper-parameters: best of 3 trials per model, chosen on validation."
    )
    assert "; as given: LLMEDT." in budget_note(loaded, ["SASRec", "LLMEDT"])
    assert budget_note(load_settings("tiny"), ["SASRec"]) == "Hyper-parameters: as given, no search."


def test_table_and_figures_are_written(searched):
    (folder,) = searched.glob("runs/tiny-tuning-*")
    table = tables.read(folder / "tuning.json")
    assert [row[0] for row in table.rows] == ["Pop", "SASRec"]
    assert "budget of 3 trials" in table.note and "tune" in table.command
    for name in ("tuning.png", "tuning.pdf", "SASRec/values.png", "SASRec/values.pdf"):
        assert (folder / name).stat().st_size > 5_000
    assert not (folder / "Pop" / "values.png").exists()


def test_values_that_change_rows_get_rows_of_their_own_and_go_to_their_group(tmp_path, monkeypatch):
    monkeypatch.chdir(place(tmp_path, "LLMEDT: {augment.k: [1, 3], alpha: [0.1]}"))
    assert run([*TUNE, "--model=LLMEDT", "--trials=9"]) == 0
    table = trials(tmp_path, "LLMEDT")
    assert sorted(table["augment.k"]) == [1, 3]
    assert len(list(tmp_path.glob("atomic_files/tiny-edt*/augment.json"))) == 2
    (best,) = tmp_path.glob("runs/*/best.yaml")
    found = load_settings("tiny", [best])
    assert found.augment.k == table.loc[table["score"].idxmax(), "augment.k"]
    assert found.model_settings == {"LLMEDT": {"alpha": 0.1}}


# ---- what is proposed --------------------------------------------------------------------------------------------


class Known:
    """In the laboratory's place, where scores are known: the one nearest to ``peak`` is best."""

    def __init__(self, monkeypatch, peak: float, seed: int = 42) -> None:
        self.bad = None
        self.settings, self.trained = settings(**{"tune.seed": seed}), []
        self._peak = peak
        monkeypatch.setattr(tuning, "validate_model", self._validate)

    def experiment(self, own):
        return own

    def _validate(self, own, model, run_dir):
        values = own.model_settings[model]
        self.trained.append(values)
        if values["learning_rate"] == self.bad:
            raise EDTError("a candidate has a score that is not finite")
        result = {"score": -abs(values["learning_rate"] - self._peak), "epochs": 1, "seconds": 2.0}
        write_json(run_dir / "valid.json", {**result, "phases": [{"ended_by": "early stopping"}]})
        return result

    def search(self, folder: Path, space, budget: int) -> pd.DataFrame:
        tuning.search(self, folder, space, budget, lambda line: None)
        return pd.read_csv(folder / "trials.csv")


def test_the_search_finds_a_peak_that_is_known(workplace, monkeypatch):
    table = Known(monkeypatch, 3.0).search(workplace / "SASRec", {"learning_rate": {"low": 0.1, "high": 10.0}}, 18)
    assert abs(table["learning_rate"][tuning.best_row(table)] - 3) < 1
    assert list(table["best"]) == list(table["score"].cummax())


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_small_space_is_tried_whole_and_once_however_it_began(workplace, monkeypatch, first):
    known = Known(monkeypatch, 3)
    if first:
        known.search(workplace / "SASRec", {"learning_rate": [1, 2, 3, 4]}, first)
    table = known.search(workplace / "SASRec", {"learning_rate": [1, 2, 3, 4]}, 10)
    assert sorted(one["learning_rate"] for one in known.trained) == [1, 2, 3, 4]
    assert set(table["state"]) <= {"done", "repeat"} and set(table["learning_rate"]) == {1, 2, 3, 4}


@pytest.mark.parametrize("state", ["RUNNING", "FAIL"])
def test_a_trial_that_a_kill_left_without_values_never_was_one(workplace, monkeypatch, state):
    folder, known, space = workplace / "SASRec", Known(monkeypatch, 1), {"learning_rate": [1, 2]}
    known.search(folder, space, 1)
    optuna = tuning.import_optuna()
    study = tuning._study(optuna, folder)
    number = study.ask().number
    if state == "FAIL":  # so an earlier version went on
        study.tell(number, state=optuna.trial.TrialState.FAIL)
    table = known.search(folder, space, 5)
    assert sorted(one["learning_rate"] for one in known.trained) == [1, 2]
    assert list(table["state"]) == ["done", "done"] and list(table["trial"]) == [1, 3]
    found = tuning.complete(tuning.read_trials(workplace), {"SASRec": space}, 5)["SASRec"]
    assert repr(tuning.best_values(found)) == "{'learning_rate': 1}"
    tuning.draw_values("SASRec", found, space, "ndcg@10")


def test_a_list_of_numbers_and_texts_keeps_them_apart(workplace, monkeypatch):
    space = {"augment.tau": [0.5, "q0.5"], "learning_rate": [1]}
    Known(monkeypatch, 1).search(workplace / "LLMEDT", space, 2)
    table = tuning.read_trials(workplace)["LLMEDT"]
    assert sorted(map(repr, table["augment.tau"])) == ["'q0.5'", "0.5"]
    tuning.draw_values("LLMEDT", table, space, "ndcg@10")


def test_values_with_dollar_signs_are_drawn(tmp_path):
    values = ["a$\\foo$", "b"]
    table = pd.DataFrame({"score": [0.1, 0.2], "item_embeddings": values})
    figures.save(tuning.draw_values("LLMEDT", table, {"item_embeddings": values}, "ndcg@10"), tmp_path / "values.png")


@pytest.mark.parametrize(
    ("model", "key", "kind"),
    [
        ("SASRec", "hidden_dropout_prob", "FloatDistribution"),
        ("SASRec", "learning_rate", "FloatDistribution"),
        ("LLMEDT", "augment.tau", "FloatDistribution"),
        ("LLMEDT", "augment.k", "IntDistribution"),
        ("SASRec", "n_layers", "IntDistribution"),
        ("LightGCN", "n_layers", "IntDistribution"),
    ],
)
def test_a_range_from_0_to_1_has_fractions_where_the_default_is_no_whole_number(model, key, kind):
    found = tuning._distribution(tuning.import_optuna(), {"low": 0, "high": 1}, default_of(model, key))
    assert type(found).__name__ == kind


def test_a_search_that_was_begun_with_another_kind_of_numbers_is_named(workplace, monkeypatch):
    known, space = Known(monkeypatch, 1), {"learning_rate": {"low": 0, "high": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "default_of", lambda model, key: 1)
        known.search(workplace / "SASRec", space, 1)
    with pytest.raises(DataError, match="the search for SASRec was begun by .* delete its folder"):
        known.search(workplace / "SASRec", space, 2)


def test_a_search_that_begins_with_other_rows_is_another_search(workplace, monkeypatch):
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(**{"augment.insertion": "none"}), lambda line: None)
    base = comparison.open_experiment(settings(**{"augment.insertion": "none"}))

    def folder(space: str, k: int) -> str:
        (workplace / "space.yaml").write_text(space, encoding="utf-8")
        own = settings(**{"augment.insertion": "none", "augment.k": k, "tune.space": "space.yaml"})
        return tuning.search_folder(SimpleNamespace(settings=own, base=base)).name

    found = folder("LLMEDT: {alpha: [0, 1]}", 1)
    other = {"ranked": "masked", "masked": "ranked"}[base.seen_items]
    base = replace(base, seen_items=other)  # the closure sees it: scores of another ranking
    assert folder("LLMEDT: {alpha: [0, 1]}", 1) != found
    assert folder("{Pop: {}, GRU4Rec: {5: [1]}}", 1)  # a key that is no text, of a model that is not tuned
    rows, model = "LLMEDT: {augment: {insertion: [random, append]}}", "LLMEDT: {alpha: [0, 1]}"
    assert folder(rows, 1) != folder(rows, 7) and folder(model, 1) == folder(model, 7)


def test_values_met_before_are_not_trained_again(workplace, monkeypatch):
    known = Known(monkeypatch, 3)
    table = known.search(workplace / "SASRec", {"learning_rate": [1, 2, 3], "weight_decay": [1, 2]}, 5)
    repeats = table[table["state"] == "repeat"]
    assert len(repeats) and len(known.trained) == 5 - len(repeats)
    first = table.set_index("trial")
    for row in repeats.to_dict("records"):
        assert row["score"] == first.loc[int(re.search(r"\d+", row["note"])[0]), "score"]


def test_a_training_that_diverges_is_noted_and_the_search_goes_on(workplace, monkeypatch):
    known = Known(monkeypatch, 3)
    known.bad = 2
    table = known.search(workplace / "SASRec", {"learning_rate": [1, 2, 3]}, 3)
    assert sorted(table["state"]) == ["done", "done", "failed"]
    failed = table[table["state"] == "failed"].iloc[0]
    assert failed["note"] == "a candidate has a score that is not finite" and np.isnan(failed["score"])
    assert table["learning_rate"][tuning.best_row(table)] == 3


def test_values_that_fit_one_by_one_and_not_together_are_a_failed_trial(workplace, monkeypatch):
    known, space = Known(monkeypatch, 1), {"learning_rate": [1], "hidden_size": [16, 18], "n_heads": [1, 8]}
    table = known.search(workplace / "SASRec", space, 4)
    assert sorted(table["state"]) == ["done", "done", "done", "failed"] and len(known.trained) == 3
    (note,) = table.loc[table["state"] == "failed", "note"]
    assert note == "SASRec: hidden_size: 18 is not a multiple of n_heads, 8"


def test_another_seed_of_the_sampler_proposes_other_values(workplace, monkeypatch):
    space = {"learning_rate": {"low": 0, "high": 1000}}
    found = [
        list(Known(monkeypatch, 3, seed).search(workplace / f"{n}/SASRec", space, 2)["learning_rate"])
        for n, seed in enumerate((1, 1, 2))
    ]
    assert found[0] == found[1] != found[2]


# ---- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "paper"])
def test_the_packaged_spaces_fit_their_models(name):
    chosen = load_settings("ml-100k-cross", [], {"tune.space": name})
    spaces = tuning.read_space(chosen, ["LLMEDT", "SASRec", "BERT4Rec", "GRU4Rec", "Pop", "LightGCN"])
    assert spaces["LLMEDT"]["alpha"] and spaces["Pop"] == {}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("GRU4Rec: {}", "has no space for SASRec; add it, or 'default'"),
        ("SASRec: {lerning_rate: [1]}", r"unknown key 'model_settings.SASRec.lerning_rate' \(did you mean"),
        ("SASRec: {learning_rate: 0.1}", "SASRec: learning_rate: expected different values such as"),
        ("SASRec: {learning_rate: []}", "learning_rate: expected different values"),
        ("SASRec: {learning_rate: [0.1, 0.1]}", "learning_rate: expected different values"),
        ("SASRec: {weight_decay: [0, 0.0]}", "weight_decay: expected different values"),
        ("SASRec: {valid_metric: [NDCG@5, MRR@5]}", "valid_metric is what trials are judged by, and cannot be"),
        ("SASRec: {learning_rate: [-1]}", "learning_rate: -1 is not a number of at least 0"),
        ("SASRec: {learning_rate: {low: 1}}", "low, high and step are numbers"),
        ("SASRec: {learning_rate: {low: 2, high: 1}}", "low must be below high"),
        ("SASRec: {learning_rate: {low: 0, high: 1, log: true}}", "true goes with low above 0 and no step"),
        ("SASRec: {learning_rate: {low: 0, high: 1, step: 0}}", "step must be above 0"),
        ("SASRec: {learning_rate: {low: 0, high: 1, lgo: true}}", "a range has low, high, log and step, not lgo"),
        ("SASRec: {learning_rate: {low: 0, high: 9999}}", "learning_rate: 9999 is not a number"),
        ("SASRec: {augment.k: [1, 2]}", "augment.k changes the rows of all models; search it for LLMEDT"),
        ("SASRec: {candidates: [all]}", "candidates is the same for all variants"),
        ("SASRec: 3", "SASRec: expected keys below it, found 3"),
        ("SASRec: {epochs: [1, 2]}", "SASRec: epochs is a column of trials.csv, and cannot be searched"),
        ("SASRec: {n_layers: {low: 1, high: 5, step: 2.0}}", "n_layers: 3.0 is not a whole number"),
        ("SASREC: {n_layers: [1]}\ndefault: {}", r"unknown model 'SASREC' \(did you mean 'SASRec'\?\)"),
    ],
)
def test_a_wrong_space_is_refused_before_any_work(workplace, capsys, space, message):
    (workplace / "space.yaml").write_text(space, encoding="utf-8")
    assert run([*TUNE, "--models=SASRec", "--trials=2"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (workplace / "runs").exists()


def test_a_search_needs_a_budget(workplace, capsys):
    assert run(["tune", "--dataset=tiny"]) == 2
    assert "tune needs --trials=N" in capsys.readouterr().err
    assert run(["tune", "--dataset=tiny", "--trials=0"]) == 2
    assert "tune.trials: 0 is not a whole number above 0" in capsys.readouterr().err


def test_without_optuna_the_way_to_it_is_said(workplace, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run(["tune", "--dataset=tiny", "--trials=2"]) == 2
    assert "pip install optuna" in capsys.readouterr().err


def test_a_damaged_file_of_trials_is_named(workplace, monkeypatch):
    folder = workplace / "SASRec"
    folder.mkdir()
    (folder / "study.sqlite").write_text("no database", encoding="utf-8")
    with pytest.raises(EDTError, match="study.sqlite cannot be used .* delete the folder"):
        Known(monkeypatch, 1).search(folder, {"learning_rate": [1]}, 1)


def test_model_alone_wins_over_models(workplace):
    assert tuning.models_of(settings(model="SASRec")) == ("SASRec",)
    assert tuning.models_of(settings(models="Pop,SASRec")) == ("Pop", "SASRec")
    with pytest.raises(ConfigError, match="tune.tuned: 'X' is not a list of models"):
        settings(**{"tune.tuned": "X"})
