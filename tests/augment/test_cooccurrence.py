import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import dataset

from recbole_edt.augment import cooccurrence
from recbole_edt.augment.cooccurrence import OfflineGenerator
from recbole_edt.data.two_domains import keep_rows
from recbole_edt.profile.telling_words import telling_words

FOOD, KITCHEN = 0, 1
ORTHOGONAL = np.eye(9, dtype=np.float32)  # no item is like another


def last_rows(data, domain):
    """Every distinct item of a user in the domain speaks for the user."""
    last = {(data.user[row], data.item[row]): row for row in range(len(data.user))}
    return np.array(
        sorted(row for (_, item), row in last.items() if data.item_domain[item] == domain), np.int64
    )


def propose(data, vectors=None, source=FOOD, n=10, rows=None):
    """``{user: [(item, score), ...]}`` in the order given."""
    vectors = ORTHOGONAL[: len(data.items)] if vectors is None else vectors
    rows = last_rows(data, source) if rows is None else rows
    found = OfflineGenerator().propose(data, rows, vectors, source, n)
    result = {user: [] for user in data.users}
    for user, item, score in zip(found.user, found.item, found.score, strict=True):
        result[data.users[user]].append((data.items[item], float(score)))
    return result


def items(proposals):
    return [item for item, _ in proposals]


def by_hand(count, popularity):
    return count / (popularity + cooccurrence.POPULARITY_SHRINK) ** cooccurrence.POPULARITY_EXPONENT


class TestProposals:
    def test_items_that_others_have_with_the_representative_are_proposed_best_first(self):
        data = dataset(["f1", "f1 k1", "f1 k1 k2", "f2 k3"])
        assert propose(data)["u0"] == [
            ("k1", pytest.approx(by_hand(2, 2))),
            ("k2", pytest.approx(by_hand(1, 1))),
        ]

    def test_evidence_adds_up_over_representatives(self):
        data = dataset(["f1 f2", "f1 k1", "f2 k2", "f1 k2"])
        assert propose(data)["u0"] == [
            ("k2", pytest.approx(by_hand(2, 2))),
            ("k1", pytest.approx(by_hand(1, 1))),
        ]

    def test_of_equal_counts_the_less_popular_item_comes_first(self):
        data = dataset(["f1", "f1 k1 k2", "f2 k1", "f2 k1"])
        assert items(propose(data)["u0"]) == ["k2", "k1"]

    def test_ties_go_by_position_in_the_catalogue(self):
        data = dataset(["f1", "f1 k3 k1 k2"])
        assert items(propose(data, n=2)["u0"]) == ["k1", "k2"]

    def test_a_repeated_purchase_counts_once(self):
        data = dataset(["f1", "f1 f1 k1 k1 k1", "f1 k2", "f1 k2"])
        assert propose(data)["u0"] == [
            ("k2", pytest.approx(by_hand(2, 2))),
            ("k1", pytest.approx(by_hand(1, 1))),
        ]

    def test_what_the_user_has_is_not_proposed(self):
        data = dataset(["f1 k1", "f1 k1 k2"])
        assert items(propose(data)["u0"]) == ["k2"]
        assert items(propose(data)["u1"]) == []

    def test_only_the_other_domain_is_proposed_in_both_directions(self):
        data = dataset(["f1 k1", "f1 f2 k1 k2"])
        assert items(propose(data, source=FOOD)["u0"]) == ["k2"]
        assert items(propose(data, source=KITCHEN)["u0"]) == ["f2"]

    def test_virtual_items_are_not_proposed(self):
        data = dataset(["f1", "f1 *k1 k2"])
        data.virtual[list(data.items).index("k1")] = True
        assert items(propose(data)["u0"]) == ["k2"]

    def test_there_are_at_most_n(self):
        data = dataset(["f1", "f1 k1 k2 k3 k4"])
        assert [len(propose(data, n=n)["u0"]) for n in (1, 3, 10)] == [1, 3, 4]

    def test_without_evidence_nothing_is_proposed(self):
        assert propose(dataset(["f1 f2", "f3 k1"]))["u0"] == []

    def test_without_representatives_nothing_is_proposed(self):
        found = OfflineGenerator().propose(dataset(["f1 k1"]), np.zeros(0, np.int64), ORTHOGONAL[:2], FOOD, 5)
        assert len(found.user) == len(found.item) == len(found.score) == 0

    def test_the_nearest_texts_lend_evidence_to_a_rare_item(self):
        data = dataset(["f1", "f2 k1"])  # nobody with f1 has a kitchen item, but f2 is much like f1
        vectors = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1]], np.float32)
        assert propose(data, vectors)["u0"] == [("k1", pytest.approx(by_hand(1, 1)))]

    def test_neighbours_share_one_unit_of_weight_by_their_cosine(self):
        data = dataset(["f1", "f2 k1", "f3 k2"])
        vectors = np.array([[1, 0, 0], [0.6, 0.8, 0], [0.8, -0.6, 0], [0, 0, 1], [0, 0, 1]], np.float32)
        expected = [
            ("k2", pytest.approx(by_hand(0.8 / 1.4, 1))),
            ("k1", pytest.approx(by_hand(0.6 / 1.4, 1))),
        ]
        assert propose(data, vectors)["u0"] == expected

    def test_many_users_are_scored_in_blocks_without_mixing_them_up(self, monkeypatch):
        rng = np.random.default_rng(0)
        data = dataset([" ".join(rng.choice(list(ITEMS), 5)) for _ in range(40)])
        vectors = rng.normal(size=(len(data.items), 4))
        whole = propose(data, vectors)
        monkeypatch.setattr(cooccurrence, "ROWS_AT_A_TIME", 3)
        assert propose(data, vectors) == whole


