"""How a user's interactions spread over the two domains, in words (the step ``reform``)."""

from __future__ import annotations

import numpy as np

from recbole_edt.data.two_domains import TwoDomainData

BALANCE = (
    "Acts about as much in {major} as in {minor}.",
    "Acts somewhat more in {major} than in {minor}.",
    "Acts clearly more in {major} than in {minor}.",
    "Acts mostly in {major} and seldom in {minor}.",
    "Acts almost only in {major}, hardly ever in {minor}.",
)
"""Domain ratio r in words, for the bins [0, .2), [.2, .4), [.4, .6), [.6, .8) and [.8, 1]."""

Spread = tuple[int, int]
"""Bin of the domain ratio and the stronger domain."""


def reform(n_a: int, n_b: int, domains: tuple[str, str]) -> str:
    """A user's domain ratio ``|n_a - n_b| / (n_a + n_b)`` in words; ``""`` for a user without rows."""
    return spread_in_words(spread(n_a, n_b), domains) if n_a + n_b else ""


def spread(n_a: int, n_b: int) -> Spread:
    """Bin of the domain ratio, 0 to 4, and the stronger domain; A if there is none."""
    # Whole numbers: r = .6 belongs to the fourth bin exactly.
    return min(5 * abs(n_a - n_b) // max(n_a + n_b, 1), 4), int(n_b > n_a)


def user_spreads(train: TwoDomainData) -> list[Spread]:
    """The spread of each user's rows over the domains."""
    return [spread(a, b) for a, b in domain_counts(train)]


def spread_in_words(spread: Spread, domains: tuple[str, str]) -> str:
    place, major = spread
    return BALANCE[place].format(major=domains[major], minor=domains[1 - major])


def domain_counts(train: TwoDomainData) -> list[tuple[int, int]]:
    """Rows of each user in domain A and in domain B; inserted ones do not make an imbalance less (method: S_train)."""
    in_b = train.item_domain[train.item].astype(bool)
    raw = ~train.generated
    n_a, n_b = (np.bincount(train.user[rows & raw], minlength=len(train.users)).tolist() for rows in (~in_b, in_b))
    return list(zip(n_a, n_b, strict=True))
