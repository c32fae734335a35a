from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import dataset, sequences, table_of

from recbole_edt.augment import filter
from recbole_edt.augment.augment import augment, user_representatives
from recbole_edt.augment.filter import best_match, injected, keep_relevant, resolve_tau
from recbole_edt.augment.insert import Insertions, insert_after_source
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.data.split import TRAIN, leave_one_out, training_rows
from recbole_edt.data.two_domains import keep_rows
from recbole_edt.errors import ConfigError, DataError

ITEMS = ("f1", "f2", "f3", "f4", "f5", "k1", "k2", "k3", "k4", "k5")
VECTORS = np.random.default_rng(3).normal(size=(len(ITEMS), 3))
OPEN = AugmentConfig(tau=-1.0, n_clusters=4)  # whatever is proposed passes tau

histories = st.lists(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=9), min_size=2, max_size=7)


def data_of(histories):
    return dataset([" ".join(history) for history in histories], items=ITEMS)


def augmented(data, config=OPEN, vectors=VECTORS):
    """Data and counts."""
    return augment(data, table_of(data, vectors), config)[:2]


def inserted(data):
    return set(zip(data.user[data.generated].tolist(), data.item[data.generated].tolist(), strict=True))


class TestConfig:
    def test_the_defaults_are_valid(self):
        AugmentConfig().validate()

    @pytest.mark.parametrize("tau", [-1, 0, 0.9, 1.0, "q0", "q0.10", "q.5", "q1"])
    def test_a_cosine_or_a_quantile_is_a_tau(self, tau):
        AugmentConfig(tau=tau).validate()

    @pytest.mark.parametrize("tau", [1.01, -2, float("nan"), "0.9", "q1.5", "q-1", "q", "qx", True, None, "q0.1\n"])
    def test_anything_else_is_not(self, tau):
        with pytest.raises(ConfigError, match="augment.tau"):
            AugmentConfig(tau=tau).validate()

    @pytest.mark.parametrize(
        "fault",
        [
            {"k": 0},
            {"k": 1.5},
            {"k": True},
            {"n_clusters": 0},
            {"n_generated": "10"},
            {"seed": -1},
            {"filter": 1},
            {"generator": "oracle"},
            {"directions": "A2B"},
            {"insertion": "before"},
            {"injection_ratio": 0},
            {"injection_ratio": 1.01},
            {"injection_ratio": float("nan")},
            {"injection_ratio": True},
            {"injection_ratio": "30%"},
        ],
    )
    def test_a_value_out_of_range_is_named(self, fault):
        with pytest.raises(ConfigError, match=f"augment.{next(iter(fault))}: "):
            AugmentConfig(**fault).validate()

    def test_all_faults_are_told_at_once(self):
        with pytest.raises(ConfigError) as error:
            AugmentConfig(k=0, tau=3, insertion="x").validate()
        assert len(str(error.value).splitlines()) == 3


class TestTau:
    def test_a_number_is_itself(self):
        assert resolve_tau(0.9, np.zeros((0, 2)), 0) == 0.9
        assert resolve_tau(1, np.zeros((0, 2)), 0) == 1.0

    def test_a_quantile_is_taken_of_cosines_between_nearest_neighbours(self):
        vectors = np.array([[1, 0], [1, 0], [0.6, 0.8]], np.float32)  # nearest: 1, 1, 0.6
        assert resolve_tau("q0.0", vectors, 0) == pytest.approx(0.6)
        assert resolve_tau("q0.5", vectors, 0) == pytest.approx(1)


class TestBestMatch:
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [0.8, 0.6], [0.8, 0.6]], np.float32)

    def match(self, item, user, spoken, speaker):
        best, score = best_match(self.vectors, *map(np.array, (item, user, spoken, speaker)))
        return best.tolist(), score.tolist()

    def test_each_item_is_matched_with_the_nearest_representative_of_its_user(self):
        best, score = self.match(item=[2, 3, 2], user=[0, 0, 1], spoken=[0, 1, 0], speaker=[0, 0, 1])
        assert best == [1, 0, 2]
        assert score == pytest.approx([0.8, 0.8, 0.6])

    def test_ties_go_to_the_most_recent(self):
        assert self.match([0], [0], [3, 4, 1], [0, 0, 0])[0] == [1]

    def test_a_user_without_representatives_has_no_match(self):
        best, score = self.match([2, 2], [0, 1], [0], [1])
        assert best == [-1, 0]
        assert score == pytest.approx([-np.inf, 0.6])

    def test_the_block_size_does_not_matter(self, monkeypatch):
        rng = np.random.default_rng(0)
        speaker = np.sort(rng.integers(0, 9, 30))
        arguments = rng.integers(0, 5, 50), rng.integers(0, 10, 50), rng.integers(0, 5, 30), speaker
        whole = self.match(*arguments)
        monkeypatch.setattr(filter, "_BLOCK", 7)
        assert self.match(*arguments) == whole


