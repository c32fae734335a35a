"""Ranks of held-out items, one row per user, and the metrics that follow from them.

A model's scores become two numbers per user: how many candidates scored higher than the target, and how many
others tied with it. Every metric, per domain and per group, derives from these two. A rank table is a data
frame with the columns `RANK_COLUMNS`; its ``attrs`` say what was ranked, so that only like meets like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

if TYPE_CHECKING:  # saved ranks can be read without torch

    pass

from recbole_edt.data.two_domains import OVERALL

TOPK = (5, 10, 20)

# Gain of a target at position 1, 2, ...; no gain after position k.
METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hit": lambda position: np.ones(len(position)),
    "ndcg": lambda position: 1 / np.log2(position + 1),
    "mrr": lambda position: 1 / position,
}

HISTORY_STARTS = (0, 5, 10, 15, 20)
RATIO_STARTS = (0.0, 0.2, 0.4, 0.6, 0.8)
HEAD_SHARE = 0.2
GROUP_LABELS: dict[str, list[str]] = {
    "history": ["0-5", "5-10", "10-15", "15-20", "20+"],
    "popularity": ["head", "tail"],
    "ratio": ["0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0"],
    "target_domain_history": ["with", "without"],
}


def per_user(higher: ArrayLike, tied: ArrayLike, metric: str, k: int) -> np.ndarray:
    """A metric for each target: its mean over the positions that the ties leave open.

    The target of a row is equally likely at each of the positions ``higher + 1 ... higher + tied + 1``, so a
    model that scores everything alike gets exactly chance.

    Args:
        higher: ``[R]`` candidates scored above the target.
        tied: ``[R]`` other candidates scored the same.
        metric: one of `METRICS`.
        k: the cut-off; positions after it count 0.

    Returns: ``[R]`` float64.
    """
    higher, tied = np.asarray(higher, dtype=np.int64), np.asarray(tied, dtype=np.int64)
    gain = METRICS[metric](np.arange(1, k + 1))
    total = np.concatenate([[0.0], np.cumsum(gain)])  # of the first 0, 1, ..., k positions
    return (total[np.minimum(higher + tied + 1, k)] - total[np.minimum(higher, k)]) / (tied + 1)


def metrics_from_ranks(higher: ArrayLike, tied: ArrayLike, topk: Sequence[int] = TOPK) -> dict[str, float]:
    """Means over users of every metric at every cut-off (``hit@5`` ...); NaN where there is no user."""
    metrics = {f"{metric}@{k}": per_user(higher, tied, metric, k) for metric in METRICS for k in topk}
    return {name: float(values.mean()) if len(values) else float("nan") for name, values in metrics.items()}


def domain_metrics(ranks: pd.DataFrame, topk: Sequence[int] = TOPK) -> pd.DataFrame:
    """One row per domain and one for all users (`OVERALL`): ``users`` and the metrics."""
    parts = {domain: ranks[ranks["domain"] == domain] for domain in domains_of(ranks)} | {OVERALL: ranks}
    rows = {
        name: {"users": len(part), **metrics_from_ranks(part["higher"], part["tied"], topk)}
        for name, part in parts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def domains_of(ranks: pd.DataFrame) -> list[str]:
    """Names of the domains, in the data's order where the table knows it."""
    return list(ranks.attrs.get("domains") or sorted(ranks["domain"].unique()))


def group_metrics(
    ranks: pd.DataFrame, groups: Mapping[str, ArrayLike], topk: Sequence[int] = TOPK
) -> pd.DataFrame:
    """Metrics of users who share a label.

    Args:
        ranks: the rank table.
        groups: name of a grouping to ``[R]`` labels, one per row; a missing label leaves the row out.
        topk: the cut-offs.

    Returns: a row per grouping and label that occurs: ``group``, ``label``, ``users`` and the metrics.
        Labels come in the order of a categorical, else sorted.
    """
    higher, tied = ranks["higher"].to_numpy(), ranks["tied"].to_numpy()
    rows: list[dict[str, Any]] = []
    for group, values in groups.items():
        labels = pd.Categorical(values)  # type: ignore[arg-type]
        for code, label in enumerate(labels.categories):
            part = labels.codes == code
            if part.any():
                metrics = metrics_from_ranks(higher[part], tied[part], topk)
                rows.append({"group": group, "label": str(label), "users": int(part.sum()), **metrics})
    return pd.DataFrame(rows, columns=["group", "label", "users", *metrics_from_ranks([], [], topk)])


def standard_groups(
    ranks: pd.DataFrame,
    train_user: np.ndarray,
    train_item: np.ndarray,
    item_domain: np.ndarray,
    real_item: np.ndarray,
) -> dict[str, Any]:
    """Labels of each row of a rank table by what its user and its target had in training.

    ``history``: the user's training interactions, both domains; ``5-10`` means 5 to 9.
    ``popularity``: ``head`` for a target as frequent as the top 20 % of real items (ties join the head, so
    that the numbering of items is no matter), else ``tail``.
    ``ratio``: ``|nA - nB| / (nA + nB)`` of the user's training interactions.
    ``target_domain_history``: whether the user has any in the target's domain.

    Args:
        ranks: the rank table, users and items as ids.
        train_user: ``[M]`` users of the raw training interactions, without inserted rows.
        train_item: ``[M]`` their items.
        item_domain: ``[N]`` 1 for the first domain, 2 for the second.
        real_item: ``[N]`` bool.

    Returns: an ordered ``pandas.Categorical`` of ``[R]`` labels by name of the grouping.
    """
    user, item = ranks["user"].to_numpy(), ranks["item"].to_numpy()
    n_users = 1 + max(user.max(initial=0), train_user.max(initial=0))
    per_domain = np.stack(
        [np.bincount(train_user[item_domain[train_item] == d], minlength=n_users) for d in (1, 2)], axis=1
    )[user]  # [R, 2]
    length = per_domain.sum(axis=1)
    ratio = np.abs(per_domain[:, 0] - per_domain[:, 1]) / np.maximum(length, 1)
    in_target_domain = per_domain[np.arange(len(user)), item_domain[item] - 1]
    in_tail = ~_is_head(np.bincount(train_item, minlength=len(item_domain)), real_item)[item]
    codes = {
        "history": np.digitize(length, HISTORY_STARTS[1:]),
        "popularity": in_tail.astype(int),
        "ratio": np.digitize(ratio, RATIO_STARTS[1:]),
        "target_domain_history": (in_target_domain == 0).astype(int),
    }
    return {
        group: pd.Categorical.from_codes(code, pd.Index(GROUP_LABELS[group]), ordered=True)
        for group, code in codes.items()
    }


def _is_head(count: np.ndarray, real_item: np.ndarray) -> np.ndarray:
    """``[N]`` True for items at least as frequent as the last of the top share of real items."""
    of_real = np.sort(count[real_item])[::-1]
    threshold = of_real[int(np.ceil(HEAD_SHARE * len(of_real))) - 1]
    return (count >= threshold) & (count > 0)
