"""RecBole's own models through the same pipeline: same data, same split, one rank for every user."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, write_tiny

from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import Settings, load_settings
from recbole_edt.data import split
from recbole_edt.files import read_json
from recbole_edt.pipeline import stages
from recbole_edt.train import comparison
from recbole_edt.train.run import loaders, run_directory, train_model

SEQUENTIAL = ["NARM", "STAMP", "Caser", "GRU4Rec", "SASRec", "BERT4Rec"]
GENERAL = ["BPR", "LightGCN", "Pop", "ItemKNN", "EASE", "NeuMF", "MultiVAE"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The augmented data set ``tiny-edt`` and LLM-EDT's run on it."""
    place = tmp_path_factory.mktemp("baselines")
    write_tiny(place / "atomic_files", "tiny")
    settings = settings_for(place, "LLMEDT")
    for stage in (stages.embed, stages.augment_data, stages.profile):
        stage(settings, lambda line: None)
    run(place, "LLMEDT")
    return place


def settings_for(place, model: str, **keys) -> Settings:
    values = {**QUICK, "epochs": 1, "finetune_epochs": 1, "models": [model], "model": model}
    values |= {"data_path": str(place / "atomic_files"), "runs_path": str(place / "runs"), "training": "prefix"}
    return load_settings("tiny", [], {**values, **keys})


def run(place, model: str, **keys):
    """A finished run: what ``train`` returns and the run's ``result.json``."""
    experiment = comparison.open_experiment(settings_for(place, model, **keys))
    result = train_model(experiment, model)
    return result, read_json(run_directory(experiment, model) / "result.json")


def targets(result) -> pd.DataFrame:
    return result.ranks[["user", "item", "domain"]].sort_values("user").reset_index(drop=True)


@pytest.mark.parametrize("model", SEQUENTIAL + GENERAL)
def test_a_baseline_ranks_every_user_once_on_llmedts_split(folder, model):
    result, record = run(folder, model)
    reference, ours = run(folder, "LLMEDT")
    assert record["split_hash"] == ours["split_hash"] == result.ranks.attrs["split_hash"]
    assert result.ranks["user"].is_unique and len(result.ranks) == 40  # users of the tiny data set
    pd.testing.assert_frame_equal(targets(result), targets(reference))
    assert record["rows"] == ("prefix" if model in SEQUENTIAL else "pairs")
    # The item itself is never among its competitors: 15 real items in each domain.
    assert (result.ranks["higher"] + result.ranks["tied"]).between(0, 14).all()
    assert np.isfinite(list(record["test"].values())).all()


def test_a_baseline_sees_no_inserted_rows_unless_asked(folder):
    plain, with_generated = run(folder, "Pop")[1], run(folder, "Pop", use_generated=True)[1]
    assert (plain["sees_generated"], with_generated["sees_generated"]) == (False, True)
    assert with_generated["targets_per_epoch"] > plain["targets_per_epoch"]
    assert with_generated["split_hash"] == plain["split_hash"]


def test_a_model_that_only_counts_is_not_said_to_have_hit_its_epoch_cap(folder):
    assert [run(folder, model)[0].status for model in ("Pop", "BPR")] == ["no training", "epoch cap"]


def test_popularity_scores_are_the_counts_of_raw_training_rows(folder):
    result, _ = run(folder, "Pop")
    settings = settings_for(folder, "Pop")
    data = stages.read(settings)
    train = split.leave_one_out(data) == split.TRAIN
    count = np.bincount(data.item[train], minlength=len(data.items))
    row = {token: i for i, token in enumerate(data.items)}
    for item, higher, tied in zip(*(result.ranks[name] for name in ("item", "higher", "tied")), strict=True):
        same_domain = count[data.item_domain == data.item_domain[row[item]]]
        assert higher == (same_domain > count[row[item]]).sum()
        assert tied == (same_domain == count[row[item]]).sum() - 1


def test_negatives_by_popularity_are_drawn_from_training_rows_alone(folder):
    experiment = comparison.open_experiment(
        settings_for(folder, "BPR", train_neg_sample_args={"distribution": "popularity"})
    )
    config_ = recbole_config(experiment.settings, "BPR", experiment.settings.augmented, folder / "runs")
    sampler = loaders(experiment, config_, "BPR")[0]._sampler
    data = stages.read(experiment.settings)
    train = data.items[data.item[split.leave_one_out(data) == split.TRAIN]]
    drawn_from = experiment.dataset.field2id_token["item_id"][sampler._get_candidates_list()]
    assert sorted(drawn_from) == sorted([*train] * 3)  # RecBole counts each part it is given


@pytest.mark.parametrize("model", ["ItemKNN", "EASE", "LightGCN"])
def test_a_finished_baseline_recommends_after_loading(folder, model):
    from recbole_edt.recommend.recommender import load

    experiment = comparison.open_experiment(settings_for(folder, model))
    train_model(experiment, model)
    recommender = load(run_directory(experiment, model))
    frame = pd.concat(recommender.all_users(k=3))
    assert frame.groupby(["user", "domain"]).size().eq(3).all() and frame["user"].nunique() == 40
    assert frame.groupby(["user", "domain"])["score"].is_monotonic_decreasing.all()
