"""What models do not read is not made for them: a method of raw rows alone, and others beside it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import QUICK

from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.experiments import compare
from recbole_edt.files import read_json
from recbole_edt.models import registry
from recbole_edt.pipeline import dry_run
from recbole_edt.recommend.recommender import load
from recbole_edt.train import comparison, run
from recbole_edt.train.checkpoints import load_checkpoint


@pytest.fixture(autouse=True)
def toy(monkeypatch, workplace):
    monkeypatch.setitem(registry.MODULES, "Toy", "toy_method")


def run_all(**keys):
    settings = load_settings("tiny", [], {**QUICK, **keys})
    compare.run_all(settings, "train" if "model" in keys else "compare", lambda line: None)
    experiment = comparison.open_experiment(settings)
    name = keys.get("model", "Toy")
    return settings, run.finished_run(experiment, name)


def made() -> set[str]:
    return {path.name for path in Path("atomic_files").rglob("*") if path.is_file()} - {"tiny.inter", "tiny.item"}


def test_a_method_without_text_and_profiles_makes_nobody_embed_or_profile():
    settings, run_dir = run_all(model="Toy")
    assert settings.pipelines == () and not settings.profile_kinds
    assert made() == {"tiny-edt.inter", "tiny-edt.item", "rows.json"}
    said: list[str] = []
    dry_run.dry_run(settings, None, said.append)
    assert said == ["no language model and no endpoint would be asked"] and not Path("llm_cache").exists()
    assert load(run_dir).recommend(["f1", "k3"], k=4, domain="food").shape[0] == 4
    result = read_json(run_dir / "result.json")
    assert result["artefacts_hash"] == "" and not result["sees_generated"]


def test_beside_it_models_of_recbole_read_raw_rows_and_alone_they_have_all_made():
    run_all(models=["SASRec", "Toy"])
    assert "embed.json" not in made()
    run_all(model="SASRec")
    assert {"embed.json", "augment.json", "profile.json"} <= made()


def test_its_run_is_the_same_where_rows_were_augmented_for_others_which_stay():
    alone = run_all(model="Toy")[1]
    score = read_json(alone / "result.json")["test"]
    run_all(models=["LLM4CDSR", "Toy"])
    assert {"tiny.itemvec.safetensors", "augment.json", "profile.hierarchical.json"} <= made()
    augmented = Path("atomic_files/tiny-edt/tiny-edt.inter").read_bytes()
    assert run_all(model="Toy")[1] == alone and read_json(alone / "result.json")["test"] == score
    assert Path("atomic_files/tiny-edt/tiny-edt.inter").read_bytes() == augmented


def test_rows_are_written_anew_when_the_data_have_changed():
    run_all(models=["LLM4CDSR", "Toy"])
    path = Path("atomic_files/tiny/tiny.inter")
    path.write_text(path.read_text(encoding="utf-8") + "u0\tf1\t2000000000\n", encoding="utf-8")
    run_all(model="Toy")
    assert "augment.json" not in made()
    assert "u0\tf1\t2000000000" in Path("atomic_files/tiny-edt/tiny-edt.inter").read_text(encoding="utf-8")


def test_phases_train_what_they_say_as_long_as_their_keys_say():
    run_dir = run_all(model="Toy", warm_epochs=3)[1]
    assert pd.read_csv(run_dir / "epochs.csv")["phase"].tolist() == ["warm"] * 3 + ["train"] * 2
    assert [phase["phase"] for phase in read_json(run_dir / "result.json")["phases"]] == ["warm", "train"]
    only = run_all(model="Toy", warm_epochs=0)[1]
    assert pd.read_csv(only / "epochs.csv")["phase"].tolist() == ["train"] * 2


def test_a_module_that_a_phase_does_not_name_stays_as_it_was():
    settings = load_settings("tiny", [], {**QUICK, "model": "Toy"})
    compare.run_all(settings, "train", lambda line: None)
    experiment = comparison.open_experiment(settings)
    config = recbole_config(settings, "Toy", settings.augmented, Path("again"))
    train_data, valid_data, _, cls = run.loaders(experiment, config, "Toy")
    model = cls(config, train_data._dataset)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = run.make_trainer(experiment, config, model, Path("again"), train_data._dataset)
    assert type(trainer.optimizer) is torch.optim.SGD  # the method's own default for RecBole's key
    trainer.fit(train_data, valid_data)
    after = load_checkpoint(Path("again/best.pth.warm"))["state_dict"]
    changed = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"backbone"}
