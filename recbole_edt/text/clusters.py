"""Cosine, k-means and representatives on plain arrays: which items are alike, and which speak for a user."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics.pairwise import euclidean_distances
from tqdm import tqdm

from recbole_edt.data.two_domains import TwoDomainData

NO_CLUSTER = -1


def normalise(vectors: np.ndarray) -> np.ndarray:
    """L2-normalised float32 copy of ``[n, D]``; an all-zero row (an item without text) stays zero."""
    vectors = np.asarray(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def cluster(vectors: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Group items by k-means on their directions (paper section 3.2.1).

    Args:
        vectors: ``[n, D]``, any length; only the direction counts, as in the cosines of eq. 5.
        k: number of groups wanted; fewer if there are fewer distinct directions.
        seed: makes the result repeatable.

    Returns:
        labels ``[n]`` (``NO_CLUSTER`` for an all-zero row) and centroids ``[k', D]``.
    """
    unit = normalise(vectors)
    known = unit[unit.any(axis=1)]
    if not len(known):
        return np.full(len(unit), NO_CLUSTER), np.zeros((0, unit.shape[1]), np.float32)
    k = min(k, len(np.unique(known, axis=0)))
    centroids = MiniBatchKMeans(k, random_state=seed, n_init=3).fit(known).cluster_centers_
    return nearest_centroid(unit, centroids)[0], centroids


def nearest_centroid(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each item, normalised, and its Euclidean distance to that centroid.

    Returns:
        labels ``[n]`` and distance ``[n]``; ``NO_CLUSTER`` and infinite for an all-zero row.
    """
    unit = normalise(vectors)
    labels = np.full(len(unit), NO_CLUSTER)
    distance = np.full(len(unit), np.inf, np.float32)
    known = unit.any(axis=1)
    if len(centroids) and known.any():
        labels[known] = euclidean_distances(unit[known], centroids).argmin(axis=1)
        distance[known] = np.linalg.norm(unit[known] - centroids[labels[known]], axis=1)
    return labels, distance


def group_items(data: TwoDomainData, vectors: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster the items of each domain by text; virtual items join the clusters of the real ones.

    Args:
        data: the catalogue; its interactions are not looked at.
        vectors: ``[N, D]``.
        k: groups per domain.
        seed: for k-means.

    Returns:
        cluster ``[N]``, counted from 0 in each domain, and distance ``[N]`` to its centroid.
    """
    labels = np.full(len(vectors), NO_CLUSTER)
    distance = np.full(len(vectors), np.inf, np.float32)
    for domain in (0, 1):
        own = np.flatnonzero(data.item_domain == domain)
        _, centroids = cluster(vectors[own[~data.virtual[own]]], k, seed)
        labels[own], distance[own] = nearest_centroid(vectors[own], centroids)
    return labels, distance


def top_neighbours(
    vectors: np.ndarray, k: int, rows: np.ndarray | None = None, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k items most alike to each item, itself left out; ties by position.

    Args:
        vectors: ``[n, D]``.
        k: neighbours per item; at most n - 1 are given.
        rows: ``[m]``, the items asked about; all if None.
        block: most items compared at a time, for memory only; fewer in a large catalogue.

    Returns:
        index ``[m, k']`` and cosine ``[m, k']``, best first.
    """
    unit = normalise(vectors)
    rows = np.arange(len(unit)) if rows is None else rows
    k = max(min(k, len(unit) - 1), 0)
    block = max(min(block, 2**26 // max(len(unit), 1)), 1)  # 256 MB of cosines
    index, value = np.zeros((len(rows), k), np.int64), np.zeros((len(rows), k), np.float32)
    for start in tqdm(range(0, len(rows), block), desc="nearest texts", delay=1, leave=False, disable=None):
        part = slice(start, start + block)
        scores = unit[rows[part]] @ unit.T  # [block, n]
        scores[np.arange(len(scores)), rows[part]] = -np.inf
        index[part], value[part] = _top_columns(scores, k)
        del scores  # or two blocks are held at once
    return index, value


def nearest_cosine_quantile(vectors: np.ndarray, q: float, seed: int, sample: int = 2000) -> float:
    """The q-quantile over items of the cosine to the nearest other item.

    A scale for thresholds that holds for any embedder: how alike two neighbours in this catalogue are.
    Items without text (zero rows) are left out; at most ``sample`` items are asked for their neighbour.
    Fewer than two items give 0.
    """
    known = vectors[np.any(vectors, axis=1)]
    if len(known) < 2:
        return 0.0
    asked = np.random.default_rng(seed).choice(len(known), min(sample, len(known)), replace=False)
    return float(np.quantile(top_neighbours(known, 1, asked)[1], q))


def _top_columns(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best columns of each row, best first, ties by column; overwrites ``scores``."""
    rows = np.arange(len(scores))
    index = np.empty((len(scores), k), np.int64)
    value = np.empty((len(scores), k), np.float32)
    for place in range(k):  # k is small: k passes of argmax beat a partition several times over
        index[:, place] = scores.argmax(axis=1)
        value[:, place] = scores[rows, index[:, place]]
        scores[rows, index[:, place]] = -np.inf
    return index, value


def representatives(
    train: TwoDomainData, item_cluster: np.ndarray, distance_to_centroid: np.ndarray, domain: int
) -> np.ndarray:
    """The items that speak for each user in one domain: at most one per cluster (paper's S_rep).

    Of a user's items in a cluster the one nearest the centroid is taken, ties to the most recent; an item
    met several times counts where it was met last.

    Args:
        train: training rows only.
        item_cluster: ``[N]``, ``NO_CLUSTER`` for items that represent nobody.
        distance_to_centroid: ``[N]``.
        domain: 0 or 1.

    Returns:
        row numbers of ``train``, increasing: by user, then by time.
    """
    eligible = (train.item_domain[train.item] == domain) & (item_cluster[train.item] != NO_CLUSTER)
    rows = np.flatnonzero(eligible)
    user, item = train.user[rows], train.item[rows]
    group = item_cluster[item]
    order = np.lexsort((-rows, distance_to_centroid[item], group, user))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(user[order]) != 0) | (np.diff(group[order]) != 0)
    return np.sort(rows[order[first]])
