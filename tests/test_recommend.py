"""Recommendations from a finished run: what may appear, in which order, and that they are the model's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, write_tiny

import recbole_edt
from recbole_edt.cli import run
from recbole_edt.errors import DataError
from recbole_edt.recommend import load

TINY = ["--dataset=tiny", *(f"--{key}={value}" for key, value in {**QUICK, "epochs": 1, "finetune_epochs": 1}.items())]
HISTORY = ["f1", "k3", "f2", "k5"]


@pytest.fixture(scope="module", params=["LLMEDT", "SASRec", "BPR"])
def trained(request, tmp_path_factory):
    """A model's folder after its training, in a working directory of its own."""
    place = tmp_path_factory.mktemp(request.param)
    write_tiny(place / "atomic_files", "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run([*TINY, f"--model={request.param}"]) == 0
        assert run(["recommend", *TINY, f"--model={request.param}", "--recommend.k=4"]) == 0
    (folder,) = (place / "runs").glob(f"*/{request.param}-*")
    return folder


@pytest.fixture
def model(trained):
    return load(trained, data_path=trained.parents[2] / "atomic_files")


def raw(trained: Path) -> pd.DataFrame:
    frame = pd.read_csv(trained.parents[2] / "atomic_files/tiny/tiny.inter", sep="\t", dtype=str)
    return frame.rename(columns=lambda name: name.partition(":")[0])


# ---- one history -------------------------------------------------------------------------------------------------


SEQUENTIAL = pytest.mark.parametrize("trained", ["LLMEDT", "SASRec"], indirect=True)


@pytest.mark.parametrize("trained", ["BPR"], indirect=True)
def test_a_model_that_knows_only_users_says_so(model):
    with pytest.raises(DataError, match="BPR reads no history"):
        model.recommend(HISTORY)


@SEQUENTIAL
def test_unseen_items_of_each_domain_come_best_first(model):
    found = model.recommend(HISTORY, k=5)
    assert list(found) == ["domain", "rank", "item", "title", "score"]
    assert found["domain"].tolist() == ["food"] * 5 + ["kitchen"] * 5
    assert found["rank"].tolist() == [1, 2, 3, 4, 5] * 2
    assert all(item[0] == domain[0] for item, domain in zip(found["item"], found["domain"], strict=True))
    assert not set(found["item"]) & set(HISTORY)
    for _, part in found.groupby("domain"):
        assert part["item"].is_unique and (np.diff(part["score"]) <= 0).all()
    titles = pd.read_csv(Path(model.dataset.dataset_path).parent / "tiny/tiny.item", sep="\t", index_col=0)
    assert all(titles.loc[row.item, "title:token_seq"] == row.title for row in found.itertuples())


@SEQUENTIAL
def test_scores_are_the_models_own(model):
    found = model.recommend(HISTORY, k=30, seen=True)
    ids = {token: i for i, token in enumerate(model.items)}
    sequence = torch.tensor([[ids[item] for item in HISTORY]])
    data = {"item_id_list": sequence, "item_length": torch.tensor([4])}
    for name, domain in (("a", "f"), ("b", "k")):
        own = [ids[item] for item in HISTORY if item[0] == domain]
        data |= {f"item_id_list_{name}": torch.tensor([own]), f"item_length_{name}": torch.tensor([2])}
    if not model.dataset.with_domains:
        data["item_id_list"] = torch.nn.functional.pad(sequence, (0, QUICK["MAX_ITEM_LIST_LENGTH"] - 4))
    from recbole.data.interaction import Interaction

    with torch.no_grad():
        scores = model.model.full_sort_predict(Interaction(data)).view(-1)
    assert len(found) == 30
    for row in found.itertuples():
        assert row.score == pytest.approx(float(scores[ids[row.item]]), abs=1e-6)
    best = max((item for item in ids if item[0] == "f"), key=lambda item: float(scores[ids[item]]))
    assert found["item"].iloc[0] == best


@SEQUENTIAL
def test_seen_items_come_only_when_asked_for_and_k_beyond_the_domain_gives_all_of_it(model):
    assert len(model.recommend(HISTORY, k=99, domain="food")) == 13
    every = model.recommend(HISTORY, k=99, domain="food", seen=True)
    assert len(every) == 15 and {"f1", "f2"} < set(every["item"])
    assert every["rank"].tolist() == list(range(1, 16))


@SEQUENTIAL
def test_the_order_of_the_history_matters_and_its_far_past_does_not(model):
    one = model.recommend(HISTORY, k=15, seen=True)
    other = model.recommend(HISTORY[::-1], k=15, seen=True)
    assert not np.allclose(one["score"], other["score"])
    longer = model.recommend(["f9", "k9", *HISTORY, *HISTORY], k=15, domain="food", seen=True)
    longest = model.recommend(["f4", "k4", *HISTORY, *HISTORY], k=15, domain="food", seen=True)
    if not model.dataset.with_domains:  # MAX_ITEM_LIST_LENGTH is 8; a domain's own past reaches further back
        pd.testing.assert_frame_equal(longer, longest)


@SEQUENTIAL
@pytest.mark.parametrize(
    ("history", "keys", "message"),
    [
        ([], {}, "history: it is empty"),
        (["f1", "zzz"], {}, "history: unknown item 'zzz'"),
        (["[PAD]"], {}, "history: unknown item"),
        ("f1", {}, "history: unknown item 'f'"),
        (["f1"], {"domain": "toys"}, "domain: 'toys' is not one of food, kitchen"),
        (["f1"], {"k": 0}, "k: 0 is below 1"),
    ],
)
def test_what_cannot_be_answered_is_an_error(model, history, keys, message):
    with pytest.raises(DataError, match=message):
        model.recommend(history, **keys)


# ---- all users ---------------------------------------------------------------------------------------------------


def test_the_stage_writes_unseen_items_for_every_user(trained):
    found = pd.read_csv(trained / "recommendations.csv", dtype={"user": str, "item": str})
    assert list(found) == ["user", "domain", "rank", "item", "title", "score"]
    seen = raw(trained).groupby("user_id")["item_id"].agg(set)
    assert set(found["user"]) == set(seen.index)
    for (user, domain), part in found.groupby(["user", "domain"]):
        assert part["rank"].tolist() == list(range(1, len(part) + 1))
        assert len(part) == min(4, 15 - sum(item[0] == domain[0] for item in seen[user]))
        assert all(item[0] == domain[0] for item in part["item"]) and not set(part["item"]) & seen[user]
        assert (np.diff(part["score"]) <= 0).all()


def test_batches_do_not_matter(model):
    order = ["user", "domain", "rank"]
    frames = [pd.concat(model.all_users(k=3, batch_size=size)).sort_values(order) for size in (512, 7)]
    pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in frames), rtol=1e-5)


