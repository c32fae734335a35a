import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import dataset

from recbole_edt.text import clusters
from recbole_edt.text.clusters import NO_CLUSTER


def at_angles(*degrees):
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def degrees_between(cosine):
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


class TestCosine:
    def test_normalised_rows_have_length_one_and_zero_rows_stay_zero(self):
        assert clusters.normalise(np.array([[3, 4], [0, 0]])) == pytest.approx(
            np.array([[0.6, 0.8], [0, 0]])
        )

    def test_the_input_is_left_alone(self):
        vectors = np.array([[3, 4]], np.float32)
        clusters.normalise(vectors)
        assert vectors.tolist() == [[3, 4]]


class TestCluster:
    def test_two_bundles_of_directions_are_two_clusters(self):
        labels, centroids = clusters.cluster(at_angles(0, 1, 2, 90, 91, 92), 2, seed=0)
        assert labels[0] == labels[1] == labels[2] != labels[3] == labels[4] == labels[5]
        assert centroids.shape == (2, 2)

    def test_length_does_not_matter(self):
        vectors = at_angles(0, 1, 90, 91)
        scaled = vectors * np.array([[1], [100], [1], [0.01]], np.float32)
        assert (clusters.cluster(vectors, 2, 0)[0] == clusters.cluster(scaled, 2, 0)[0]).all()

    def test_an_item_without_text_is_in_no_cluster(self):
        labels, centroids = clusters.cluster(np.array([[1, 0], [0, 0], [0, 1]], np.float32), 5, seed=0)
        assert labels[1] == NO_CLUSTER
        assert sorted(labels[[0, 2]]) == [0, 1]
        assert len(centroids) == 2

    def test_there_are_no_more_clusters_than_distinct_items(self):
        labels, centroids = clusters.cluster(at_angles(0, 0, 0, 90), 10, seed=0)
        assert len(centroids) == 2
        assert labels[0] == labels[1] == labels[2] != labels[3]

    def test_without_any_text_there_is_no_cluster(self):
        labels, centroids = clusters.cluster(np.zeros((3, 2)), 10, seed=0)
        assert labels.tolist() == [NO_CLUSTER] * 3
        assert centroids.shape == (0, 2)

    def test_the_same_seed_gives_the_same_clusters(self):
        vectors = np.random.default_rng(0).normal(size=(300, 8))
        first, second = clusters.cluster(vectors, 7, 3), clusters.cluster(vectors, 7, 3)
        assert (first[0] == second[0]).all() and (first[1] == second[1]).all()

    def test_an_item_goes_to_the_nearest_centroid(self):
        centroids = np.array([[1, 0], [0, 1]], np.float32)
        labels, distance = clusters.nearest_centroid(np.array([[3, 1], [0, 9], [0, 0]]), centroids)
        assert labels.tolist() == [0, 1, NO_CLUSTER]
        expected = np.hypot(1 - 3 / np.sqrt(10), 1 / np.sqrt(10))
        assert distance == pytest.approx([expected, 0, np.inf], abs=1e-6)


class TestGroupItems:
    def test_each_domain_has_its_own_clusters(self):
        data = dataset(["f1 f2 k1 k2"])
        groups, distance = clusters.group_items(data, at_angles(0, 90, 0, 90), 2, seed=0)
        assert sorted(groups[:2]) == sorted(groups[2:]) == [0, 1]
        assert (distance < 0.8).all()

    def test_virtual_items_join_clusters_without_moving_them(self):
        real, data = dataset(["f1 f2 f3 k1"]), dataset(["f1 f2 f3 f4 k1"])
        data.virtual[3] = True
        expected, distance = clusters.group_items(real, at_angles(0, 2, 90, 0), 2, seed=0)
        groups, with_virtual = clusters.group_items(data, at_angles(0, 2, 90, 10, 0), 2, seed=0)
        assert np.delete(groups, 3).tolist() == expected.tolist()
        assert np.delete(with_virtual, 3).tolist() == distance.tolist()
        assert groups[3] == groups[0]


class TestNeighbours:
    def test_the_nearest_come_first_and_nobody_is_its_own_neighbour(self):
        index, cosine = clusters.top_neighbours(at_angles(0, 10, 30, 100), 2)
        assert index.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
        expected = [[10, 30], [10, 20], [20, 30], [70, 90]]
        assert degrees_between(cosine) == pytest.approx(np.array(expected), abs=0.05)

    def test_ties_go_by_position(self):
        index, _ = clusters.top_neighbours(np.ones((4, 1)), 2)
        assert index.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]

    def test_only_the_items_asked_about_are_answered(self):
        index, _ = clusters.top_neighbours(at_angles(0, 10, 30, 100), 1, rows=np.array([3, 0]))
        assert index.tolist() == [[2], [1]]

    def test_the_block_size_does_not_matter(self):
        vectors = np.random.default_rng(1).normal(size=(50, 5))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        expected = np.argsort(-(unit @ unit.T - 9 * np.eye(50)), axis=1)[:, :4]
        for block in (1, 7, 50, 1000):
            assert (clusters.top_neighbours(vectors, 4, block=block)[0] == expected).all()

    @pytest.mark.parametrize("n, k, given", [(3, 10, 2), (1, 5, 0), (0, 5, 0)])
    def test_there_are_no_more_neighbours_than_other_items(self, n, k, given):
        index, cosine = clusters.top_neighbours(np.ones((n, 2)), k)
        assert index.shape == cosine.shape == (n, given)