class TestKeepRelevant:
    user = np.array([0, 0, 0, 1, 1])
    source = np.array([0.1, 0.9, 0.5, 0.2, 0.2])
    target = np.array([0.9, 0.3, 0.6, 0.6, 0.6])

    def kept(self, k, tau, order=slice(None)):
        return keep_relevant(self.user[order], self.source[order], self.target[order], k, tau).tolist()

    def test_both_conditions_must_hold(self):
        assert self.kept(2, 0.5) == [False, False, True, True, True]

    def test_a_rank_of_exactly_k_and_a_cosine_of_exactly_tau_pass(self):
        assert self.kept(3, 0.6) == [True, False, True, True, True]

    def test_the_rank_is_taken_before_tau_so_that_a_failed_item_is_not_replaced(self):
        assert self.kept(1, 0.5) == [False, False, False, True, False]

    def test_equal_scores_rank_in_the_order_given(self):
        assert self.kept(1, -1)[3:] == [True, False]

    def test_users_need_not_stand_together(self):
        order = [3, 0, 4, 1, 2]
        assert self.kept(2, 0.5, order) == [True, False, True, False, True]

    @given(st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1), st.floats(-1, 1))), st.integers(1, 5))
    def test_a_higher_tau_or_a_lower_k_keeps_a_subset(self, rows, k):
        user, source, target = np.array(rows, float).reshape(-1, 3).T
        kept = keep_relevant(user, source, target, k, 0.0)
        assert not (keep_relevant(user, source, target, k, 0.5) & ~kept).any()
        assert not (kept & ~keep_relevant(user, source, target, k + 1, 0.0)).any()


class TestInsertAfterSource:
    def insert(self, row, item, score, rows=("f1 k1 f2", "k2 f1")):
        data = dataset(rows, items=["k9", "f9", "k8"])
        index = {token: place for place, token in enumerate(data.items)}
        insertions = Insertions(np.array([index[token] for token in item], int), np.array(row), np.array(score))
        return insert_after_source(data, insertions)

    def test_an_item_stands_right_after_its_source_and_carries_its_time(self):
        result = self.insert([1, 3], ["f9", "f9"], [0.5, 0.5])
        assert sequences(result) == ["f1 k1 *f9 f2", "k2 *f9 f1"]
        assert result.time.tolist() == [0, 1, 1, 2, 3, 3, 4]
        assert result.offsets.tolist() == [0, 4, 7]

    def test_several_after_the_same_source_stand_best_first_then_by_catalogue(self):
        assert sequences(self.insert([0, 0, 0], ["k9", "k8", "f9"], [0.5, 0.5, 0.9]))[0] == "f1 *f9 *k8 *k9 k1 f2"

    def test_nothing_inserted_changes_nothing(self):
        result = self.insert(np.zeros(0, int), [], np.zeros(0))
        assert sequences(result) == ["f1 k1 f2", "k2 f1"]


