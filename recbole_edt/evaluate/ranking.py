"""How many candidates score above and level with each held-out item, in memory and on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # saved ranks can be read without torch
    from torch import Tensor

    from recbole_edt.evaluate.candidates import CandidateTable, SeenItems

from recbole_edt.errors import ConfigError, DataError, EDTError
from recbole_edt.evaluate.metrics import GROUP_LABELS, TOPK, metrics_from_ranks
from recbole_edt.files import read_json, write_json, write_safely
from recbole_edt.models.parts.batch_fields import VectorScores

MODES = ("domain", "all", "sampled")
RANK_COLUMNS = ("user", "item", "domain", "higher", "tied")
OWN_COLUMNS = ("own_higher", "own_tied")
"""How many of the user's own earlier items score above and level with the target; see `with_seen_items`."""

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
        seen: what each user had before the target; they are counted apart, in `OWN_COLUMNS`.
        masked: whether they are no candidates. Among stored negatives there are none.

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
        seen: SeenItems | None = None,
        masked: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"candidates: unknown value {mode!r}; use one of {', '.join(MODES)}")
        if (mode == "sampled") != (candidates is not None):
            raise ConfigError(f"candidates: stored negatives go with `sampled` alone; the mode is {mode!r}")
        self.item_domain = item_domain
        self.candidate_mask = candidate_mask.bool() & (item_domain > 0)
        self.mode, self.candidates, self.domains = mode, candidates, tuple(domains)
        self.user_field, self.model_name = user_field, model_name
        self.seen, self.masked = seen, masked
        self._parts: list[np.ndarray] = []
        self._vectors: dict[int, Tensor] = {}  # of each domain's candidates, for one pass
        self._set_columns()

    def _set_columns(self) -> None:
        """Item ids of each domain's candidates, ascending, and the place of each item among them."""
        self.columns = {d: (self.candidate_mask & (self.item_domain == d)).nonzero().squeeze(1) for d in (1, 2)}
        self.place = self.item_domain.new_zeros(len(self.item_domain)).long()
        for columns in self.columns.values():
            self.place[columns] = columns.new_tensor(range(len(columns)))

    def data_collect(self, train_data: Any) -> None:
        """Nothing is needed from the training data."""

    def model_collect(self, model: Any) -> None:
        """Nothing is needed from the model."""

    def eval_batch_collect(
        self, scores: Tensor | VectorScores, interaction: Any, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Rank the targets of a batch.

        Args:
            scores: ``[B, N]``, or the vectors that they are products of.
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
        higher, tied, own_higher, own_tied = (item.new_zeros(len(item)) for _ in range(4))
        for chunk, candidate, own in self._candidate_scores(scores, row, user, item, domain):
            self._check_finite(candidate, user[chunk])
            target = candidate.gather(1, own.unsqueeze(1))  # out of the same product as the others
            higher[chunk] = _count(candidate, target, "gt")
            tied[chunk] = _count(candidate, target, "ge") - higher[chunk] - 1  # the target itself
            if self.seen is not None and self.candidates is None:
                seen, among = self._seen_columns(user[chunk], item[chunk], domain[chunk])
                score = candidate.gather(1, seen)
                own_higher[chunk] = ((score > target) & among).sum(1)
                own_tied[chunk] = ((score == target) & among).sum(1)
        if self.masked:
            higher, tied = higher - own_higher, tied - own_tied
        columns = (user, item, domain, higher, tied, own_higher, own_tied)
        self._parts.append(np.column_stack([x.cpu().numpy() for x in columns]))

    def get_data_struct(self) -> pd.DataFrame:
        """The rank table of everything collected so far, ordered by user id; the collector starts anew."""
        columns = [*RANK_COLUMNS, *OWN_COLUMNS]
        rows = np.concatenate([np.empty((0, len(columns)), dtype=np.int64), *self._parts])
        self._parts, self._vectors = [], {}
        ranks = pd.DataFrame(rows[np.argsort(rows[:, 0], kind="stable")], columns=columns)
        ranks["domain"] = np.array(["", *self.domains], dtype=object)[ranks["domain"].to_numpy()]
        ranks.attrs = {"domains": list(self.domains), "candidates": self.mode, "candidates_hash": ""}
        ranks.attrs["seen_items"] = "masked" if self.masked or self.candidates is not None else "ranked"
        if self.candidates is not None:
            n = self.candidates.ids.shape[1]
            ranks.attrs |= {"candidates": f"sampled-{n}", "candidates_hash": self.candidates.hash}
        return ranks

    def _move_to(self, device: Any) -> None:
        if self.item_domain.device != device:
            self.item_domain, self.candidate_mask = self.item_domain.to(device), self.candidate_mask.to(device)
            self._set_columns()
        if self.seen is not None and self.seen.item.device != device:
            self.seen = self.seen.to(device)

    def _seen_columns(self, user: Tensor, item: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, K]`` place of each user's own items among the candidates' scores, and whether they are there.

        The target is not among them, even where the user had it before.
        """
        assert self.seen is not None
        own = self.seen.of(user)
        elsewhere = self.item_domain[own] != domain.unsqueeze(1)
        among = self.candidate_mask[own] & (own != item.unsqueeze(1))
        n_columns = domain.new_tensor([0, len(self.columns[1]), len(self.columns[2])])
        # In the mode `all` the other domain's candidates come after those of the target's.
        place = self.place[own] + elsewhere * n_columns[domain].unsqueeze(1)
        if self.mode == "domain":
            among &= ~elsewhere
        return place.where(among, 0), among

    def _candidate_scores(
        self, scores: Tensor | VectorScores, row: Tensor, user: Tensor, item: Tensor, domain: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pieces of the targets, the scores ``[R, C]`` of their candidates, and the target's column among these."""
        if self.candidates is not None:
            negatives = self.candidates.ids[self.candidates.rows_of(user.cpu().numpy())]
            ids = item.new_tensor(np.hstack([item.cpu().numpy()[:, None], negatives]))
            for chunk in _pieces(item.new_tensor(range(len(item))), ids.shape[1]):
                yield chunk, _gathered(scores, row[chunk], domain[chunk], ids[chunk]), item.new_zeros(len(chunk))
            return
        for own_domain in (1, 2):
            part = (domain == own_domain).nonzero().squeeze(1)
            # The target's own domain comes first, so that its place is the same in both modes.
            domains = (own_domain, 3 - own_domain) if self.mode == "all" else (own_domain,)
            for chunk in _pieces(part, sum(len(self.columns[d]) for d in domains)):
                blocks = [self._block(scores, row[chunk], d) for d in domains]
                yield chunk, _side_by_side(blocks), self.place[item[chunk]]

    def _block(self, scores: Tensor | VectorScores, row: Tensor, d: int) -> Tensor:
        """Scores of all candidates of one domain for some rows."""
        if not isinstance(scores, VectorScores):
            return scores[row].index_select(1, self.columns[d])
        if d not in self._vectors:
            self._vectors[d] = scores.item[self.columns[d]]
        return scores.of_domain(d)[row] @ self._vectors[d].T

    def _check_targets(self, user: Tensor, item: Tensor) -> None:
        wrong = ~self.candidate_mask[item]
        if wrong.any():
            raise EDTError(
                f"the target of user id {user[wrong][0]} (item id {item[wrong][0]}) is no real item of a "
                "domain; held-out items must come from the raw interactions"
            )

    def _check_finite(self, candidate: Tensor, user: Tensor) -> None:
        if candidate.sum(dim=1).isfinite().all():  # a score that is not finite would show in the sum
            return
        wrong = ~candidate.isfinite().all(dim=1)
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
    write_json(path.with_suffix(".json"), {**ranks.attrs, "rows": len(ranks)})


def read_ranks(path: Path) -> pd.DataFrame:
    """Read what `write_ranks` wrote; tokens are str, and ``attrs`` hold what was ranked.

    Raises: DataError if a file is missing, cut short, or is no rank table.
    """
    about = read_json(path.with_suffix(".json"))
    try:
        ranks = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        ranks = ranks.astype({name: np.int64 for name in ("higher", "tied", *OWN_COLUMNS) if name in ranks})
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a rank table ({error}); {_remedy(path)}") from error
    _check_columns(ranks, path)
    if (n := about.pop("rows", len(ranks))) != len(ranks):
        raise DataError(f"{path}: {len(ranks)} rows instead of {n}; {_remedy(path)}")
    for group in GROUP_LABELS.keys() & set(ranks.columns):
        ranks[group] = pd.Categorical(ranks[group], GROUP_LABELS[group], ordered=True)
    ranks.attrs = {"seen_items": "ranked", **about}  # earlier versions masked none and did not say so
    return ranks


def with_seen_items(ranks: pd.DataFrame, seen_items: str) -> pd.DataFrame:
    """The same targets with the users' own earlier items ``masked`` or ``ranked``, whichever the table has now.

    Training was stopped by the ranking that the table has. Stored negatives hold no own items: nothing changes there.

    Raises: DataError if the table does not count them.
    """
    if ranks.attrs.get("seen_items") == seen_items or str(ranks.attrs.get("candidates")).startswith("sampled-"):
        return ranks
    if missing := set(OWN_COLUMNS) - set(ranks.columns):
        raise DataError(f"a rank table lacks {' and '.join(sorted(missing))}, which an earlier version did not count")
    sign = -1 if seen_items == "masked" else 1
    own = {name: ranks[name] + sign * ranks[f"own_{name}"] for name in ("higher", "tied")}
    changed = ranks.assign(**own)
    changed.attrs = {**ranks.attrs, "seen_items": seen_items, "seen_why": "training was stopped by the other ranking"}
    return changed


def _remedy(path: Path) -> str:
    """What to do about a damaged table: other candidates than a run's own are ranked again when they are asked for."""
    return f"delete {path.parent} to train anew" if path.name == "ranks.csv" else "delete it, it is made again"


def _pieces(part: Tensor, width: int) -> tuple[Tensor, ...]:
    return part.split(max(1, _CHUNK_ELEMENTS // max(width, 1)))


def _gathered(scores: Tensor | VectorScores, row: Tensor, domain: Tensor, ids: Tensor) -> Tensor:
    """Scores ``[R, C]`` of the items ``ids [R, C]``, all of the domain given for their row."""
    if not isinstance(scores, VectorScores):
        return scores[row.unsqueeze(1), ids]
    user = scores.user[row] if scores.user.dim() == 2 else scores.user[domain - 1, row]
    return (scores.item[ids] @ user.unsqueeze(-1)).squeeze(-1)


def _count(candidate: Tensor, target: Tensor, comparison: str) -> Tensor:
    """How many of each row compare so to its target, ``[R]`` int64."""
    import torch

    # Into floats: their sum, exact up to 16 million, takes a tenth of the time of counting truth values.
    found = torch.empty_like(candidate, dtype=torch.float32)
    getattr(torch, comparison)(candidate, target, out=found)
    return found.sum(dim=1).long()


def _side_by_side(blocks: list[Tensor]) -> Tensor:
    import torch

    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _check_columns(ranks: pd.DataFrame, path: Path) -> None:
    missing = [column for column in RANK_COLUMNS if column not in ranks.columns]
    if missing:
        raise DataError(f"{path}: not a rank table, it lacks the columns {', '.join(missing)}")
