"""Order, split, windows and rows of EDTDataset, on sequences worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.data import atomic, split
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.models.parts.batch_fields import DOMAIN_SEQ, DOMAIN_SEQ_LEN, LAST_WINDOW, TARGET_SEQ
from recbole_edt.train.dataset import EDTDataset, SequenceLoader, eval_loader
from recbole_edt.train.sequences import Sequences, gather_slices

ITEMS = "item_id:token\tdomain:token\tvirtual:float\na1\tA\t0\nb1\tB\t0\na2\tA\t0\nb2\tB\t0\na3\tA\t0\nv1\tB\t1\n"
# u: a1 b1 (v1) a2 | b2 a3; w: b2 a1 b1 (three rows: one to train on); x: a2 b2 (two rows: only trains)
ROWS = """user_id:token\titem_id:token\ttimestamp:float\tgenerated:float
x\tb2\t1000000007\t0
u\ta1\t1000000001\t0
u\tb1\t1000000001\t0
u\tv1\t1000000001\t1
u\ta2\t1000000008\t0
u\tb2\t1000000009\t0
u\ta3\t1000000010\t0
w\tb2\t5\t0
w\ta1\t6\t0
w\tb1\t7\t0
x\ta2\t1000000001\t0
"""


def make(tmp_path: Path, model: str = "LLMEDT", rows: str = ROWS, **keys) -> EDTDataset:
    folder = tmp_path / "two-edt"
    folder.mkdir(exist_ok=True)
    (folder / "two-edt.item").write_text(ITEMS, encoding="utf-8")
    (folder / "two-edt.inter").write_text(rows, encoding="utf-8")
    settings = load_settings("two", [], {"data_path": str(tmp_path), "MAX_ITEM_LIST_LENGTH": 3, **keys})
    return EDTDataset(recbole_config(settings, model, "two-edt", tmp_path / "saved"))


def tokens(dataset: EDTDataset, ids: torch.Tensor) -> list:
    return dataset.field2id_token["item_id"][np.asarray(ids)].tolist()


def users(dataset: EDTDataset, ids: torch.Tensor) -> list:
    return dataset.field2id_token["user_id"][np.asarray(ids)].tolist()


def test_item_ids_follow_the_item_file_and_virtual_items_come_last(tmp_path):
    train, *_ = make(tmp_path).build()
    assert tokens(train, torch.arange(7)) == ["[PAD]", "a1", "b1", "a2", "b2", "a3", "v1"]
    assert train.item_domain.tolist() == [0, 1, 2, 1, 2, 1, 2]
    assert train.virtual.tolist() == [False] * 6 + [True]
    assert train.n_real == 6


def test_times_closer_than_float32_can_tell_keep_their_order_and_ties_the_files(tmp_path):
    dataset = make(tmp_path)
    dataset.build()
    sequences = dataset.sequences
    assert users(dataset, sequences.user) == ["x"] * 2 + ["u"] * 6 + ["w"] * 3
    assert tokens(dataset, sequences.item) == ["a2", "b2", "a1", "b1", "v1", "a2", "b2", "a3", "b2", "a1", "b1"]


def test_leave_one_out_counts_raw_rows_and_keeps_users_with_three_of_them_in_validation(tmp_path):
    train, valid, test = make(tmp_path).build()
    assert train.sequences.mark.tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 0, 1, 2]
    batch = valid[torch.arange(2)]
    assert users(valid, batch["user_id"]) == ["u", "w"]
    assert tokens(valid, batch["item_id"]) == ["b2", "a1"]
    assert tokens(test, test[torch.arange(2)]["item_id"]) == ["a3", "b1"]


def test_a_batch_holds_the_last_items_and_each_domains_own_last_items(tmp_path):
    _, _, test = make(tmp_path).build()
    batch = test[torch.tensor([0, 1])]
    assert [tokens(test, row) for row in batch["item_id_list"]] == [["v1", "a2", "b2"], ["b2", "a1", "[PAD]"]]
    assert batch["item_length"].tolist() == [3, 2]
    # u's domain A is a1 a2, although a1 has left the mixed window of three
    assert [tokens(test, row) for row in batch[DOMAIN_SEQ[0]]] == [["a1", "a2"], ["a1", "[PAD]"]]
    assert [tokens(test, row) for row in batch[DOMAIN_SEQ[1]]] == [["b1", "v1", "b2"], ["b2", "[PAD]", "[PAD]"]]
    assert batch[DOMAIN_SEQ_LEN[0]].tolist() == [2, 1]
    assert batch[DOMAIN_SEQ_LEN[1]].tolist() == [3, 1]


def test_training_rows_are_windows_with_the_next_item_of_each_position(tmp_path):
    train, *_ = make(tmp_path, MAX_ITEM_LIST_LENGTH=2).build()
    batch = train[torch.arange(len(train))]
    rows = {
        (user, tuple(tokens(train, seq)), tuple(tokens(train, target)), bool(last))
        for user, seq, target, last in zip(
            users(train, batch["user_id"]),
            batch["item_id_list"],
            batch[TARGET_SEQ],
            batch[LAST_WINDOW],
            strict=True,
        )
    }
    pad = "[PAD]"
    assert rows == {
        ("x", ("a2", pad), ("b2", pad), True),
        ("u", ("a1", pad), ("b1", pad), False),
        ("u", ("b1", "v1"), ("v1", "a2"), True),
    }  # w trains on a single item, which has no next one


def test_inserted_items_can_be_context_without_being_targets(tmp_path):
    train, *_ = make(tmp_path, MAX_ITEM_LIST_LENGTH=9, inserted_as_targets=False).build()
    batch = train[torch.tensor([1])]
    assert tokens(train, batch["item_id_list"][0]) == ["a1", "b1", "v1"]
    assert tokens(train, batch[TARGET_SEQ][0]) == ["b1", "[PAD]", "a2"]


def test_without_generated_rows_nothing_of_them_is_left(tmp_path):
    dataset = make(tmp_path)
    dataset.build()
    train, valid, test = dataset.parts(generated=False, training="sequence")
    assert train.item_num == 6 and "v1" not in train.field2id_token["item_id"]
    assert "v1" not in tokens(train, train.sequences.item)
    assert tokens(test, test[torch.tensor([0])]["item_id_list"][0]) == ["b1", "a2", "b2"]
    augmented = dataset.parts(generated=True, training="sequence")
    for raw, own in zip((valid, test), augmented[1:], strict=True):
        assert torch.equal(raw[torch.arange(2)]["item_id"], own[torch.arange(2)]["item_id"])


def test_prefix_rows_are_recboles_and_masked_rows_hold_every_training_item_once(tmp_path):
    dataset = make(tmp_path, model="SASRec", MAX_ITEM_LIST_LENGTH=2)
    dataset._change_feat_format()
    train, *_ = dataset.parts(generated=False, training="prefix")
    batch = train[torch.arange(len(train))]
    found = [
        (tokens(train, seq), tokens(train, [target])[0])
        for seq, target in zip(batch["item_id_list"], batch["item_id"], strict=True)
    ]
    assert found == [(["a2", "[PAD]"], "b2"), (["a1", "[PAD]"], "b1"), (["a1", "b1"], "a2")]
    train, *_ = dataset.parts(generated=False, training="masked")
    seqs = [tokens(train, seq) for seq in train[torch.arange(len(train))]["item_id_list"]]
    assert sorted(item for seq in seqs for item in seq if item != "[PAD]") == sorted("a2 b2 a1 b1 a2 b2".split())
    train, *_ = dataset.parts(generated=False, training="pairs")
    assert tokens(train, train.inter_feat["item_id"]) == ["a2", "b2", "a1", "b1", "a2", "b2"]
    assert train.inter_matrix().nnz == 6


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    longest=st.integers(1, 5),
)
def test_windows_cover_every_target_exactly_once(lengths, longest):
    user = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))
    item = torch.arange(1, len(user) + 1)
    domain = torch.cat([torch.zeros(1), 1 + item % 2]).long()
    dataset = EDTDataset.__new__(EDTDataset)
    dataset.sequences = Sequences.build(user, item, torch.zeros(len(user), dtype=torch.bool), domain)
    dataset.max_item_list_len, dataset.training = longest, "sequence"
    dataset.config = {"inserted_as_targets": True, "model": "SASRec"}
    row = dataset._training_rows()
    first = dataset.sequences.first[row]
    covered = []
    if len(row):
        targets = dataset._targets(row, first)[TARGET_SEQ]
        covered = targets[targets > 0].tolist()
    train = dataset.sequences.mark == split.TRAIN
    expected = item[train & (dataset.sequences.first < torch.arange(len(item)))].tolist()
    assert sorted(covered) == expected
    last = dataset._targets(row, first)[LAST_WINDOW] if len(row) else torch.zeros(0)
    assert int(last.sum()) == len(set(user[row].tolist()))


def test_gather_slices_pads_on_the_right_and_survives_nothing_at_all():
    flat = torch.tensor([5, 6, 7, 8])
    rows, length = gather_slices(flat, torch.tensor([0, 3, 2]), torch.tensor([2, 4, 2]))
    assert rows.tolist() == [[5, 6], [8, 0], [0, 0]] and length.tolist() == [2, 1, 0]
    assert gather_slices(flat, torch.tensor([1]), torch.tensor([3]), width=4)[0].tolist() == [[6, 7, 0, 0]]
    assert gather_slices(flat[:0], torch.tensor([0]), torch.tensor([0]))[0].tolist() == [[0]]


def test_batches_of_the_loader_cover_every_row_once_in_similar_lengths(tmp_path, workplace):
    settings = load_settings("tiny", [], {"MAX_ITEM_LIST_LENGTH": 6})
    dataset = EDTDataset(recbole_config(settings, "SASRec", "tiny", tmp_path / "saved"))
    dataset._change_feat_format()
    train, *_ = dataset.parts(False, "sequence")
    loader = SequenceLoader(train, 4, seed=1)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(train) // 4)
    seen = torch.cat([batch[TARGET_SEQ][batch[TARGET_SEQ] > 0] for batch in batches])
    sequences = train.sequences
    every = sequences.item[(sequences.mark == split.TRAIN) & (sequences.first < torch.arange(len(sequences.item)))]
    assert torch.equal(seen.sort().values, every.sort().values)
    spread = [int(b["item_length"].max() - b["item_length"].min()) for b in batches]
    assert np.mean(spread) <= 1
    again = list(SequenceLoader(train, 4, seed=1))
    assert all(torch.equal(a["item_id_list"], b["item_id_list"]) for a, b in zip(batches, again, strict=True))


def test_evaluation_rows_are_the_same_for_models_without_sequences_and_hide_no_history(tmp_path):
    dataset = make(tmp_path, model="BPR")
    dataset._change_feat_format()
    _, valid, _ = dataset.parts(False, "pairs")
    batches = list(eval_loader(dataset.config, valid))
    assert tokens(valid, torch.cat([batch[3] for batch in batches])) == ["b2", "a1"]
    assert all(batch[1] is None for batch in batches)


def test_an_empty_part_and_a_foreign_split_are_errors_that_say_what_is_needed(tmp_path):
    two_rows_each = "\n".join(ROWS.splitlines()[:3] + ["x\tb1\t9\t0", "u\tb1\t9\t0"]) + "\n"
    with pytest.raises(DataError, match="at least 3 interactions"):
        make(tmp_path, rows=two_rows_each.replace("x\tb1\t9\t0\n", "")).build()
    other = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"}
    with pytest.raises(ConfigError, match="valid_and_test"):
        make(tmp_path, eval_args=other).build()


def test_an_inserted_row_after_a_held_out_one_is_refused(tmp_path):
    with pytest.raises(DataError, match="1 generated rows come after held-out ones .the first: user 'u'"):
        make(tmp_path, rows=ROWS + "u\tv1\t1000000011\t1\n").build()


@pytest.mark.parametrize(
    "keys",
    [{"rm_dup_inter": "first"}, {"item_inter_num_interval": "[2,inf)"}, {"val_interval": {"timestamp": "[6,8]"}}],
)
def test_filters_of_recboles_would_change_the_split_and_are_refused(tmp_path, keys):
    make(tmp_path)
    settings = load_settings("two", [], {"data_path": str(tmp_path)})
    view = recbole_config(settings, "LLMEDT", "two-edt", tmp_path / "saved")
    for key, value in keys.items():  # our own command line refuses them earlier
        view[key] = value
    with pytest.raises(ConfigError, match=f"{next(iter(keys))}: would change the split"):
        EDTDataset(view)


def test_virtual_items_that_are_not_the_last_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("test_dataset.ITEMS", ITEMS.replace("v1\tB\t1\n", "").replace("a3", "v1\tB\t1\na3"))
    with pytest.raises(DataError, match="virtual items must be the last rows"):
        make(tmp_path).build()


def test_inserted_rows_are_no_targets_of_prefixes_either_if_they_are_not_to_be(tmp_path):
    dataset = make(tmp_path, model="SASRec", inserted_as_targets=False)
    dataset._change_feat_format()
    prefix = dataset.parts(generated=True, training="prefix")[0]
    assert tokens(prefix, prefix.inter_feat["item_id"]) == ["b2", "b1", "a2"]
    pairs = dataset.parts(generated=True, training="pairs")[0]
    assert "v1" not in tokens(pairs, pairs.inter_feat["item_id"])
    with pytest.raises(ConfigError, match="inserted_as_targets: false is not possible"):
        dataset.parts(generated=True, training="masked")
    by_prefix = make(tmp_path, model="BERT4Rec", inserted_as_targets=False)
    by_prefix._change_feat_format()
    with pytest.raises(ConfigError, match="not possible for BERT4Rec, which learns by masking"):
        by_prefix.parts(generated=True, training="prefix")


def test_a_profile_without_a_vector_is_none(tmp_path):
    from recbole_edt.text.vectors import EmbeddingTable

    train, *_ = make(tmp_path).build()
    vectors = np.array([[1, 0], [0, 0]], np.float32)  # zeros where the embedder gave none
    table = EmbeddingTable(np.array(["u", "w"]), np.arange(2, dtype=np.int32), vectors, {"kind": "user"})
    table.save(tmp_path / "two-edt" / "two-edt.uservec.safetensors")
    tokens_of = train.field2id_token["user_id"].tolist()
    has = dict(zip(tokens_of, train.user_profiles()[1].tolist(), strict=True))
    assert has["u"] and not has["w"] and sum(has.values()) == 1


def test_vectors_must_be_there_for_every_item(tmp_path):
    from recbole_edt.text.vectors import EmbeddingTable

    train, *_ = make(tmp_path).build()
    with pytest.raises(DataError, match="run the stages"):
        train.item_vectors()
    data = atomic.read(tmp_path / "two-edt", "two-edt")
    path = tmp_path / "two-edt" / "two-edt.itemvec.safetensors"
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    EmbeddingTable(data.items, np.arange(6, dtype=np.int32), vectors, {"kind": "item"}).save(path)
    assert train.item_vectors().tolist() == [[0, 0], *vectors.tolist()]
    EmbeddingTable(data.items[:5], np.arange(5, dtype=np.int32), vectors, {"kind": "item"}).save(path)
    with pytest.raises(DataError, match="v1"):
        train.item_vectors()
