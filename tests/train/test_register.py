"""After ``register()`` RecBole's own functions find the methods by name: run, tuning, caches, spawned processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recbole.data.dataset as datasets
import recbole.model.sequential_recommender as models
import recbole.trainer as trainers
import torch
from conftest import QUICK, write_tiny
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_flops, get_model, get_trainer
from recbole.utils.argument_list import dataset_arguments

import recbole_edt
from recbole_edt.config import recbole_keys
from recbole_edt.config.settings import load_settings
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.models.llmedt import LLMEDT
from recbole_edt.models.registry import METHODS, model_class
from recbole_edt.pipeline import stages
from recbole_edt.train.dataset import EDTDataset
from recbole_edt.train.phases import PhaseTrainer

MODULE = "recbole.model.sequential_recommender.llmedt"
REPOSITORY = Path(recbole_edt.__file__).parents[1]
SMALL = {"hidden_size": 16, "inner_size": 16, "MAX_ITEM_LIST_LENGTH": 8, "show_progress": False, "state": "ERROR"}


@pytest.fixture(scope="module")
def augmented(tmp_path_factory) -> Path:
    """A folder with the augmented data set ``tiny-edt``."""
    folder = tmp_path_factory.mktemp("register") / "atomic_files"
    write_tiny(folder, "tiny")
    settings = load_settings("tiny", [], {**QUICK, "data_path": str(folder)})
    for stage in (stages.embed, stages.augment_data, stages.profile):
        stage(settings, lambda line: None)
    return folder


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty working directory, no command line, and RecBole as it was before registration afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for name in METHODS:
        for module, key in ((models, name), (datasets, f"{name}Dataset"), (trainers, f"{name}Trainer")):
            if getattr(module, key, object).__module__.startswith("recbole_edt"):
                delattr(module, key)
        found = sys.modules.get(f"{models.__name__}.{name.lower()}")
        if found is not None and found.__name__.startswith("recbole_edt"):
            del sys.modules[f"{models.__name__}.{name.lower()}"]
    root.handlers, root.level = handlers, level


@pytest.fixture
def registered() -> None:
    recbole_edt.register()


def stock_config(augmented: Path, **keys) -> Config:
    return Config("LLMEDT", "tiny-edt", config_dict={"data_path": str(augmented), **SMALL, **keys})


# ---- names -------------------------------------------------------------------------------------------------------


def test_recbole_does_not_know_the_model_before():
    with pytest.raises((ValueError, ImportError)):  # RecBole looks among models that need LightGBM, too
        get_model("LLMEDT")


def test_recbole_finds_model_data_set_and_trainer_by_name(registered, augmented):
    assert get_model("LLMEDT") is LLMEDT
    settings = stock_config(augmented)
    assert type(create_dataset(settings)) is EDTDataset
    assert get_trainer(settings["MODEL_TYPE"], "LLMEDT") is PhaseTrainer


def test_recbole_finds_every_method_and_trains_one_of_a_single_phase_by_its_own_trainer(registered, augmented):
    assert all(get_model(name) is model_class(name) for name in METHODS)
    settings = Config("LLM4CDSR", "tiny-edt", config_dict={"data_path": str(augmented), **SMALL, "profiles": "sra"})
    dataset = create_dataset(settings)
    train = data_preparation(settings, dataset)[0]
    assert type(train._dataset) is EDTDataset and not train._dataset.sequences.generated.any()
    trainer = get_trainer(settings["MODEL_TYPE"], "LLM4CDSR")(settings, get_model("LLM4CDSR")(settings, train._dataset))
    assert type(trainer) is Trainer
    assert all(loss > 0 for loss in trainer._train_epoch(train, 0))


def test_registering_twice_changes_nothing(registered):
    before = list(dataset_arguments), models.LLMEDT, datasets.LLMEDTDataset, trainers.LLMEDTTrainer
    recbole_edt.register()
    assert (list(dataset_arguments), models.LLMEDT, datasets.LLMEDTDataset, trainers.LLMEDTTrainer) == before
    assert len(dataset_arguments) == len(set(dataset_arguments))


@pytest.mark.parametrize(
    ("module", "name"), [(models, "LLMEDT"), (datasets, "LLMEDTDataset"), (trainers, "LLMEDTTrainer")]
)
def test_a_foreign_class_under_one_of_the_names_stays_and_nothing_else_is_set(monkeypatch, module, name):
    foreign = type(name, (), {})
    monkeypatch.setattr(module, name, foreign, raising=False)
    with pytest.raises(ConfigError, match=f"{module.__name__}.{name} is already taken"):
        recbole_edt.register()
    assert getattr(module, name) is foreign
    ours = {(models, "LLMEDT"), (datasets, "LLMEDTDataset"), (trainers, "LLMEDTTrainer")} - {(module, name)}
    assert not any(hasattr(other, key) for other, key in ours)
    assert MODULE not in sys.modules


def test_a_foreign_module_under_the_models_name_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, os)
    with pytest.raises(ConfigError, match="llmedt is already taken"):
        recbole_edt.register()
    assert sys.modules[MODULE] is os and not hasattr(models, "LLMEDT")


# ---- RecBole's own steps -----------------------------------------------------------------------------------------


def test_path_and_name_of_the_data_are_all_that_recbole_needs(registered, augmented):
    settings = Config("LLMEDT", "tiny-edt", config_dict={"data_path": str(augmented)})
    dataset = create_dataset(settings)
    train, valid, test = data_preparation(settings, dataset)
    batch = next(iter(train))
    model = get_model("LLMEDT")(settings, train._dataset)
    loss = sum(model.calculate_loss(batch))
    assert torch.isfinite(loss) and loss.requires_grad
    # One held-out interaction of every user in each part, and generated rows in training only.
    ours = dataset.parts(True, "sequence")
    assert [len(part) for part in (train._dataset, valid._dataset, test._dataset)] == [len(part) for part in ours]
    assert torch.equal(test._dataset.inter_feat["item_id"], ours[2].inter_feat["item_id"])
    assert int(dataset.sequences.generated.sum()) > 0 and not dataset.sequences.generated[test._dataset.row].any()


def test_recboles_count_of_operations_leaves_the_model_as_it_was(registered, augmented):
    settings = stock_config(augmented)
    dataset = create_dataset(settings)
    train = data_preparation(settings, dataset)[0]
    model = get_model("LLMEDT")(settings, train._dataset)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()

    def unchanged(dataset, interaction):
        return interaction

    assert get_flops(model, dataset, torch.device("cpu"), logging.getLogger(), unchanged) > 0
    assert model.training and list(model.state_dict()) == list(before)
    torch.testing.assert_close(dict(model.state_dict()), before)


@pytest.mark.parametrize("backbone", ["GRU4Rec", "BERT4Rec"])
def test_recboles_steps_train_other_backbones_in_both_phases(registered, augmented, tmp_path, backbone):
    settings = stock_config(augmented, epochs=1, finetune_epochs=1, backbone=backbone, checkpoint_dir=str(tmp_path))
    train, valid, test = data_preparation(settings, create_dataset(settings))
    assert train._dataset.training == ("masked" if backbone == "BERT4Rec" else "sequence")
    trainer = get_trainer(settings["MODEL_TYPE"], "LLMEDT")(settings, get_model("LLMEDT")(settings, train._dataset))
    trainer.fit(train, valid)
    assert [row["phase"] for row in trainer.epoch_log] == ["pretrain", "finetune"]
    assert 0 <= trainer.evaluate(test)["hit@10"] <= 1


def test_recboles_trainer_resumes_from_its_plain_checkpoint(registered, augmented, tmp_path):
    settings = stock_config(augmented, epochs=1, finetune_epochs=1, checkpoint_dir=str(tmp_path / "saved"))
    train, valid, _ = data_preparation(settings, create_dataset(settings))
    model = get_model("LLMEDT")(settings, train._dataset)
    trainer = get_trainer(settings["MODEL_TYPE"], "LLMEDT")(settings, model)
    trainer.fit(train, valid)
    other = get_trainer(settings["MODEL_TYPE"], "LLMEDT")(settings, get_model("LLMEDT")(settings, train._dataset))
    weights = torch.load(trainer.saved_model_file, weights_only=True)["state_dict"]
    other.model.load_state_dict(weights)
    torch.testing.assert_close(dict(other.model.state_dict()), dict(weights))


# ---- cached data sets --------------------------------------------------------------------------------------------


def test_recboles_comparison_of_cached_data_sets_knows_our_keys(registered):
    assert set(recbole_keys.DATASET_KEYS) <= set(dataset_arguments)


@pytest.mark.parametrize("change", [{"use_generated": False}, {"k_core": 2}, {"domains": ["kitchen", "food"]}])
def test_a_cached_data_set_is_not_handed_out_after_a_change_of_our_keys(registered, augmented, tmp_path, change):
    keys = {"checkpoint_dir": str(tmp_path / "saved")}
    first = create_dataset(stock_config(augmented, save_dataset=True, **keys))
    assert list((tmp_path / "saved").iterdir())
    same = create_dataset(stock_config(augmented, **keys))
    assert same.config["save_dataset"] is True  # the cached one
    other = create_dataset(stock_config(augmented, **keys, **change))
    assert other.config["save_dataset"] is not True
    if "use_generated" in change:
        train = [dataset.build()[0].sequences.generated.any() for dataset in (first, other)]
        assert [bool(one) for one in train] == [True, False]


# ---- RecBole's runner and tuning ---------------------------------------------------------------------------------


def test_run_recbole_trains_and_evaluates(registered, augmented, tmp_path):
    pytest.importorskip("ray", reason="recbole.quick_start imports ray")
    from recbole.quick_start import run_recbole

    keys = {"data_path": str(augmented), "epochs": 2, "finetune_epochs": 1, **SMALL}
    result = run_recbole(model="LLMEDT", dataset="tiny-edt", config_dict=keys)
    assert 0 < result["best_valid_score"] <= 1
    assert set(result["test_result"]) == {"recall@10", "mrr@10", "ndcg@10", "hit@10", "precision@10"}
    assert result["test_result"]["recall@10"] == result["test_result"]["hit@10"]  # one target per user
    checkpoints = list((tmp_path / "saved").glob("LLMEDT-*.pth"))
    assert len(checkpoints) == 1
    about = {"model": "LLMEDT", "dataset": "tiny-edt", "backbone": "SASRec"}
    assert torch.load(checkpoints[0], weights_only=True)["config"] == about


def test_a_value_of_another_kind_and_a_data_set_without_its_stages_are_named(registered, augmented):
    pytest.importorskip("ray", reason="recbole.quick_start imports ray")
    from recbole.quick_start import run_recbole

    keys = {"data_path": str(augmented), **SMALL}
    with pytest.raises(ConfigError, match="hidden_size: 1.5 is not a whole number; beta: 'word' is not a number"):
        run_recbole(model="LLM4CDSR", dataset="tiny-edt", config_dict={**keys, "beta": "word", "hidden_size": 1.5})
    numbers = {"hidden_size": np.int64(8), "alpha": np.float32(0.5), "epochs": 1, "finetune_epochs": 0}
    assert run_recbole(model="LLMEDT", dataset="tiny-edt", config_dict={**keys, **numbers})["test_result"]
    with pytest.raises(DataError, match="; they make the data set tiny-edt"):
        run_recbole(model="LLM4CDSR", dataset="tiny", config_dict=keys)


def test_run_recbole_gives_the_same_result_twice(registered, augmented):
    pytest.importorskip("ray", reason="recbole.quick_start imports ray")
    from recbole.quick_start import run_recbole

    keys = {"data_path": str(augmented), "epochs": 1, "finetune_epochs": 1, **SMALL}
    one, two = (run_recbole(model="LLMEDT", dataset="tiny-edt", config_dict=dict(keys)) for _ in range(2))
    assert one["test_result"] == two["test_result"]


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_recboles_tuning_works_unchanged(registered, augmented, tmp_path, monkeypatch, algo):
    pytest.importorskip("hyperopt", reason="RecBole's tuning is built on hyperopt")
    pytest.importorskip("ray", reason="RecBole's objective function imports ray")
    from recbole.quick_start import objective_function
    from recbole.trainer import HyperTuning

    monkeypatch.setattr(sys, "argv", ["run_hyper.py", "--model=LLMEDT", "--dataset=tiny-edt"])
    lines = [f"data_path: {augmented}", "epochs: 1", "finetune_epochs: 1"]
    Path("fixed.yaml").write_text("\n".join([*lines, *(f"{k}: {v}" for k, v in SMALL.items())]), encoding="utf-8")
    tuning = HyperTuning(
        objective_function,
        params_dict={"choice": {"alpha": [0.0, 0.7]}, "loguniform": {"learning_rate": [-9, -4]}},
        fixed_config_file_list=["fixed.yaml"],
        algo=algo,
        max_evals=2,
    )
    tuning.run()
    tuning.export_result(output_file="result.txt")
    assert len(tuning.params2result) == 2 and tuning.model == "LLMEDT"
    assert set(tuning.best_params) == {"alpha", "learning_rate"} and tuning.best_score == max(tuning.score_list)
    assert "ndcg@10" in Path("result.txt").read_text(encoding="utf-8")


# ---- spawned processes -------------------------------------------------------------------------------------------

SCRIPT = """
import multiprocessing
import sys

sys.path.insert(0, {repository!r})
import recbole_edt

recbole_edt.register()


def found(name):
    from recbole.utils import get_model

    return get_model(name).__module__


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(found, ["LLMEDT"])[0])
"""


def test_a_spawned_process_of_a_script_that_registers_at_its_top_finds_the_model(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(repository=str(REPOSITORY)), encoding="utf-8")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "recbole_edt.models.llmedt"
