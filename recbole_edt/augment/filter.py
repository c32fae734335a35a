"""Which proposed items are kept: like the user's own items in both domains (paper Eq. 5 and 6)."""

from __future__ import annotations

import numpy as np

from recbole_edt.augment.proposals import items_with_vector, nearest_items
from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.text.clusters import nearest_cosine_quantile

_BLOCK = 16384  # proposals compared at a time


def likeness_to_catalogue(train: TwoDomainData, vectors: np.ndarray, item: np.ndarray, domain: int) -> np.ndarray:
    """``[P]`` cosine to the nearest real item of the domain, for users who have none of it to compare with.

    They need only be like something that exists; what exists itself has 1.
    """
    found, place = np.unique(item, return_inverse=True)
    score = np.ones(len(found), np.float32)
    real = items_with_vector(train, vectors, domain)
    score[train.virtual[found]] = nearest_items(vectors[found[train.virtual[found]]], vectors[real])[1]
    return score[place]


# ---- the filter --------------------------------------------------------------------------------------------------


def dominant_in(train: TwoDomainData, domain: int) -> np.ndarray:
    """``[U]``: whether the user has more rows in ``domain`` than in the other."""
    n_in = np.bincount(train.user[train.item_domain[train.item] == domain], minlength=len(train.users))
    return 2 * n_in > np.diff(train.offsets)


def resolve_tau(tau: float | str, target_vectors: np.ndarray, seed: int) -> float:
    """A cosine from ``tau``: itself, or that quantile of the target domain's nearest-neighbour cosines."""
    if isinstance(tau, str):
        return nearest_cosine_quantile(target_vectors, float(tau[1:]), seed)
    return float(tau)


def best_match(
    vectors: np.ndarray, item: np.ndarray, user: np.ndarray, spoken: np.ndarray, speaker: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each generated item the most similar representative of its user (eq. 5).

    Args:
        vectors: ``[N, D]`` normalised.
        item: ``[P]`` generated items.
        user: ``[P]`` whom each is for.
        spoken: ``[R]`` items that represent users in one domain.
        speaker: ``[R]`` whom each represents, never decreasing; a user's in time order.

    Returns:
        index ``[P]`` into the representatives, ties to the most recent, and the cosine ``[P]``;
        index -1 and cosine ``-inf`` where the user has none.
    """
    best = np.full(len(item), -1, np.int64)
    score = np.full(len(item), -np.inf, np.float32)
    first, end = np.searchsorted(speaker, user, "left"), np.searchsorted(speaker, user, "right")
    for start in range(0, len(item), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(item)))
        for place in range((end - first)[block].max()):
            here = block[first[block] + place < end[block]]
            other = first[here] + place
            cosine = np.einsum("pd,pd->p", vectors[item[here]], vectors[spoken[other]])
            better = cosine >= score[here]
            best[here[better]], score[here[better]] = other[better], cosine[better]
    return best, score


def keep_relevant(
    user: np.ndarray, source_score: np.ndarray, target_score: np.ndarray, k: int, tau: float
) -> np.ndarray:
    """Which generated items pass the noise filter of one direction (eq. 6).

    Args:
        user: ``[P]`` whom each item is for.
        source_score: ``[P]`` cosine to the source representatives; its rank within the user must be at most
            k. Equal scores rank in the order given.
        target_score: ``[P]`` cosine to the target representatives; must be at least tau.
        k: items that may pass by rank.
        tau: least cosine.

    Returns: ``[P]`` bool.
    """
    return (rank_within(user, source_score) <= k) & (target_score >= tau)


def rank_within(user: np.ndarray, score: np.ndarray) -> np.ndarray:
    """``[P]`` place of each score among its user's, from 1 for the highest; equal ones in the order given."""
    order = np.lexsort((-score, user))
    sorted_user = user[order]
    rank = np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - np.searchsorted(sorted_user, sorted_user) + 1
    return rank


# ---- insertion ---------------------------------------------------------------------------------------------------


def injected(n: int, ratio: float, seed: int) -> np.ndarray:
    """``[n]`` bool: which of ``n`` kept items go in, a share ``ratio`` at random; a higher ratio only adds."""
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(seed).permutation(n)[: round(ratio * n)]] = True
    return chosen
