"""The augmented atomic files through RecBole's own data set, split and runner: the same targets, for any model."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import SequentialDataset

from recbole_edt import compat
from recbole_edt.cli import run
from recbole_edt.config.settings import load_settings
from recbole_edt.data.split import TRAIN
from recbole_edt.evaluate.ranking import read_ranks
from recbole_edt.experiments import compare
from recbole_edt.train import comparison
from recbole_edt.train.run import train_model

STOCK = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "train_neg_sample_args": None,
    "epochs": 1,
    "hidden_size": 16,
    "inner_size": 16,
    "MAX_ITEM_LIST_LENGTH": 20,
    "show_progress": False,
    "state": "ERROR",
}
TINY = ["--dataset=tiny", *(f"--{key}={value}" for key, value in {**QUICK, "epochs": 1}.items()), "--seeds=1"]


@pytest.fixture
def augmented(workplace, monkeypatch):
    """The tiny data set with inserted rows, of which every third names a virtual item."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    compat.apply()
    for stage in ("embed", "augment"):
        compare.STAGES[stage](load_settings("tiny", [], QUICK), lambda line: None)
    folder = Path("atomic_files/tiny-edt")
    inter = pd.read_csv(folder / "tiny-edt.inter", sep="\t", dtype=str)
    items = pd.read_csv(folder / "tiny-edt.item", sep="\t", dtype=str)
    written = inter.index[inter["generated:float"] == "1"][::3]
    inter.loc[written, "item_id:token"] = "v-" + inter.loc[written, "item_id:token"]
    new = inter.loc[written, "item_id:token"].unique()
    domain = items.set_index("item_id:token")["domain:token"].loc[[token[2:] for token in new]].to_numpy()
    texts = {"title:token_seq": "written", "virtual:float": "1"}
    virtual = pd.DataFrame({"item_id:token": new, "domain:token": domain, **texts})
    items["virtual:float"] = "0"
    inter.to_csv(folder / "tiny-edt.inter", sep="\t", index=False)
    pd.concat([items, virtual])[list(items.columns)].to_csv(folder / "tiny-edt.item", sep="\t", index=False)
    (folder / "augment.json").unlink()  # as by someone else's program
    return workplace


def targets(part) -> Counter:
    """(user, item) tokens of the rows that a part predicts."""
    dataset = getattr(part, "_dataset", part)
    users = dataset.id2token(dataset.uid_field, dataset.inter_feat[dataset.uid_field].numpy())
    items = dataset.id2token(dataset.iid_field, dataset.inter_feat[dataset.iid_field].numpy())
    return Counter(zip(users.tolist(), items.tolist(), strict=True))


def stock_parts(model: str = "SASRec", **keys):
    settings = Config(model, "tiny-edt", config_dict={"data_path": "atomic_files", **STOCK, **keys})
    dataset = create_dataset(settings)
    assert type(dataset) is SequentialDataset
    return data_preparation(settings, dataset)


def test_recboles_own_leave_one_out_predicts_the_same_rows_as_ours(augmented):
    stock = [targets(part) for part in stock_parts()]
    experiment = comparison.open_experiment(load_settings("tiny", [], QUICK))
    ours = [targets(part) for part in experiment.dataset.parts(True, "prefix")]
    assert stock[2] == ours[2] and len(ours[2]) == 40
    raw = experiment.dataset.sequences.raw(experiment.dataset.item_domain)
    n_raw = raw.user.bincount()
    tokens = experiment.dataset.field2id_token["user_id"]
    long = {str(tokens[u]) for u in range(1, len(n_raw)) if n_raw[u] >= 4}
    assert 30 < len(long) < 40  # some have three rows, and RecBole does not validate on them

    def of_long(part: Counter) -> Counter:
        return Counter({row: n for row, n in part.items() if row[0] in long})

    assert of_long(stock[1]) == of_long(ours[1]) and len(of_long(ours[1])) == len(long)
    assert of_long(stock[0]) == of_long(ours[0])
    assert sum(item.startswith("v-") for _, item in of_long(stock[0])) > 5  # inserted rows are trained on
    assert not any(item.startswith("v-") for part in stock[1:] for _, item in of_long(part))


def test_the_histories_are_the_same_too_although_recbole_keeps_times_as_float32(augmented):
    test = stock_parts()[2]._dataset
    experiment = comparison.open_experiment(load_settings("tiny", [], {**QUICK, "MAX_ITEM_LIST_LENGTH": 20}))
    ours = experiment.dataset.parts(True, "prefix")[2]

    def histories(part) -> dict:
        batch = part[list(range(len(part)))]
        users = part.id2token("user_id", batch["user_id"].numpy())
        rows = zip(batch["item_id_list"], batch["item_length"].tolist(), strict=True)
        items = [tuple(part.id2token("item_id", row[:n].numpy())) for row, n in rows]
        return dict(zip(users.tolist(), items, strict=True))

    assert histories(test) == histories(ours)


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "BERT4Rec", "NARM", "STAMP"])
def test_recboles_own_runner_trains_and_tests_a_stock_model_on_the_augmented_files(augmented, model):
    pytest.importorskip("ray", reason="recbole.quick_start imports ray")
    from recbole.quick_start import run_recbole

    result = run_recbole(model=model, dataset="tiny-edt", config_dict={"data_path": "atomic_files", **STOCK})
    assert 0 <= result["test_result"]["hit@10"] <= 1 and 0 < result["best_valid_score"] <= 1


@pytest.mark.parametrize("rows", ["sequence", "prefix"])
def test_a_stock_model_trains_on_virtual_items_in_our_compare_and_they_are_never_ranked(augmented, rows):
    keys = {**QUICK, "epochs": 1, "use_generated": True, "training": rows}
    experiment = comparison.open_experiment(load_settings("tiny", [], keys))
    result = train_model(experiment, "SASRec")
    part = experiment.dataset.parts(True, "prefix")[0]
    assert part.virtual[part.sequences.item[part.sequences.mark == TRAIN]].any()
    # 15 real items in each domain, of which one is the target.
    assert (result.ranks["higher"] + result.ranks["tied"]).between(0, 14).all()
    assert not result.ranks["item"].str.startswith("v-").any()


def test_one_command_tells_whether_the_augmentation_helps_a_model(workplace, capsys):
    assert run(["ablate", "--model=GRU4Rec", *TINY]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith(("raw rows† ", "augmented rows† "))]
    assert len(rows) == 2
    text = next(Path("runs").glob("tiny-ablation-*/ablation.md")).read_text(encoding="utf-8")
    assert "raw rows against the others, ndcg@10" in text and "| augmented rows | overall | 40 |" in text
    run_dirs = pd.read_csv(next(Path("runs").glob("tiny-ablation-*/ablation.csv")))["run"].unique()
    one, other = (read_ranks(Path(place) / "ranks.csv") for place in run_dirs)
    pd.testing.assert_frame_equal(one[["user", "item", "domain"]], other[["user", "item", "domain"]])
