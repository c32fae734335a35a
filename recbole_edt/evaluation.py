"""Ranks of held-out items, one row per user, and the metrics that follow from them.

A model's scores become two numbers per user: how many candidates scored higher than the target, and how many
others tied with it. Every metric, per domain and per group, derives from these two. A rank table is a data
frame with the columns `RANK_COLUMNS`; its ``attrs`` say what was ranked, so that only like meets like.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from recbole_edt.errors import ConfigError, DataError, EDTError
from recbole_edt.files import read_json, write_json, write_safely

if TYPE_CHECKING:  # saved ranks can be read without torch
    from torch import Tensor

    from recbole_edt.candidates import CandidateTable

MODES = ("domain", "all", "sampled")
RANK_COLUMNS = ("user", "item", "domain", "higher", "tied")
OVERALL = "overall"
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

# Scores looked at together: few enough to stay in a processor's cache.
_CHUNK_ELEMENTS = 2**20


class RankCollector:
    """Counts the candidates above every held-out item; stands where RecBole's ``Collector`` does.

    Candidates are all real items of the target's domain (``domain``), all real items (``all``), or the target
    and its stored negatives (``sampled``). Other columns (padding, virtual items) may hold any score.

    Args:
        item_domain: ``[N]`` 0 for none (padding), 1 for the first domain, 2 for the second.
        candidate_mask: ``[N]`` True for real items.
        mode: one of `MODES`.
        candidates: the stored negatives, in the ids of the scores; for ``sampled`` only.
        domains: names of the two domains, written into the rank table.
        user_field: name of the user id in the interactions.
        model_name: for messages.

    Raises: ConfigError if the mode is unknown, or is ``sampled`` without candidates.
    """

    def __init__(
        self,
        item_domain: Tensor,
        candidate_mask: Tensor,
        mode: str = "domain",
        candidates: CandidateTable | None = None,
        domains: Sequence[str] = ("A", "B"),
        user_field: str = "user_id",
        model_name: str = "the model",
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"candidates: unknown value {mode!r}; use one of {', '.join(MODES)}")
        if (mode == "sampled") != (candidates is not None):
            raise ConfigError(f"candidates: stored negatives go with `sampled` alone; the mode is {mode!r}")
        self.item_domain = item_domain
        self.candidate_mask = candidate_mask.bool() & (item_domain > 0)
        self.mode, self.candidates, self.domains = mode, candidates, tuple(domains)
        self.user_field, self.model_name = user_field, model_name
        self._parts: list[np.ndarray] = []

    def data_collect(self, train_data: Any) -> None:
        """Nothing is needed from the training data."""

    def model_collect(self, model: Any) -> None:
        """Nothing is needed from the model."""

    def eval_batch_collect(
        self, scores: Tensor, interaction: Any, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Rank the targets of a batch.

        Args:
            scores: ``[B, N]``.
            interaction: the batch, with the user id field.
            positive_u: ``[R]`` row of ``scores`` of each target.
            positive_i: ``[R]`` item id of each target.

        Raises: EDTError if the score of a candidate is not finite, or a target is no candidate.
        """
        self._move_to(scores.device)
        row, item = positive_u.to(scores.device), positive_i.to(scores.device)
        user = interaction[self.user_field].to(scores.device)[row]
        self._check_targets(user, item)
        domain = self.item_domain[item].long()
        higher, tied = item.new_empty(len(item)), item.new_empty(len(item))
        for part, columns in self._candidates(user, item, domain):
            for chunk, candidate in _candidate_scores(scores, row, part, columns):
                self._check_finite(candidate, user[chunk])
                target = scores[row[chunk], item[chunk]].unsqueeze(1)
                higher[chunk] = (candidate > target).sum(dim=1)
                tied[chunk] = (candidate >= target).sum(dim=1) - higher[chunk] - 1  # the target itself
        self._parts.append(np.column_stack([x.cpu().numpy() for x in (user, item, domain, higher, tied)]))

    def get_data_struct(self) -> pd.DataFrame:
        """The rank table of everything collected so far, ordered by user id; the collector starts anew."""
        rows = np.concatenate([np.empty((0, len(RANK_COLUMNS)), dtype=np.int64), *self._parts])
        self._parts = []
        ranks = pd.DataFrame(rows[np.argsort(rows[:, 0], kind="stable")], columns=list(RANK_COLUMNS))
        ranks["domain"] = np.array(["", *self.domains], dtype=object)[ranks["domain"].to_numpy()]
        ranks.attrs = {"domains": list(self.domains), "candidates": self.mode, "candidates_hash": ""}
        if self.candidates is not None:
            n = self.candidates.ids.shape[1]
            ranks.attrs |= {"candidates": f"sampled-{n}", "candidates_hash": self.candidates.hash}
        return ranks

    def _move_to(self, device: Any) -> None:
        self.item_domain = self.item_domain.to(device)
        self.candidate_mask = self.candidate_mask.to(device)

    def _candidates(self, user: Tensor, item: Tensor, domain: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Groups of targets with their candidates: ``[C]`` columns for all of it, or ``[R, C]``."""
        everyone = (domain > 0).nonzero().squeeze(1)
        if self.candidates is not None:
            negatives = self.candidates.ids[self.candidates.rows_of(user.cpu().numpy())]
            own = item.cpu().numpy()[:, None]
            yield everyone, item.new_tensor(np.hstack([own, negatives]))
        elif self.mode == "all":
            yield everyone, self.candidate_mask.nonzero().squeeze(1)
        else:
            for d in (1, 2):
                in_domain = self.candidate_mask & (self.item_domain == d)
                yield (domain == d).nonzero().squeeze(1), in_domain.nonzero().squeeze(1)

    def _check_targets(self, user: Tensor, item: Tensor) -> None:
        wrong = ~self.candidate_mask[item]
        if wrong.any():
            raise EDTError(
                f"the target of user id {user[wrong][0]} (item id {item[wrong][0]}) is no real item of a "
                "domain; held-out items must come from the raw interactions"
            )

    def _check_finite(self, candidate: Tensor, user: Tensor) -> None:
        lowest, highest = candidate.aminmax(dim=1)
        wrong = ~(lowest.isfinite() & highest.isfinite())  # NaN shows up in both
        if wrong.any():
            raise EDTError(
                f"{self.model_name}: a candidate of user id {user[wrong][0]} has a score that is not finite; "
                "the training diverged (lower learning_rate) or the model masks items that must be ranked"
            )


class RankEvaluator:
    """Metrics of a rank table; stands where RecBole's ``Evaluator`` does.

    Args:
        topk: the cut-offs.

    Attributes:
        ranks: the rank table of the latest call, None before the first.
    """

    def __init__(self, topk: Sequence[int] = TOPK) -> None:
        self.topk = tuple(topk)
        self.ranks: pd.DataFrame | None = None

    def evaluate(self, ranks: pd.DataFrame) -> OrderedDict[str, float]:
        """Overall metrics under RecBole's names (``ndcg@10``); DataError if nothing was ranked."""
        if ranks.empty:
            raise DataError("no held-out item was ranked; check that users have at least 3 interactions")
        self.ranks = ranks
        return OrderedDict(metrics_from_ranks(ranks["higher"], ranks["tied"], self.topk))


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


def write_ranks(ranks: pd.DataFrame, path: Path, user_tokens: np.ndarray, item_tokens: np.ndarray) -> None:
    """Write a rank table as ``path`` (.csv), tokens in place of ids, and its ``attrs`` as a .json beside it.

    Args:
        ranks: of `RankCollector.get_data_struct`; further columns, such as `standard_groups`, are kept. Set
            ``attrs["split_hash"]`` first: tables with different ones are never compared.
        path: the .csv file.
        user_tokens: ``[n_users]`` token of each user id.
        item_tokens: ``[n_items]`` token of each item id.
    """
    user, item = np.asarray(user_tokens)[ranks["user"]], np.asarray(item_tokens)[ranks["item"]]
    with write_safely(path) as temporary:
        ranks.assign(user=user, item=item).to_csv(temporary, index=False, lineterminator="\n")
    write_json(path.with_suffix(".json"), ranks.attrs)


def read_ranks(path: Path) -> pd.DataFrame:
    """Read what `write_ranks` wrote; tokens are str, and ``attrs`` hold what was ranked.

    Raises: DataError if a file is missing, or is no rank table.
    """
    about = read_json(path.with_suffix(".json"))
    try:
        ranks = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        ranks = ranks.astype({"higher": np.int64, "tied": np.int64})
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a rank table ({error}); evaluate the model again") from error
    _check_columns(ranks, path)
    for group in GROUP_LABELS.keys() & set(ranks.columns):
        ranks[group] = pd.Categorical(ranks[group], GROUP_LABELS[group], ordered=True)
    ranks.attrs = about
    return ranks


def _candidate_scores(
    scores: Tensor, row: Tensor, part: Tensor, columns: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a group of targets with the scores of their candidates, the target's own among them."""
    for chunk in part.split(max(1, _CHUNK_ELEMENTS // max(columns.shape[-1], 1))):
        if columns.dim() == 1:
            yield chunk, scores[row[chunk]].index_select(1, columns)
        else:
            yield chunk, scores[row[chunk].unsqueeze(1), columns[chunk]]


def _is_head(count: np.ndarray, real_item: np.ndarray) -> np.ndarray:
    """``[N]`` True for items at least as frequent as the last of the top share of real items."""
    of_real = np.sort(count[real_item])[::-1]
    threshold = of_real[int(np.ceil(HEAD_SHARE * len(of_real))) - 1]
    return (count >= threshold) & (count > 0)


def _check_columns(ranks: pd.DataFrame, path: Path) -> None:
    missing = [column for column in RANK_COLUMNS if column not in ranks.columns]
    if missing:
        raise DataError(f"{path}: not a rank table, it lacks the columns {', '.join(missing)}")
