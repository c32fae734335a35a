"""Ranks and metrics: against a few plain lines of NumPy, by hand, and what must never change them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_edt.errors import ConfigError, DataError, EDTError
from recbole_edt.evaluate import ranking
from recbole_edt.evaluate.candidates import CandidateTable, SeenItems
from recbole_edt.evaluate.metrics import domain_metrics, group_metrics, metrics_from_ranks, per_user, standard_groups
from recbole_edt.evaluate.ranking import (
    OWN_COLUMNS,
    RankCollector,
    RankEvaluator,
    read_ranks,
    with_seen_items,
    write_ranks,
)
from recbole_edt.models.parts.batch_fields import VectorScores

# Item 0 is padding, 1-5 are of the first domain, 6-11 of the second; 5 and 11 are virtual.
DOMAIN = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])
REAL = torch.ones(12, dtype=torch.bool)
REAL[[0, 5, 11]] = False


def collect(scores, item, mode="domain", user=None, **options):
    """Rank table of one batch, user ids 1, 2, ... unless given."""
    collector = RankCollector(DOMAIN, REAL, mode, **options)
    user = torch.arange(1, len(item) + 1) if user is None else torch.tensor(user)
    collector.eval_batch_collect(scores, {"user_id": user}, torch.arange(len(item)), torch.tensor(item))
    return collector.get_data_struct()


def counts(ranks):
    return ranks[["higher", "tied"]].to_numpy().tolist()


def metric_by_hand(scores, target, candidates, metric, k):
    """The mean of a metric over the positions that ties leave open, one row, in loops."""
    others = [c for c in candidates if c != target]
    higher = sum(scores[c] > scores[target] for c in others)
    tied = sum(scores[c] == scores[target] for c in others)
    gain = {"hit": lambda p: 1.0, "ndcg": lambda p: 1 / np.log2(p + 1), "mrr": lambda p: 1 / p}[metric]
    positions = range(higher + 1, higher + tied + 2)
    return sum(gain(p) for p in positions if p <= k) / (tied + 1)


def candidates_of(target, mode):
    real = [i for i in range(12) if REAL[i]]
    return [i for i in real if mode == "all" or DOMAIN[i] == DOMAIN[target]]


@pytest.mark.parametrize("mode", ["domain", "all"])
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_metrics_equal_a_plain_count_with_and_without_ties(mode, levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (200, 12), generator=generator).double()
    scores[:, [0, 5, 11]] = -torch.inf
    items = np.random.default_rng(levels).choice([1, 2, 3, 4, 6, 7, 8, 9, 10], 200).tolist()
    metrics = metrics_from_ranks(*collect(scores, items, mode)[["higher", "tied"]].to_numpy().T, topk=(1, 3, 10))
    assert list(metrics) == [f"{m}@{k}" for m in ("hit", "ndcg", "mrr") for k in (1, 3, 10)]
    for name, value in metrics.items():
        metric, k = name.split("@")
        expected = np.mean(
            [
                metric_by_hand(row, item, candidates_of(item, mode), metric, int(k))
                for row, item in zip(scores.tolist(), items, strict=True)
            ]
        )
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("per_domain", [False, True])
@pytest.mark.parametrize("mode", ["domain", "all", "sampled"])
def test_ranks_of_products_are_those_of_the_matrix_of_all_scores(monkeypatch, mode, per_domain):
    generator = torch.Generator().manual_seed(6)
    # Whole numbers: sums are exact and ties abound.
    user = torch.randint(-2, 3, (2, 60, 3) if per_domain else (60, 3), generator=generator).float()
    item = torch.randint(-2, 3, (12, 3), generator=generator).float()
    targets = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9, 10, 6] * 6)
    scores = user @ item.T
    if per_domain:
        scores = torch.where(DOMAIN == 2, scores[1], scores[0])
    options = {}
    if mode == "sampled":
        history = np.arange(1, 61), targets.numpy()
        pools = [np.array([1, 2, 3, 4]), np.array([6, 7, 8, 9, 10])]
        domain = DOMAIN[targets].numpy() - 1
        options = {"candidates": CandidateTable.build(np.arange(1, 61), domain, pools, *history, n=3)}
    monkeypatch.setattr(ranking, "_CHUNK_ELEMENTS", 40)
    whole = collect(scores, targets.tolist(), mode, **options)
    pd.testing.assert_frame_equal(collect(VectorScores(user, item), targets.tolist(), mode, **options), whole)
    assert whole["tied"].any() and whole["higher"].any()


def test_items_that_have_changed_since_the_last_table_are_ranked_as_they_are_now():
    user, item = torch.ones(1, 2), torch.zeros(12, 2)
    collector = RankCollector(DOMAIN, REAL)
    for higher in (0, 3):
        item[2:5] = higher
        one = torch.tensor([1])
        collector.eval_batch_collect(VectorScores(user, item), {"user_id": one}, torch.tensor([0]), one)
        assert collector.get_data_struct()["higher"].tolist() == [higher]


def test_ranks_by_hand():
    scores = torch.zeros(2, 12)
    scores[0, 1:5] = torch.tensor([0.3, 0.9, 0.3, 0.5])
    scores[1, 6:11] = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0])
    ranks = collect(scores, [1, 7], domains=("films", "books"))
    assert ranks.columns.tolist() == ["user", "item", "domain", "higher", "tied", "own_higher", "own_tied"]
    assert ranks.to_numpy().tolist() == [[1, 1, "films", 2, 1, 0, 0], [2, 7, "books", 1, 2, 0, 0]]
    about = {"domains": ["films", "books"], "candidates": "domain", "candidates_hash": "", "seen_items": "ranked"}
    assert ranks.attrs == about


# ---- own items ---------------------------------------------------------------------------------------------------


def seen_of(*histories):
    """What users 1, 2, ... had before their targets."""
    user = torch.tensor([user for user, items in enumerate(histories, 1) for _ in items], dtype=torch.long)
    item = torch.tensor([item for items in histories for item in items], dtype=torch.long)
    return SeenItems.build(user, item, len(histories) + 1)


def test_own_items_are_counted_apart_by_hand_and_left_out_where_they_are_masked():
    scores = torch.zeros(2, 12)
    scores[0, 1:5] = torch.tensor([0.3, 0.9, 0.3, 0.5])  # above the target 1: items 2 and 4; level: 3
    scores[0, 6:11] = 9.0
    scores[1, 6:11] = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0])
    seen = seen_of([2, 2, 3, 6, 1], [8, 10, 11, 5])  # the target itself is never masked, nor what is no candidate
    ranks = collect(scores, [1, 7], seen=seen)
    assert ranks[["higher", "tied", *OWN_COLUMNS]].to_numpy().tolist() == [[2, 1, 1, 1], [1, 2, 1, 0]]
    masked = collect(scores, [1, 7], seen=seen, masked=True)
    assert masked[["higher", "tied", *OWN_COLUMNS]].to_numpy().tolist() == [[1, 0, 1, 1], [0, 2, 1, 0]]
    assert (ranks.attrs["seen_items"], masked.attrs["seen_items"]) == ("ranked", "masked")
    of_both = collect(scores, [1, 7], "all", seen=seen)
    assert of_both[list(OWN_COLUMNS)].to_numpy().tolist() == [[2, 1], [1, 0]]


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("mode", ["domain", "all"])
def test_masked_own_items_rank_as_if_they_had_no_score(monkeypatch, mode, products):
    generator = torch.Generator().manual_seed(3)
    user = torch.randint(-2, 3, (60, 3), generator=generator).float()
    item = torch.randint(-2, 3, (12, 3), generator=generator).float()
    targets = [1, 2, 3, 4, 6, 7, 8, 9, 10, 6] * 6
    histories = [torch.randint(1, 12, (n % 6,), generator=generator).tolist() for n in range(60)]
    seen, scores = seen_of(*histories), user @ item.T
    monkeypatch.setattr(ranking, "_CHUNK_ELEMENTS", 40)
    masked = collect(VectorScores(user, item) if products else scores, targets, mode, seen=seen, masked=True)
    for row, (target, own) in enumerate(zip(targets, histories, strict=True)):
        scores[row, [one for one in own if one != target]] = -torch.inf
    monkeypatch.setattr(RankCollector, "_check_finite", lambda *args: None)
    assert counts(masked) == counts(collect(scores, targets, mode))
    assert masked["own_higher"].any() and masked["own_tied"].any()


def test_either_question_is_answered_from_one_table(tmp_path):
    scores = torch.rand(4, 12, generator=torch.Generator().manual_seed(1))
    options = {"seen": seen_of([2, 3], [7], [], [8, 9, 10, 2])}
    both = [collect(scores, [1, 6, 3, 7], masked=masked, **options) for masked in (True, False)]
    for table, other in (both, both[::-1]):
        changed = with_seen_items(table, other.attrs["seen_items"])
        pd.testing.assert_frame_equal(changed, other)
        assert changed.attrs == {**other.attrs, "seen_why": "training was stopped by the other ranking"}
    write_ranks(both[0], tmp_path / "ranks.csv", np.arange(9).astype(str), np.arange(12).astype(str))
    assert counts(with_seen_items(read_ranks(tmp_path / "ranks.csv"), "ranked")) == counts(both[1])


def test_a_table_of_an_earlier_version_is_one_of_ranked_own_items(tmp_path):
    table = collect(torch.zeros(1, 12), [1]).drop(columns=list(OWN_COLUMNS))
    del table.attrs["seen_items"]
    write_ranks(table, tmp_path / "ranks.csv", np.arange(9).astype(str), np.arange(12).astype(str))
    old = read_ranks(tmp_path / "ranks.csv")
    assert old.attrs["seen_items"] == "ranked"
    with pytest.raises(DataError, match="lacks own_higher and own_tied"):
        with_seen_items(old, "masked")


def test_metrics_by_hand():
    # Position 2 for sure; 1 or 2 with equal chance; 4 for sure.
    assert per_user([1, 0, 3], [0, 1, 0], "hit", 1).tolist() == [0, 0.5, 0]
    assert per_user([1, 0, 3], [0, 1, 0], "mrr", 3) == pytest.approx([1 / 2, 3 / 4, 0])
    assert per_user([1, 0, 3], [0, 1, 0], "ndcg", 3) == pytest.approx(
        [1 / np.log2(3), (1 + 1 / np.log2(3)) / 2, 0]
    )


@pytest.mark.parametrize("mode", ["domain", "all"])
def test_a_constant_scorer_gets_exactly_chance(mode):
    metrics = metrics_from_ranks(*collect(torch.zeros(1, 12), [7], mode)[["higher", "tied"]].to_numpy().T, (2,))
    n = len(candidates_of(7, mode))
    assert metrics["hit@2"] == pytest.approx(2 / n, abs=1e-15)
    assert metrics["mrr@2"] == pytest.approx(1.5 / n, abs=1e-15)


def test_padding_virtual_items_and_the_other_domain_are_no_candidates():
    scores = torch.zeros(1, 12)
    scores[0, [0, 5, 6, 7, 8, 9, 10, 11]] = 9.0
    assert counts(collect(scores, [1])) == [[0, 3]]
    scores[0, [0, 5, 11]] = -torch.inf
    assert counts(collect(scores, [1], "all")) == [[5, 3]]
    everything = RankCollector(DOMAIN, torch.ones(12), "all")
    assert not everything.candidate_mask[0]
    scores[0, 6:] = torch.nan  # another domain's scores are nobody's business
    assert counts(collect(scores, [1])) == [[0, 3]]


@settings(max_examples=40)
@given(st.lists(st.integers(-50, 50), min_size=12, max_size=12), st.integers(-1000, 1000), st.integers(1, 10))
def test_adding_a_constant_to_all_scores_changes_no_rank(values, constant, item):
    item = item if REAL[item] else 4
    scores = torch.tensor([values], dtype=torch.float64)
    assert counts(collect(scores, [item], "all")) == counts(collect(scores + constant, [item], "all"))


def test_small_pieces_and_many_batches_give_the_same_table(monkeypatch):
    scores = torch.randint(5, (30, 12), generator=torch.Generator().manual_seed(0)).float()
    items = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9, 10, 1] * 3)
    whole = collect(scores, items.tolist())
    monkeypatch.setattr(ranking, "_CHUNK_ELEMENTS", 9)
    collector = RankCollector(DOMAIN, REAL)
    for part in torch.arange(30).flip(0).split(7):  # users arrive in another order, too
        collector.eval_batch_collect(
            scores[part], {"user_id": part + 1}, torch.arange(len(part)), items[part]
        )
    pd.testing.assert_frame_equal(collector.get_data_struct(), whole)


def test_targets_may_point_into_the_batch_in_any_order():
    scores = torch.zeros(2, 12)
    scores[1, 2] = 1.0
    collector = RankCollector(DOMAIN, REAL)
    collector.eval_batch_collect(
        scores, {"user_id": torch.tensor([8, 9])}, torch.tensor([1, 0, 1]), torch.tensor([1, 1, 2])
    )
    assert collector.get_data_struct()[["user", "higher", "tied"]].to_numpy().tolist() == [
        [8, 0, 3],
        [9, 1, 2],
        [9, 0, 0],
    ]


def test_the_collector_starts_anew_after_each_table():
    collector = RankCollector(DOMAIN, REAL)
    for _ in range(2):
        collector.eval_batch_collect(
            torch.zeros(1, 12), {"user_id": torch.tensor([1])}, torch.tensor([0]), torch.tensor([1])
        )
        assert len(collector.get_data_struct()) == 1
    assert collector.get_data_struct().empty


def test_sampled_ranks_count_the_stored_negatives_only():
    table = CandidateTable(np.array([4, 2]), np.array([[6, 8], [1, 3]]), 0, "abc")
    scores = torch.zeros(2, 12)
    scores[:, :] = torch.arange(12.0)
    scores[0, 8] = scores[0, 7]
    ranks = collect(scores, [7, 2], "sampled", user=[4, 2], candidates=table)
    # User 4: target 7 ties with 8 and beats 6. User 2: target 2 lies between 1 and 3.
    assert ranks[["user", "higher", "tied"]].to_numpy().tolist() == [[2, 1, 0], [4, 0, 1]]
    assert ranks.attrs["candidates"] == "sampled-2"
    assert ranks.attrs["candidates_hash"] == "abc"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [1, 3])
def test_a_score_that_is_not_finite_is_an_error_naming_model_and_user(bad, column):
    scores = torch.zeros(3, 12)
    scores[2, column] = bad
    with pytest.raises(EDTError, match="SASRec: a candidate of user id 3 has a score that is not finite"):
        collect(scores, [1, 1, 1], model_name="SASRec")


def test_huge_but_finite_scores_are_ranked():
    scores = torch.full((1, 12), 3e38)
    scores[0, 2] = -3e38
    assert counts(collect(scores, [1])) == [[0, 2]]


@pytest.mark.parametrize("item", [0, 5])
def test_a_target_that_is_no_real_item_is_an_error(item):
    with pytest.raises(EDTError, match=f"user id 1 .item id {item}. is no real item"):
        collect(torch.zeros(1, 12), [item])


def test_unknown_modes_and_misplaced_candidates_are_refused():
    with pytest.raises(ConfigError, match="'uni100'"):
        RankCollector(DOMAIN, REAL, "uni100")
    with pytest.raises(ConfigError, match="`sampled` alone"):
        RankCollector(DOMAIN, REAL, "sampled")


def test_the_evaluator_uses_recboles_names_and_keeps_the_table():
    evaluator = RankEvaluator([1, 10])
    ranks = collect(torch.zeros(1, 12), [1])
    result = evaluator.evaluate(ranks)
    assert list(result) == ["hit@1", "hit@10", "ndcg@1", "ndcg@10", "mrr@1", "mrr@10"]
    assert result["hit@1"] == 0.25
    assert evaluator.ranks is ranks
    with pytest.raises(DataError, match="no held-out item"):
        evaluator.evaluate(ranks.iloc[:0])


def small_table():
    ranks = pd.DataFrame(
        {
            "user": [1, 2, 3, 4],
            "item": [1, 6, 2, 3],
            "domain": ["x", "y", "x", "x"],
            "higher": [0, 0, 9, 1],
            "tied": [0, 0, 0, 0],
        }
    )
    about = {"domains": ["x", "y"], "candidates": "domain", "candidates_hash": "", "split_hash": "s"}
    ranks.attrs = {**about, "seen_items": "ranked"}
    return ranks


def test_domain_metrics_count_every_user_in_the_targets_domain():
    table = domain_metrics(small_table(), (2,))
    assert table.index.tolist() == ["x", "y", "overall"]
    assert table["users"].tolist() == [3, 1, 4]
    assert table["mrr@2"].tolist() == pytest.approx([0.5, 1, 0.625])


def test_a_domain_without_targets_has_no_metrics():
    ranks = small_table()
    assert np.isnan(domain_metrics(ranks[ranks["domain"] == "x"], (2,)).loc["y", "hit@2"])


def test_group_metrics_follow_the_labels_in_their_order():
    labels = {"size": pd.Categorical(["10+", "2-10", "10+", None], ["0-2", "2-10", "10+"])}
    table = group_metrics(small_table(), labels, (1,))
    assert table[["group", "label", "users"]].to_numpy().tolist() == [["size", "2-10", 1], ["size", "10+", 2]]
    assert table["hit@1"].tolist() == [1, 0.5]


def test_standard_groups_by_hand():
    # Item counts: 1 four times, 6 twice, 2 once. 9 real items: two of them make the top 20 %.
    train_user = np.array([1, 1, 1, 1, 1, 2, 2])
    train_item = np.array([1, 1, 1, 1, 6, 6, 2])
    labels = standard_groups(small_table(), train_user, train_item, DOMAIN.numpy(), REAL.numpy())
    assert list(labels["history"]) == ["5-10", "0-5", "0-5", "0-5"]
    assert list(labels["popularity"]) == ["head", "head", "tail", "tail"]
    assert list(labels["ratio"]) == ["0.6-0.8", "0.0-0.2", "0.0-0.2", "0.0-0.2"]
    assert list(labels["target_domain_history"]) == ["with", "with", "without", "without"]


def test_a_user_with_more_of_the_second_domain_is_as_lopsided_as_one_with_more_of_the_first():
    train_user, train_item = np.array([1, 2, 2, 2, 2]), np.array([1, 6, 6, 6, 1])
    labels = standard_groups(small_table().iloc[:2], train_user, train_item, DOMAIN.numpy(), REAL.numpy())
    assert list(labels["ratio"]) == ["0.8-1.0", "0.4-0.6"]


def test_an_item_without_training_rows_is_never_head():
    labels = standard_groups(small_table(), np.array([1]), np.array([1]), DOMAIN.numpy(), REAL.numpy())
    assert list(labels["popularity"]) == ["head", "tail", "tail", "tail"]


@pytest.mark.parametrize(("length", "label"), [(4, "0-5"), (5, "5-10"), (19, "15-20"), (20, "20+"), (99, "20+")])
def test_history_bins_leave_out_their_upper_end(length, label):
    ranks = small_table().iloc[:1]
    user, item = np.full(length, 1), np.full(length, 1)
    labels = standard_groups(ranks, user, item, DOMAIN.numpy(), REAL.numpy())
    assert list(labels["history"]) == [label]
    assert list(labels["ratio"]) == ["0.8-1.0"]


def test_ranks_read_back_as_written_with_tokens_labels_and_what_they_are(tmp_path: Path):
    users = np.array(["[PAD]", "u,1", 'a "b"', "NA", "004"])
    items = np.array(["[PAD]", "i1", "i2", "None", "i4", "i5", "6"])
    ranks = small_table().assign(history=pd.Categorical(["5-10", "20+", None, "0-5"]))
    write_ranks(ranks, tmp_path / "ranks.csv", users, items)
    read = read_ranks(tmp_path / "ranks.csv")
    assert read["user"].tolist() == ["u,1", 'a "b"', "NA", "004"]
    assert read["item"].tolist() == ["i1", "6", "i2", "None"]
    assert read["history"].cat.categories.tolist() == ["0-5", "5-10", "10-15", "15-20", "20+"]
    assert read["history"].isna().tolist() == [False, False, True, False]
    assert read.attrs == ranks.attrs
    assert (domain_metrics(read) == domain_metrics(ranks)).all(axis=None)


def test_tokens_that_look_like_numbers_stay_as_they_are(tmp_path: Path):
    users = np.array(["", "004", "1.0", "1e3", "-0"])
    write_ranks(small_table(), tmp_path / "ranks.csv", users, np.arange(9))
    assert read_ranks(tmp_path / "ranks.csv")["user"].tolist() == ["004", "1.0", "1e3", "-0"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "user,item\n1,2\n",
        "item,domain,higher,tied\n1,x,0,0\n",
        "user,item,domain,higher,tied\na,b,x,one,0\n",
    ],
)
def test_a_file_that_is_no_rank_table_is_named(tmp_path: Path, content):
    write_ranks(small_table(), tmp_path / "ranks.csv", np.arange(9), np.arange(9))
    (tmp_path / "ranks.csv").write_text(content)
    with pytest.raises(DataError, match=r"ranks\.csv: not a rank table"):
        read_ranks(tmp_path / "ranks.csv")


def test_a_table_that_was_cut_between_two_lines_is_refused(tmp_path: Path):
    path = tmp_path / "ranks.csv"
    write_ranks(small_table(), path, np.arange(9), np.arange(9))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"ranks\.csv: 3 rows instead of 4; delete .* to train anew"):
        read_ranks(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="ranks.json"):
        read_ranks(tmp_path / "ranks.csv")
