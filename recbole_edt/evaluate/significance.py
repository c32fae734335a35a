"""Paired tests, bootstrap intervals and Holm's correction over users and over seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from recbole_edt.data.two_domains import OVERALL
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.evaluate.metrics import METRICS, domains_of, per_user
from recbole_edt.evaluate.results import ModelResult

RESAMPLES = 10_000
# Random counts alive at a time while resampling.
_BLOCK_ELEMENTS = 2**22


# ---- paired tests --------------------------------------------------------------------------------------------


def check_comparable(tables: Sequence[pd.DataFrame]) -> None:
    """Whether rank tables have one split, one set of candidates, and the same target for each user.

    Raises: DataError saying what differs.
    """
    first = tables[0].sort_values("user", kind="stable")
    for table in tables:
        for key in ("split_hash", "candidates", "candidates_hash", "seen_items"):
            _check_same(key, first.attrs, table.attrs)
        other = table.sort_values("user", kind="stable")
        if not np.array_equal(first["user"], other["user"]):
            n = len(set(first["user"]) ^ set(other["user"]))
            raise DataError(f"rank tables differ in their users ({n} are in one of them only); train both anew")
        n = int((first["item"].to_numpy() != other["item"].to_numpy()).sum())
        if n:
            raise DataError(f"rank tables differ in the targets of {n} users; evaluate both on one split")


def compare_seeds(
    seeds_a: Sequence[pd.DataFrame], seeds_b: Sequence[pd.DataFrame], metric: str = "ndcg@10", seed: int = 42
) -> dict[str, Any]:
    """Compare two models user by user, by each user's mean over trainings.

    Args:
        seeds_a: rank tables of the one model, one per seed.
        seeds_b: of the other, on the same targets and candidates, with the same seeds in the same order.
        metric: such as ``ndcg@10``.
        seed: of the bootstrap.

    Returns: ``metric``, ``users``, ``mean_a``, ``mean_b``, ``difference`` (a - b), ``low`` and ``high`` (its
        bootstrap 95 % interval over users) and ``p`` (Wilcoxon signed rank, two-sided; users without a
        difference are left out).
    Raises: DataError if the tables cannot be compared, ConfigError for an unknown metric.
    """
    for pair in zip(seeds_a, seeds_b, strict=True):
        check_comparable(pair)
    a, b = (np.mean([values_by_user(ranks, metric) for ranks in seeds], axis=0) for seeds in (seeds_a, seeds_b))
    # Equal differences must tie in the test, whatever their rounding.
    difference = np.round(a - b, 12)
    low, high = bootstrap_interval(difference, seed)
    p = float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
    means = {"mean_a": float(a.mean()), "mean_b": float(b.mean()), "difference": float((a - b).mean())}
    return {"metric": metric, "users": len(a), **means, "low": low, "high": high, "p": p}


def bootstrap_interval(differences: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over `RESAMPLES` draws of the users with replacement."""
    value, count = np.unique(differences, return_counts=True)
    generator = np.random.default_rng(seed)
    n, block = len(differences), max(1, _BLOCK_ELEMENTS // len(value))
    # How often each distinct value is drawn is multinomial: the same bootstrap without drawing every user.
    means = [
        generator.multinomial(n, count / n, size=min(block, RESAMPLES - done)) @ value / n
        for done in range(0, RESAMPLES, block)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(pvalues: Sequence[float]) -> np.ndarray:
    """Holm's correction: p-values that may be held against one level although several were computed."""
    p = np.asarray(pvalues, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(corrected, 1)


def paired_tests_over_seeds(
    runs: Mapping[str, Sequence[ModelResult]], reference: str, metric: str = "ndcg@10", seed: int = 42
) -> pd.DataFrame:
    """Compare one model with every other, for all users and for each domain, Holm-corrected as one family.

    Args:
        runs: by model a run per seed, the same seeds in the same order.
        reference: name of the one.
        metric: such as ``ndcg@10``.
        seed: of the bootstrap.

    Returns: columns ``model`` (the other), ``domain``, ``users``, ``difference`` (reference - other), ``low``,
        ``high``, ``p`` and ``p_holm``.
    Raises: ConfigError if no run has the name ``reference``, DataError if the runs cannot be compared.
    """
    tables = _by_domain(runs, reference)
    rows = [
        {"model": name, "domain": domain, **compare_seeds(own, tables[name][domain], metric, seed)}
        for name in runs
        for domain, own in tables[reference].items()
        if name != reference and len(own[0])
    ]
    columns = ["model", "domain", "users", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_holm=holm(table["p"].to_list()))


def tests_over_seeds(
    runs: Mapping[str, Sequence[ModelResult]], reference: str, metric: str = "ndcg@10"
) -> pd.DataFrame:
    """Whether a model's mean over seeds is higher than every other's, Holm-corrected as one family.

    Unlike ``paired_tests_over_seeds`` it asks whether another training would say the same, not other users.

    Returns: columns ``model`` (the other), ``domain``, ``seeds``, ``p`` (`one_sided`) and ``p_holm``; NaN where a
        model has a single seed.
    Raises: ConfigError if no run has the name ``reference``.
    """
    means = {
        name: {
            domain: [float(values_by_user(ranks, metric).mean()) for ranks in tables if len(ranks)]
            for domain, tables in parts.items()
        }
        for name, parts in _by_domain(runs, reference).items()
    }
    rows = [
        {"model": name, "domain": domain, "seeds": len(own), "p": one_sided(own, means[name][domain])}
        for name in runs
        for domain, own in means[reference].items()
        if name != reference and own
    ]
    table = pd.DataFrame(rows, columns=["model", "domain", "seeds", "p"])
    return table.assign(p_holm=holm(table["p"].to_list()))


def one_sided(first: Sequence[float], second: Sequence[float]) -> float:
    """Welch's t-test of two samples: p is small where the mean of ``first`` is the higher one.

    Samples that do not vary and are equal give 1; fewer than two values give NaN.
    """
    # Means that are equal must not differ by their rounding.
    a, b = np.round(np.asarray(first, float), 12), np.round(np.asarray(second, float), 12)
    if min(len(a), len(b)) < 2:
        return float("nan")
    if not (np.ptp(a) or np.ptp(b)):  # a standard deviation of equal values need not be 0
        return 0.0 if a[0] > b[0] else 1.0
    moments = (one for sample in (a, b) for one in (sample.mean(), sample.std(ddof=1), len(sample)))
    return float(stats.ttest_ind_from_stats(*moments, equal_var=False, alternative="greater").pvalue)


def parse_metric(metric: str) -> tuple[str, int]:
    """``ndcg@10`` to its parts; ConfigError if it is no such name."""
    match = re.fullmatch(r"([a-z]+)@([1-9]\d*)", metric)
    if match is None or match[1] not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; use {', '.join(METRICS)} with a cut-off, as in ndcg@10")
    return match[1], int(match[2])


# ---- details -------------------------------------------------------------------------------------------------


def runs_by_name(runs: Sequence[ModelResult]) -> dict[str, ModelResult]:
    named = {run.name: run for run in runs}
    if len(named) < len(runs):
        raise ConfigError(f"two runs have one name among {', '.join(run.name for run in runs)}; rename one")
    return named


def _check_same(key: str, first: Mapping[Any, Any], other: Mapping[Any, Any]) -> None:
    if key not in first or key not in other:
        raise DataError(f"a rank table does not say its {key}; read it with `read_ranks`, or evaluate again")
    if first[key] != other[key]:
        raise DataError(
            f"rank tables differ in {key} ({first[key]!r} and {other[key]!r}) and cannot be compared; "
            "evaluate both models in one run directory"
        )


def values_by_user(ranks: pd.DataFrame, metric: str) -> np.ndarray:
    name, k = parse_metric(metric)
    ordered = ranks.sort_values("user", kind="stable")
    return per_user(ordered["higher"], ordered["tied"], name, k)


def _by_domain(
    runs: Mapping[str, Sequence[ModelResult]], reference: str
) -> dict[str, dict[str, list[pd.DataFrame]]]:
    """By model, and by domain after that of all users, a rank table per seed; ConfigError without the reference."""
    if reference not in runs:
        raise ConfigError(f"no model is called {reference!r}; there are {', '.join(runs)}")
    tables = {name: [run.ranks for run in several] for name, several in runs.items()}
    return {
        name: {
            OVERALL: several,
            **{domain: [ranks[ranks["domain"] == domain] for ranks in several] for domain in domains_of(several[0])},
        }
        for name, several in tables.items()
    }