class TestNearestCosineQuantile:
    def test_it_is_the_quantile_of_cosines_to_the_nearest_other_item(self):
        vectors = at_angles(0, 10, 30)  # nearest at 10, 10 and 20 degrees
        quantiles = [clusters.nearest_cosine_quantile(vectors, q, seed=0) for q in (0, 0.5, 1)]
        assert degrees_between(quantiles) == pytest.approx([20, 10, 10], abs=0.05)

    def test_items_without_text_are_left_out(self):
        vectors = np.concatenate([at_angles(0, 10, 30), np.zeros((50, 2))])
        assert degrees_between(clusters.nearest_cosine_quantile(vectors, 0, 0)) == pytest.approx(
            20, abs=0.05
        )

    def test_a_sample_is_compared_with_everything(self):
        vectors = np.repeat(np.random.default_rng(0).normal(size=(100, 8)), 2, axis=0)  # each item has a twin
        assert clusters.nearest_cosine_quantile(vectors, 0, seed=0, sample=10) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("n", [0, 1])
    def test_without_another_item_it_is_zero(self, n):
        assert clusters.nearest_cosine_quantile(at_angles(*range(n)).reshape(n, 2), 0.5, 0) == 0


def represent(data, groups, distances, domain=0):
    """Tokens of the representatives, from ``{token: cluster}`` and ``{token: distance}``."""
    cluster = np.array([groups.get(token, NO_CLUSTER) for token in data.items])
    distance = np.array([distances.get(token, np.inf) for token in data.items])
    rows = clusters.representatives(data, cluster, distance, domain)
    return rows.tolist(), data.items[data.item[rows]].tolist()


class TestRepresentatives:
    def test_the_item_nearest_its_centroid_stands_for_its_cluster(self):
        data = dataset(["f1 f2 f3 f4"])
        rows, items = represent(
            data, {"f1": 0, "f2": 1, "f3": 0, "f4": 1}, {"f1": 2, "f2": 3, "f3": 1, "f4": 4}
        )
        assert items == ["f2", "f3"]  # in time order
        assert rows == [1, 2]

    def test_ties_go_to_the_most_recent(self):
        data = dataset(["f1 f2 f3"])
        assert represent(data, dict.fromkeys(data.items, 0), {"f1": 1, "f2": 1, "f3": 2})[1] == ["f2"]

    def test_a_repeated_item_counts_where_it_was_met_last(self):
        data = dataset(["f1 f2 f1 f2 k1"])
        assert represent(data, {"f1": 0, "f2": 1}, {"f1": 1, "f2": 1})[0] == [2, 3]

    def test_users_and_domains_are_kept_apart(self):
        data = dataset(["f1 k1 f2", "k1 k2", "f2 k2"])
        groups = dict.fromkeys(data.items, 0)
        distances = {"f1": 1, "f2": 2, "k1": 1, "k2": 2}
        assert represent(data, groups, distances, 0) == ([0, 5], ["f1", "f2"])
        assert represent(data, groups, distances, 1) == ([1, 3, 6], ["k1", "k1", "k2"])

    def test_items_without_a_cluster_represent_nobody(self):
        assert represent(dataset(["f1 f2"]), {"f2": 0}, {"f1": 0, "f2": 5})[1] == ["f2"]
        assert represent(dataset(["f1 f2"]), {}, {})[1] == []

    @given(
        st.lists(
            st.lists(st.sampled_from(["f1", "f2", "f3", "f4", "k1"]), max_size=8), min_size=1, max_size=5
        )
    )
    def test_every_cluster_a_user_has_met_speaks_once(self, histories):
        data = dataset([" ".join(history) for history in histories])
        groups = {"f1": 0, "f2": 0, "f3": 1, "f4": 1, "k1": 0}
        rows, items = represent(data, groups, {"f1": 1, "f2": 1, "f3": 2, "f4": 1})
        spoken = [(data.user[row], groups[item]) for row, item in zip(rows, items, strict=True)]
        met = {
            (user, groups[item]) for user, history in enumerate(histories) for item in history if item != "k1"
        }
        assert len(spoken) == len(set(spoken)) and set(spoken) == met
        assert rows == sorted(rows)