@pytest.mark.parametrize("trained", ["SASRec"], indirect=True)  # LLM-EDT's users have inserted items as well
def test_a_history_gives_what_its_user_gets(trained, model):
    rows = raw(trained).assign(time=lambda frame: frame["timestamp"].astype(float))
    history = rows[rows["user_id"] == "u3"].sort_values("time", kind="stable")["item_id"].tolist()
    every = pd.concat(model.all_users(k=3))
    own = every[every["user"] == "u3"].drop(columns="user").reset_index(drop=True)
    assert len(own) == 6
    pd.testing.assert_frame_equal(model.recommend(history, k=3), own, rtol=1e-5)


def test_a_model_loaded_again_is_the_same(trained, model):
    again = load(trained, data_path=trained.parents[2] / "atomic_files")
    for one, other in zip(model.all_users(k=5), again.all_users(k=5), strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_the_packages_own_load_is_this_one(trained, monkeypatch):
    monkeypatch.chdir(trained.parents[2])
    relative = trained.relative_to(trained.parents[2])
    assert len(recbole_edt.load(relative).items) == 31


# ---- runs that cannot be opened ----------------------------------------------------------------------------------


def copy_of(trained: Path, place: Path) -> Path:
    import shutil

    shutil.copytree(trained.parents[2], place / "copy")
    return place / "copy" / trained.relative_to(trained.parents[2])


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="result.json"):
        load(tmp_path)


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    folder = copy_of(trained, tmp_path)
    checkpoint = folder / "best.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    with pytest.raises(DataError, match="best.pth"):
        load(folder, data_path=tmp_path / "copy/atomic_files")


def test_data_that_changed_since_training_are_refused(trained, tmp_path):
    folder = copy_of(trained, tmp_path)
    inter = tmp_path / "copy/atomic_files/tiny-edt/tiny-edt.inter"
    lines = inter.read_text().splitlines(keepends=True)
    inter.write_text("".join([lines[0], *lines[2:]]))
    assert json.loads((folder / "result.json").read_text())["dataset"] == "tiny-edt"
    with pytest.raises(DataError, match="have changed since"):
        load(folder, data_path=tmp_path / "copy/atomic_files")


# ---- what augmentation inserted, and files that changed ------------------------------------------------------------


@pytest.mark.parametrize("trained", ["LLMEDT"], indirect=True)
def test_items_that_augmentation_inserted_are_not_taken_for_seen(model, trained):
    frame = pd.read_csv(trained.parents[2] / "atomic_files/tiny-edt/tiny-edt.inter", sep="\t", dtype=str)
    frame.columns = ["user", "item", "time", "generated"]
    met = set(zip(*(frame.loc[frame["generated"] == "0", key] for key in ("user", "item")), strict=True))
    inserted = set(zip(*(frame.loc[frame["generated"] == "1", key] for key in ("user", "item")), strict=True)) - met
    found = pd.concat(model.all_users(k=30))
    offered = set(zip(found["user"], found["item"], strict=True))
    assert inserted and inserted <= offered and not met & offered


@pytest.mark.parametrize("trained", ["LLMEDT"], indirect=True)
def test_vectors_that_changed_since_training_are_refused(trained, tmp_path):
    from recbole_edt.embeddings import EmbeddingTable

    copied = tmp_path / "atomic_files"
    shutil.copytree(trained.parents[2] / "atomic_files", copied)
    assert load(trained, data_path=copied)
    path = copied / "tiny-edt" / "tiny-edt.itemvec.safetensors"
    table = EmbeddingTable.load(path)
    EmbeddingTable(table.tokens, table.rows[::-1], np.array(table.vectors), table.meta).save(path)
    with pytest.raises(DataError, match="have changed since"):
        load(trained, data_path=copied)
