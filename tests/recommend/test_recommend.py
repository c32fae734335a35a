"""Recommendations from a finished run: what may appear, in which order, and that they are the model's own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, write_tiny

import recbole_edt
from recbole_edt.cli import run
from recbole_edt.errors import DataError
from recbole_edt.recommend import histories, recommender
from recbole_edt.recommend.recommender import COLUMNS, load
from recbole_edt.train import run_files

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
        ("f1", {}, r"history: expected a list such as \['f1'\], found the text 'f1'"),
        (["f1"], {"domain": ["food"]}, r"domain: \['food'\] is not one of food, kitchen"),
        (["f1"], {"domain": "toys"}, "domain: 'toys' is not one of food, kitchen"),
        *((["f1"], {"k": k}, f"k: {k!r} is not a whole number above 0") for k in (0, 1.5, True, "3", None)),
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


def test_a_run_opened_from_another_folder_asks_for_the_place_of_its_data(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such folder.*data_path="):
        recbole_edt.load(trained)
    assert len(recbole_edt.load(trained, data_path=trained.parents[2] / "atomic_files").items) == 31


@pytest.mark.parametrize("elements", [1, 200])
def test_items_looked_at_block_by_block_are_the_same(model, monkeypatch, elements):
    whole = [pd.concat(model.all_users(k=3, seen=seen)) for seen in (False, True)]
    monkeypatch.setattr(recommender, "_BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(recommender, "_MATRIX_ELEMENTS", 40)
    for seen, expected in zip((False, True), whole, strict=True):
        found = pd.concat(model.all_users(k=3, seen=seen))
        order = ["user", "domain", "rank"]
        found, expected = (one.sort_values(order).reset_index(drop=True) for one in (found, expected))
        pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


def test_listed_users_and_one_domain_come_alone(model):
    found = pd.concat(model.all_users(k=2, users=["u5", "u3", "u5"], domain="kitchen"))
    assert found["user"].tolist() == ["u3", "u3", "u5", "u5"] and set(found["domain"]) == {"kitchen"}
    assert list(model.all_users(users=[])) == []
    with pytest.raises(DataError, match="users: the data set has no user 'nobody' and 1 others"):
        model.all_users(users=["nobody", "u3", "me"])
    with pytest.raises(DataError, match="domain: 'toys' is not one of food, kitchen"):
        model.all_users(domain="toys")
    with pytest.raises(DataError, match="users: expected a list"):
        model.all_users(users="u5")


# ---- histories from a file -----------------------------------------------------------------------------------------

CSV = "user,item,timestamp\nanna,k3,2\nbert,f4,5\nanna,f1,1\nanna,f2,3\nanna,k5,3\n"
JSONL = '{"user": "anna", "history": ["f1", "k3", "f2", "k5"]}\n\n{"user": 7, "history": ["f4"]}\n'


def file_of(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_histories_are_in_order_of_time_then_of_the_file_and_users_in_order_of_the_file(tmp_path):
    ids = {token: i for i, token in enumerate(["f1", "f2", "f4", "k3", "k5"])}
    found = histories.read(file_of(tmp_path, "new.csv", CSV), ids)
    assert found.users.tolist() == ["anna", "bert"] and found.offsets.tolist() == [0, 4, 5]
    assert found.item.tolist() == [ids[item] for item in HISTORY] + [ids["f4"]]
    other = histories.read(file_of(tmp_path, "new.jsonl", JSONL), ids)
    assert other.users.tolist() == ["anna", "7"] and other.item.tolist() == found.item.tolist()
    ordered = histories.read(file_of(tmp_path, "x.csv", "item,user\nf2,0012\nf1,0012\n"), ids)
    assert ordered.users.tolist() == ["0012"] and ordered.item.tolist() == [ids["f2"], ids["f1"]]
    text = "item,user,timestamp\nf2,anna ,1\nf1, anna,1_000\nf4,anna,30\n"
    blanks = histories.read(file_of(tmp_path, "x.csv", text), ids)
    assert blanks.users.tolist() == ["anna"] and blanks.item.tolist() == [ids["f2"], ids["f4"], ids["f1"]]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_timestamps_may_be_dates_and_the_header_shows_the_separator(tmp_path, separator):
    text = "user,item,timestamp\nanna,f2,2024-03-01T10:00:00Z\nanna,f1,2024-03-01T10:30:00+01:00\nanna,f4,2023-12-31\n"
    found = histories.read(file_of(tmp_path, "new.csv", text.replace(",", separator)), {"f1": 1, "f2": 2, "f4": 4})
    assert found.users.tolist() == ["anna"] and found.item.tolist() == [4, 1, 2]


@SEQUENTIAL
@pytest.mark.parametrize("size", [1, 512])
def test_a_file_of_histories_gives_what_each_gives_alone(model, tmp_path, size):
    read = histories.read(file_of(tmp_path, "new.csv", CSV), model.item_id)
    found = pd.concat(model.for_histories(read, k=4, batch_size=size))
    assert list(found) == list(COLUMNS)
    for user, history in (("anna", HISTORY), ("bert", ["f4"])):
        own = found[found["user"] == user].drop(columns="user").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, model.recommend(history, k=4), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "user,item\nanna,f1\nanna,zzz\n,f1\n", "line 3: unknown item 'zzz'\n.*line 4: no user"),
        ("a.csv", "user,item,timestamp\nanna,f1,early\n", "line 2: timestamp 'early' is no number and no ISO"),
        ("a.csv", "user,item,timestamp\na,f1,2024-03-01\na,f2,7\n", "line 3: timestamp '7': all must be numbers"),
        ("a.csv", "user;item\nanna;zzz\n", "line 2: unknown item 'zzz'"),
        ("a.csv", "user,item\n\nb,zzz\n", "line 3: unknown item 'zzz'"),
        ("a.csv", "user,item\nanna,f1\nanna,f2,x\n", "line 3: 3 fields where the header has 2"),
        ("a.csv", "user,item\nanna,f1,f2\nbob,f2,f1\n", "line 2: 3 fields where .*line 3: 3 fields where"),
        ("a.csv", 'user,item,note\na,f1,"two\nlines"\na,zzz,""\n', "line 4: unknown item 'zzz'"),
        ("a.csv", 'user,item\nanna,f1\nbob,"f2\n', "line 3: no readable CSV .*quotation mark opened there and not"),
        ("a.csv", "user,item,item\nanna,f1,f2\n", "line 1: the header names 'item' twice; rename or remove one"),
        ("a.csv", "user,item,timestamp\na,f1,1_000\na,f2,2000\na,f2,2024-03-01\n", "line 4: timestamp '2024-"),
        ("a.csv", "user,item\nan\0na,f1\n", r"line 2: user 'an\\x00na' is no id|line 2: no readable CSV .*NUL"),
        ("a.csv", "user,thing\nanna,f1\n", "line 1: no column 'item', only 'user', 'thing'"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "user,item\n", "no history in it"),
        ("a.jsonl", "\n", "the file is empty"),
        ("a.jsonl", '{"user": "a", "history": ["f1"]}\n{"user"\n', "line 2: not JSON"),
        ("a.jsonl", '["f1"]\n', 'line 1: not an object with "user" and "history"'),
        ("a.jsonl", '{"user": true, "history": ["f1"]}\n', "line 1: user True is no id"),
        ("a.jsonl", '{"user": "\\ud83d", "history": ["f1"]}\n', r"line 1: user '\\ud83d' is no id"),
        ("a.jsonl", '{"user": "a", "history": []}\n', "line 1: history is no list of item ids, or an empty one"),
        ("a.jsonl", '{"user": "a", "history": "f1"}\n', "line 1: history is no list"),
        ("a.jsonl", '{"user": "a", "history": ["f1"]}\n' * 2, "line 2: user 'a' was there before"),
        ("a.jsonl", '{"user": "a", "history": ["f1"]}\n{"user": "a ", "history": ["f1"]}', "line 2: user 'a' was"),
        ("a.jsonl", '{"user": "a", "history": ["zzz"]}\n' * 12, "line 10: .*\n... and 2 more bad rows"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(tmp_path, name, text, message):
    with pytest.raises(DataError, match=f"(?s)a.(csv|jsonl).*{message}"):
        histories.read(file_of(tmp_path, name, text), {"f1": 1, "f2": 2})


def test_a_file_that_is_not_utf8_says_where(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"user,item\n\xff,f1\n")
    with pytest.raises(DataError, match=r"not UTF-8 \(invalid start byte at byte 10\)"):
        histories.read(tmp_path / "a.csv", {"f1": 1})
    with pytest.raises(DataError, match="no such file"):
        histories.read_users(tmp_path / "users.txt")


# ---- the stage's options -------------------------------------------------------------------------------------------


def stage(trained: Path, *options: str) -> int:
    """The stage, in the working directory of the run."""
    name = trained.name.partition("-")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained.parents[2])
        return run(["recommend", *TINY, f"--model={name}", *options])


def test_csv_json_lines_and_parquet_hold_the_same(trained, tmp_path):
    pytest.importorskip("pyarrow.parquet", exc_type=ImportError)  # one that is too new for numpy counts as missing
    frames = {}
    for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        assert stage(trained, "--recommend.k=4", f"--recommend.output={tmp_path}/out.{ending}") == 0
        frames[ending] = read(tmp_path / f"out.{ending}")
    assert stage(trained, "--recommend.k=4", f"--recommend.output={tmp_path}/out.jsonl") == 0
    frames["jsonl"] = pd.read_json(tmp_path / "out.jsonl", lines=True, dtype={"user": str})
    expected = pd.read_csv(trained / "recommendations.csv")
    for frame in frames.values():
        pd.testing.assert_frame_equal(frame.astype(expected.dtypes.to_dict()), expected, rtol=1e-5, atol=1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.jsonl", "out.parquet"]


@pytest.mark.parametrize("trained", ["SASRec"], indirect=True)
def test_users_may_be_listed_or_stand_in_a_file(trained, tmp_path):
    file_of(tmp_path, "users.txt", "u3\nu5\n\n")
    for wanted in ("u3,u5", f"{tmp_path}/users.txt"):
        out = tmp_path / "out.csv"
        options = (f"--recommend.users={wanted}", "--recommend.domain=food", f"--recommend.output={out}")
        assert stage(trained, *options) == 0
        found = pd.read_csv(out)
        assert found["user"].unique().tolist() == ["u3", "u5"] and set(found["domain"]) == {"food"}


@pytest.mark.parametrize("trained", ["SASRec"], indirect=True)
def test_new_histories_are_answered_from_a_file(trained, tmp_path):
    file_of(tmp_path, "new.jsonl", JSONL)
    out = tmp_path / "out.jsonl"
    assert stage(trained, f"--recommend.histories={tmp_path}/new.jsonl", f"--recommend.output={out}") == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert list(rows[0]) == list(COLUMNS) and {row["user"] for row in rows} == {"anna", "7"}
    assert len(rows) == 40 and all(row["title"] for row in rows)


@pytest.mark.parametrize("trained", ["SASRec"], indirect=True)
def test_the_file_for_all_users_is_not_overwritten_by_one_for_some_or_for_new_ones(trained, tmp_path):
    of_all = (trained / "recommendations.csv").read_bytes()
    file_of(tmp_path, "new.jsonl", JSONL)
    assert stage(trained, "--recommend.users=u3") == stage(trained, f"--recommend.histories={tmp_path}/new.jsonl") == 0
    assert set(pd.read_csv(trained / "recommendations-users.csv")["user"]) == {"u3"}
    assert set(pd.read_csv(trained / "recommendations-histories.csv")["user"]) == {"anna", "7"}
    assert (trained / "recommendations.csv").read_bytes() == of_all


@pytest.mark.parametrize("trained", ["SASRec"], indirect=True)
@pytest.mark.parametrize(
    ("option", "status", "message"),
    [
        ("output=x.xlsx", 2, "recommend.output: 'x.xlsx' is not a file that ends in .csv, .jsonl, .parquet"),
        ("output=.csv", 2, "recommend.output: '.csv' is not a file that ends in .csv, .jsonl, .parquet"),
        *((f"{key}=", 2, f"--recommend.{key} is empty; give a value, or") for key in ("users", "histories", "output")),
        ("histories=x.txt", 2, "recommend.histories: 'x.txt' is not a file that ends in .csv, .jsonl"),
        ("users=a,,b", 2, "recommend.users: expected ids such as [u1, u2], or a .txt file, found 'a,,b'"),
        ("train_on_all=maybe", 2, "recommend.train_on_all: 'maybe' is not true or false"),
        ("users=0012", 1, "no user '0012'"),
        ("domain=toys", 2, "recommend.domain: 'toys' is not one of food, kitchen\n"),
        ("domain=kitchn", 2, "recommend.domain: 'kitchn' is not one of food, kitchen (did you mean 'kitchen'?)"),
        ("histories=none.csv", 1, "none.csv: no such file"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(trained, capsys, option, status, message):
    assert stage(trained, "--recommend.train_on_all=true", f"--recommend.{option}") == status
    assert message in capsys.readouterr().err
    assert not (trained / "all-data").exists()


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    from recbole_edt.config.groups import RecommendConfig

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'recbole_edt[parquet]'" in RecommendConfig(output="x.parquet").faults()[0]


def test_known_users_and_new_histories_do_not_go_together():
    from recbole_edt.config.groups import RecommendConfig

    assert "do not go together" in RecommendConfig(users=[1, "b"], histories="x.csv").faults()[0]
    assert RecommendConfig(users=[1, "b"]).user_list == ["1", "b"] and RecommendConfig(users=[1.5]).faults()


def test_json_lines_of_users_who_have_met_every_item_are_no_lines(tmp_path):
    none = pd.DataFrame(columns=list(COLUMNS))
    one = pd.DataFrame([["u1", "food", 1, "f1", "tea", 0.5]], columns=list(COLUMNS))
    assert recommender.write(tmp_path / "out.jsonl", [none, one, none]) == 1
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line) == one.iloc[0].to_dict()


# ---- trained on everything -----------------------------------------------------------------------------------------


def test_the_model_for_production_has_learnt_from_every_interaction_and_is_never_ranked(trained, tmp_path, capsys):
    out = tmp_path / "out.csv"
    options = ("--recommend.train_on_all=true", "--recommend.k=4", f"--recommend.output={out}")
    assert stage(trained, *options) == 0
    assert "held-out ones included: for production, never to be evaluated" in capsys.readouterr().out
    folder = trained / "all-data"
    result, validated = (json.loads((one / "result.json").read_text()) for one in (folder, trained))
    assert result["trained_on"] == run_files.EVERYTHING and "test" not in result and "trained_on" not in validated
    assert result["targets_per_epoch"] > validated["targets_per_epoch"]
    assert not (folder / "ranks.csv").exists() and not (folder / "last.pth").exists()
    model = load(folder, data_path=trained.parents[2] / "atomic_files")
    user, item = model.dataset.training_pairs
    inserted = model.dataset.sequences.generated
    pairs = list(zip(model.users[user[~inserted]], model.items[item[~inserted]], strict=True))
    rows = raw(trained)
    assert sorted(pairs) == sorted(zip(rows["user_id"], rows["item_id"], strict=True))
    expected = pd.concat(model.all_users(k=4)).reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(out), expected, rtol=1e-5, atol=1e-9, check_dtype=False)
    before = (folder / "best.pth").stat().st_mtime_ns
    assert stage(trained, *options) == 0
    assert (folder / "best.pth").stat().st_mtime_ns == before


def test_each_phase_has_as_many_epochs_as_validation_chose(tmp_path):
    (tmp_path / "result.json").write_text('{"model": "LLMEDT", "valid_metric": "ndcg@10"}')
    assert run_files.chosen_epochs(tmp_path) == {}
    rows = [("pretrain", 0, 0.1), ("pretrain", 1, 0.3), ("pretrain", 2, 0.3), ("pretrain", 3, 0.2)]
    for values, expected in (((0.2, 0.3, 0.1), 2), ((0.2, 0.25, 0.29), 0), ((0.4, None, 0.2), 1)):
        tuned = [("finetune", epoch, value) for epoch, value in enumerate(values)]
        table = pd.DataFrame([*rows, *tuned], columns=["phase", "epoch", "ndcg@10"])
        table.to_csv(tmp_path / "epochs.csv", index=False)
        assert run_files.chosen_epochs(tmp_path) == {"epochs": 3, "finetune_epochs": expected}


# ---- runs that cannot be opened ----------------------------------------------------------------------------------


def copy_of(trained: Path, place: Path) -> Path:
    import shutil

    shutil.copytree(trained.parents[2], place / "copy")
    return place / "copy" / trained.relative_to(trained.parents[2])


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="result.json"):
        load(tmp_path)


GOOD = {
    **dict.fromkeys(("dataset", "data_path", "rows", "split_hash", "catalogue_hash", "artefacts_hash"), "x"),
    **{"model": "SASRec", "domains": ["a", "b"], "settings": {}, "sees_generated": False},
}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "lacks model, dataset, data_path"),
        ([], "is no object with keys"),
        ({**GOOD, "domains": 5}, "has a value of another type at domains"),
        ({**GOOD, "settings": [], "data_path": 5}, "has a value of another type at data_path, settings"),
        ({**GOOD, "model": "SASREC"}, "names a model that nobody knows, SASREC"),
    ],
)
def test_a_damaged_result_is_refused(tmp_path, content, problem):
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"result.json: {problem}.*; restore the file or train again"):
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
    from recbole_edt.text.vectors import EmbeddingTable

    copied = tmp_path / "atomic_files"
    shutil.copytree(trained.parents[2] / "atomic_files", copied)
    assert load(trained, data_path=copied)
    path = copied / "tiny-edt" / "tiny-edt.itemvec.safetensors"
    table = EmbeddingTable.load(path)
    EmbeddingTable(table.tokens, table.rows[::-1], np.array(table.vectors), table.meta).save(path)
    with pytest.raises(DataError, match="have changed since"):
        load(trained, data_path=copied)