class TestAugment:
    """u0 has f1 and others have k1 with it; k1 is like f1, k2 is not."""

    rows = ("f1 f2 f5 f5", "f1 k1 k2 f5 f5", "f1 k1 k2 f5 f5", "f2 k3 k2 f5 f5", "f1 k2 f5 f5")
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0], [0.1, 0.2, 0.9], [0.1, 0.9, 0]])

    def run(self, **settings):
        config = AugmentConfig(**({"tau": -1.0, "n_clusters": 5} | settings))
        return augmented(dataset(self.rows), config, self.vectors)

    def test_a_proposed_item_goes_after_what_it_resembles(self):
        data, _ = self.run(k=1)
        assert sequences(data)[0] == "f1 *k1 f2 f5 f5"

    def test_k_items_pass_by_rank(self):
        assert sequences(self.run(k=2)[0])[0] == "f1 *k1 f2 *k3 f5 f5"
        assert sequences(self.run(k=3)[0])[0] == "f1 *k1 f2 *k3 *k2 f5 f5"

    def test_without_the_filter_all_proposals_go_in(self):
        assert sequences(self.run(k=1, filter=False)[0])[0] == "f1 *k1 f2 *k3 *k2 f5 f5"

    def test_a_high_tau_keeps_items_from_users_who_know_better(self):
        data, counts = self.run(k=3, tau=0.95)
        # u4 knows k2, and k1 is not like it; u0 has no kitchen item to compare with.
        assert sequences(data)[4] == "f1 k2 f5 f5"
        assert sequences(data)[0] == "f1 *k1 f2 *k3 *k2 f5 f5"
        assert "f1 *k1" in sequences(self.run(k=3)[0])[4]
        assert counts["tau_food_to_kitchen"] == 0.95

    def test_append_puts_items_at_the_end_of_training_best_first(self):
        assert sequences(self.run(k=2, insertion="append")[0])[0] == "f1 f2 *k1 *k3 f5 f5"

    def test_random_insertion_moves_items_but_changes_none(self):
        data, _ = self.run(insertion="random")
        assert inserted(data) == inserted(self.run()[0])
        assert sequences(data) == sequences(self.run(insertion="random")[0])
        positions = {sequences(self.run(insertion="random", seed=seed)[0])[0] for seed in range(20)}
        assert len(positions) > 1

    def test_none_inserts_nothing_and_counts_it(self):
        data, counts = self.run(insertion="none")
        assert not data.generated.any()
        assert counts["inserted"] == 0 and counts["mean_ratio_after"] == counts["mean_ratio_before"]

    def test_minority_serves_only_the_weaker_domain(self):
        data, _ = self.run(directions="minority")
        assert {data.items[item] for user, item in inserted(data) if user == 0} == {"k1", "k2", "k3"}
        # u1 has more kitchen than food in training, u4 as much of both.
        assert {data.items[item] for user, item in inserted(data) if user == 3} == {"f1"}
        assert sequences(data)[4] == "f1 k2 f5 f5"
        assert sequences(self.run()[0])[4] == "f1 *k1 k2 *f2 f5 f5"

    def test_the_counts_add_up(self):
        data, counts = self.run(k=2)
        assert (
            counts["inserted"]
            == data.generated.sum()
            == counts["kept_food_to_kitchen"] + counts["kept_kitchen_to_food"]
        )
        assert counts["users_with_inserted"] == len(np.unique(data.user[data.generated]))
        assert counts["inserted_per_user"] == counts["inserted"] / 5
        assert (
            counts["share_kept_food_to_kitchen"] == counts["kept_food_to_kitchen"] / counts["generated_food_to_kitchen"]
        )
        assert counts["above_tau_food_to_kitchen"] == counts["generated_food_to_kitchen"]
        # training: ff, fkk, fkk, fkk, fk before; u0 receives two kitchen items
        assert counts["mean_ratio_before"] == pytest.approx((1 + 1 / 3 + 1 / 3 + 1 / 3 + 0) / 5)
        assert counts["mean_ratio_after"] < counts["mean_ratio_before"]

    def test_a_quantile_is_resolved_in_the_target_domain(self):
        _, counts = self.run(tau="q0.5")
        # Food items are orthogonal; of the kitchen items k2 and k3 are nearest, and the median is theirs.
        assert counts["tau_kitchen_to_food"] == 0
        assert counts["tau_food_to_kitchen"] == pytest.approx(0.19 / np.sqrt(0.82 * 0.86))

    def test_augmented_data_are_not_augmented_again(self):
        with pytest.raises(DataError, match="generated rows already"):
            augmented(self.run()[0], vectors=self.vectors)

    def test_an_item_without_a_vector_is_named(self):
        data = dataset(self.rows)
        table = table_of(data, self.vectors)
        with pytest.raises(DataError, match="lack 1 of 6 items.*'k3'"):
            augment(data, replace(table, tokens=table.tokens[:-1], rows=table.rows[:-1]), OPEN)

    def test_a_bad_setting_stops_before_any_work(self):
        with pytest.raises(ConfigError):
            self.run(k=0)

    def test_items_without_text_do_no_harm(self):
        data, _ = augmented(dataset(self.rows), AugmentConfig(), np.zeros((6, 3)))
        assert not data.generated.any()


@pytest.mark.parametrize("ratio, n_in", [(0.3, 3), (0.6, 6), (1.0, 10), (0.05, 0), (0.96, 10)])
def test_the_injection_ratio_is_the_share_of_kept_items_that_go_in(ratio, n_in):
    chosen = injected(10, ratio, seed=1)
    assert chosen.sum() == n_in and len(chosen) == 10
    assert chosen.tolist() == injected(10, ratio, seed=1).tolist()