ITEMS = ("f1", "f2", "f3", "f4", "k1", "k2", "k3", "k4", "k5")
histories = st.lists(st.lists(st.sampled_from(ITEMS), max_size=7), min_size=1, max_size=7)


def without_the_user(data, user, vectors):
    """The definition, dense, on data from which the user's rows are gone: ``{item: score}`` for the user."""
    others = np.zeros((len(data.users), len(data.items)))
    rows = data.user != user
    others[data.user[rows], data.item[rows]] = 1
    own = set(data.item[~rows].tolist())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    food, kitchen = np.flatnonzero(data.item_domain == FOOD), np.flatnonzero(data.item_domain == KITCHEN)
    scores = {}
    for b in set(kitchen.tolist()) - own:
        score = 0.0
        for a in own & set(food.tolist()):
            alike = sorted((-float(unit[a] @ unit[c]), c) for c in food.tolist() if c != a)[
                : cooccurrence.N_NEIGHBOURS
            ]
            total = sum(max(-cosine, 0) for cosine, _ in alike)
            weight = {a: 1.0} | {c: max(-cosine, 0) / total for cosine, c in alike if total > 0}
            score += sum(w * (others[:, c] * others[:, b]).sum() for c, w in weight.items())
        if score > 0:
            scores[data.items[b]] = by_hand(score, others[:, b].sum())
    return scores


def test_a_score_of_zero_is_never_among_the_best():
    scores = sp.csr_matrix((np.array([0.0, 2.0]), ([0, 0], [1, 2])), (1, 3))
    assert [part.tolist() for part in cooccurrence.best_entries(scores, 5)] == [[0], [2], [2.0]]


class TestOwnCounts:
    @settings(max_examples=60)
    @given(histories)
    def test_a_users_own_rows_never_count_for_that_user(self, histories):
        data = dataset([" ".join(history) for history in histories], items=ITEMS)
        vectors = np.random.default_rng(7).normal(size=(len(ITEMS), 3))
        found = propose(data, vectors, n=3)
        for user, name in enumerate(data.users):
            scores = without_the_user(data, user, vectors)
            best = sorted(scores.values(), reverse=True)[:3]
            assert [score for _, score in found[name]] == pytest.approx(best, rel=1e-5)
            assert all(score == pytest.approx(scores[item], rel=1e-5) for item, score in found[name])

    @given(histories)
    def test_no_user_gets_an_item_twice_or_one_of_their_own(self, histories):
        data = dataset([" ".join(history) for history in histories], items=ITEMS)
        for user, history in zip(data.users, histories, strict=True):
            proposed = items(propose(data)[user])
            assert len(set(proposed)) == len(proposed)
            assert not set(proposed) & set(history)

    def test_users_without_a_representative_still_count_as_evidence(self):
        data = dataset(["f1", "f1 k1"])
        assert items(propose(data, rows=np.array([0]))["u0"]) == ["k1"]
        assert propose(keep_rows(data, data.user == 0), rows=np.array([0]))["u0"] == []


TEXTS = ["green tea", "black tea", "tea pot", "iron pan", "the of and", "12 1/2"]


class TestTellingWords:
    def words(self, groups, n_words=5, texts=TEXTS):
        pairs = [(group, item) for group, members in enumerate(groups) for item in members]
        group, item = np.array(pairs, int).reshape(-1, 2).T
        return telling_words(texts, group, item, n_words)

    def test_words_that_set_the_group_apart_come_first(self):
        assert self.words([[0, 1], [3]]) == ["tea, black, green", "iron, pan"]
        assert self.words([[0], [2]], n_words=1) == ["green", "pot"]  # tea is everywhere

    def test_repeated_members_weigh_more(self):
        assert self.words([[3, 0, 0]], n_words=2) == ["green, tea"]
        assert self.words([[3, 3, 0]], n_words=2) == ["iron, pan"]

    def test_stop_words_and_numbers_say_nothing(self):
        assert self.words([[4, 5], [3]]) == ["", "iron, pan"]

    def test_a_catalogue_without_words_has_no_telling_ones(self):
        assert self.words([[0], [1]], texts=["the", ""]) == ["", ""]

    def test_no_groups_have_no_words(self):
        assert telling_words(TEXTS, np.zeros(0, int), np.zeros(0, int), 5) == []

    def test_many_groups_are_worked_on_in_blocks_without_mixing_them_up(self, monkeypatch):
        groups = [[place % 4, (place * 3) % 4] for place in range(10)]
        whole = self.words(groups)
        monkeypatch.setattr(cooccurrence, "ROWS_AT_A_TIME", 3)
        assert self.words(groups) == whole