class TestPromises:
    @settings(max_examples=40)
    @given(histories, st.sampled_from(["after_source", "append", "random"]))
    def test_taking_inserted_rows_out_gives_the_original_back(self, histories, insertion):
        data = data_of(histories)
        result, _ = augmented(data, replace(OPEN, insertion=insertion, filter=False))
        original = keep_rows(result, ~result.generated)
        assert sequences(original) == sequences(data)
        assert original.time.tolist() == data.time.tolist()
        assert original.offsets.tolist() == data.offsets.tolist()

    @settings(max_examples=40)
    @given(histories, st.sampled_from(["after_source", "append", "random"]))
    def test_the_last_two_raw_rows_stay_last_and_short_histories_stay_as_they_are(self, histories, insertion):
        result, _ = augmented(data_of(histories), replace(OPEN, insertion=insertion, filter=False))
        for history, sequence in zip(histories, sequences(result), strict=True):
            assert sequence.split()[-2:] == history[-2:]
            if len(history) < 3:
                assert sequence.split() == history
        assert (leave_one_out(result)[result.generated] == TRAIN).all()

    @settings(max_examples=40)
    @given(histories)
    def test_an_inserted_item_follows_an_item_of_the_other_domain_and_is_new_to_training(self, histories):
        data = data_of(histories)
        result, _ = augmented(data, replace(OPEN, filter=False))
        train = training_rows(data)
        had = set(zip(train.user.tolist(), train.item.tolist(), strict=True))
        assert not inserted(result) & had
        assert len(inserted(result)) == result.generated.sum()
        source = np.maximum.accumulate(np.where(result.generated, 0, np.arange(len(result.item))))
        rows = np.flatnonzero(result.generated)
        assert (result.user[source[rows]] == result.user[rows]).all()
        assert (result.item_domain[result.item[source[rows]]] != result.item_domain[result.item[rows]]).all()
        assert (result.time[source[rows]] == result.time[rows]).all()

    @settings(max_examples=40)
    @given(histories)
    def test_an_inserted_item_follows_the_most_similar_of_its_users_representatives(self, histories):
        data = data_of(histories)
        result, _ = augmented(data, replace(OPEN, filter=False))
        unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
        speaking = np.concatenate(user_representatives(data, table_of(data, VECTORS), OPEN))
        raw_row = np.cumsum(~result.generated) - 1  # of an inserted row: the last raw one before it
        for row in np.flatnonzero(result.generated):
            user, item = result.user[row], result.item[row]
            theirs = speaking[(data.user[speaking] == user)]
            theirs = theirs[data.item_domain[data.item[theirs]] != data.item_domain[item]]
            cosine = unit[data.item[theirs]] @ unit[item]
            assert raw_row[row] == max(theirs[cosine > cosine.max() - 1e-6])  # of equal ones the most recent

    @settings(max_examples=30)
    @given(histories, st.floats(-1, 1), st.integers(1, 3))
    def test_raising_tau_or_lowering_k_never_adds_an_item(self, histories, tau, k):
        data = data_of(histories)
        config = replace(OPEN, tau=tau, k=k)
        base = inserted(augmented(data, config)[0])
        assert inserted(augmented(data, replace(config, tau=min(1.0, tau + 0.2)))[0]) <= base
        assert base <= inserted(augmented(data, replace(config, k=k + 1))[0])

    @settings(max_examples=40)
    @given(histories, st.randoms(use_true_random=False))
    def test_held_out_rows_change_nothing(self, histories, random):
        """Swapping validation and test items for any others leaves every inserted row where it was."""
        data = data_of(histories)
        held_out = leave_one_out(data) != TRAIN
        assume(held_out.any())
        swapped = replace(data, item=data.item.copy())
        swapped.item[held_out] = [random.randrange(len(ITEMS)) for _ in range(held_out.sum())]
        config = AugmentConfig(tau="q0.2", n_clusters=4)
        (first, counts), (second, other_counts) = augmented(data, config), augmented(swapped, config)
        assert counts == other_counts
        assert sequences(training_rows(first)) == sequences(training_rows(second))
        assert first.generated.tolist() == second.generated.tolist()

    @settings(max_examples=30)
    @given(histories, st.floats(0.01, 1), st.floats(0.01, 1))
    def test_a_higher_injection_ratio_adds_items_and_moves_none(self, histories, one, other):
        data, low, high = data_of(histories), min(one, other), max(one, other)
        few, some, whole = (inserted(augmented(data, replace(OPEN, injection_ratio=r))[0]) for r in (low, high, 1.0))
        assert few <= some <= whole
        assert whole == inserted(augmented(data, OPEN)[0])

    def test_the_same_seed_gives_the_same_data(self):
        data = data_of([["f1", "k2", "f3", "k1", "f2"], ["f1", "k1", "k3", "f4"], ["f3", "k3", "f1", "k2"]])
        assert sequences(augmented(data)[0]) == sequences(augmented(data)[0])
