"""In-domain negatives: drawn anew for training, drawn once and kept for evaluation.

Both draw uniformly from a domain's pool without the items a user knows, exactly and without rejection. The
positions in the pools decide what is drawn, not the ids: pools in the order of the item file give the same
items for the same seed, however a data set numbers them.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_edt.errors import DataError, TooFewItems
from recbole_edt.files import read_json, sha256_of, write_json, write_safely

# Far above any pool, so that the remainder of a random integer is uniform to within 1e-13.
_RANDOM_RANGE = 2**62


class _AllowedItems:
    """The pool of a domain without a user's own items, by rank, for every user and domain (a segment).

    The items a user has in a domain sit at sorted pool positions ``s_0 < s_1 < ...``. Before ``s_j`` there
    are ``s_j - j`` allowed items, so the allowed item of rank ``r`` sits at ``r`` plus the number of ``j``
    with ``s_j - j <= r``.
    """

    def __init__(self, pools: Sequence[Tensor], user: Tensor, item: Tensor, n_users: int) -> None:
        self.n_domains = len(pools)
        self.pool_size = torch.tensor([len(pool) for pool in pools], device=user.device)
        self.pool_start = self.pool_size.cumsum(0) - self.pool_size
        self.pool = torch.cat(list(pools)).to(user.device)
        self.stride = int(self.pool_size.max()) + 1
        segment, position = self._known_positions(user, item)
        n_known = torch.bincount(segment, minlength=n_users * self.n_domains)
        self.first = n_known.cumsum(0) - n_known  # [n_users * n_domains] start of each segment
        order = torch.arange(len(segment), device=user.device) - self.first[segment]
        self.keys = segment * self.stride + position - order  # ascending as a whole
        self.n_allowed = self.pool_size.repeat(n_users) - n_known  # [n_users * n_domains], 0 possible

    def _known_positions(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Segment and pool position of every distinct (user, item) of the pools, sorted."""
        place = self.pool.new_full((int(torch.cat([self.pool, item]).max()) + 1,), -1)  # by item id
        place[self.pool] = torch.arange(len(self.pool), device=self.pool.device)
        if int((place >= 0).sum()) < len(self.pool):
            raise DataError("an item is listed twice in the pools of the domains; list each item once")
        known = place[item] >= 0
        slot = torch.unique(user[known] * len(self.pool) + place[item[known]])  # sorted
        user, place = slot // len(self.pool), slot % len(self.pool)
        domain = torch.bucketize(place, self.pool_start, right=True) - 1
        return user * self.n_domains + domain, place - self.pool_start[domain]

    def segment(self, user: Tensor, domain: Tensor) -> Tensor:
        return user * self.n_domains + domain

    def item_at(self, segment: Tensor, rank: Tensor) -> Tensor:
        """Item of each rank, 0-based; where nothing is allowed, ranks are those of the whole pool."""
        shift = torch.searchsorted(self.keys, segment * self.stride + rank, right=True) - self.first[segment]
        shift = shift.where(self.n_allowed[segment] > 0, 0)
        return self.pool[self.pool_start[segment % self.n_domains] + rank + shift]


class DomainSampler:
    """Training negatives: uniform over a domain's pool without the user's own items.

    A user who has every item of a pool draws from the whole pool.

    Args:
        pools: item ids per domain, each item in one pool only.
        user: ``[M]`` user ids of the interactions that must not be drawn.
        item: ``[M]`` their item ids; ids outside the pools are ignored.
        n_users: user ids are below this.

    Raises: DataError if a pool is empty or an item is listed twice.
    """

    def __init__(self, pools: Sequence[Tensor], user: Tensor, item: Tensor, n_users: int) -> None:
        _check_pools(pools)
        self._allowed = _AllowedItems(pools, user, item, n_users)

    def draw(
        self, user: Tensor, domain: Tensor, n: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``n`` items for each position, independently.

        Args:
            user: ``[T]`` user ids.
            domain: ``[T]`` index into the pools to draw from.
            n: draws per position.
            generator: of the sampler's device; None is torch's own.

        Returns: ``[T, n]`` item ids.
        """
        allowed = self._allowed
        segment = allowed.segment(user, domain).unsqueeze(1).expand(-1, n)  # [T, n]
        choices = allowed.n_allowed[segment]
        choices = choices.where(choices > 0, allowed.pool_size[segment % allowed.n_domains])
        random = torch.randint(_RANDOM_RANGE, segment.shape, generator=generator, device=segment.device)
        return allowed.item_at(segment, random % choices)


@dataclass(frozen=True)
class CandidateTable:
    """Evaluation negatives, drawn once: the same for every model, epoch and batch size.

    Attributes:
        user: ``[R]`` int64 user ids, each once.
        ids: ``[R, n]`` int64 item ids, ascending in a row, none twice, the target not among them.
        seed: what they were drawn with.
        hash: of users and ids: two runs with one hash share candidates.
    """

    user: np.ndarray
    ids: np.ndarray
    seed: int
    hash: str

    @classmethod
    def build(
        cls,
        user: np.ndarray,
        domain: np.ndarray,
        pools: Sequence[np.ndarray],
        history_user: np.ndarray,
        history_item: np.ndarray,
        n: int = 100,
        seed: int = 42,
    ) -> CandidateTable:
        """Draw ``n`` items per user from the target's domain, without replacement.

        Args:
            user: ``[R]`` users to evaluate, each once.
            domain: ``[R]`` domain of each user's target, an index into the pools.
            pools: real item ids per domain.
            history_user: ``[M]`` users of all raw interactions, held-out ones included.
            history_item: ``[M]`` their items; never drawn for their user.
            n: how many per user.
            seed: of the draw.

        Raises: TooFewItems if a user has fewer than ``n`` items left, DataError if a pool is empty or repeats an item.
        """
        _check_pools(pools)
        user, domain = np.asarray(user, dtype=np.int64), np.asarray(domain, dtype=np.int64)
        _check_users(user)
        n_users = 1 + max(int(user.max(initial=-1)), int(np.max(history_user, initial=-1)))
        known = _tensor(history_user), _tensor(history_item)
        allowed = _AllowedItems([_tensor(pool) for pool in pools], *known, n_users)
        segment = allowed.segment(_tensor(user), _tensor(domain))
        n_allowed = allowed.n_allowed[segment]
        _check_enough(user, n_allowed, n)
        rank = _distinct_ranks(n_allowed, n, torch.Generator().manual_seed(seed))
        ids = allowed.item_at(segment.unsqueeze(1).expand(-1, n), rank).sort(dim=1).values.numpy()
        return cls(user, ids, seed, sha256_of(user, ids))

    def rows_of(self, user: np.ndarray) -> np.ndarray:
        """Row of each user in the table; DataError if the table lacks one."""
        order = np.argsort(self.user)
        place = np.minimum(np.searchsorted(self.user, user, sorter=order), len(order) - 1)
        rows = order[place]
        if not np.array_equal(self.user[rows], user):
            missing = np.asarray(user)[self.user[rows] != user]
            raise DataError(
                f"{len(missing)} users have no candidates (the first: user id {missing[0]}); "
                "delete the stored candidates so that they are drawn again for this data"
            )
        return rows

    def save(self, path: Path) -> None:
        """Write ``path`` (.npy, ``[R, 1 + n]``: user, then candidates) and a .json with the hash."""
        with write_safely(path) as temporary, open(temporary, "wb") as file:
            np.save(file, np.column_stack([self.user, self.ids]))
        write_json(path.with_suffix(".json"), {"hash": self.hash, "n": self.ids.shape[1], "seed": self.seed})

    @classmethod
    def load(cls, path: Path) -> CandidateTable:
        """Read what `save` wrote; DataError if a file is missing, damaged or does not fit its hash."""
        meta = read_json(path.with_suffix(".json"))
        try:
            stored = np.load(path, allow_pickle=False)
            user, ids = stored[:, 0].copy(), stored[:, 1:].copy()
            intact = sha256_of(user, ids) == meta["hash"]
        except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as stored candidates ({error}); delete it") from error
        if not intact:
            raise DataError(f"{path}: does not fit the hash in {path.with_suffix('.json').name}; delete both")
        return cls(user, ids, int(meta["seed"]), str(meta["hash"]))


def _distinct_ranks(n_allowed: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``[R, n]``: distinct ranks below ``n_allowed``, every set equally likely (R. Floyd's method)."""
    chosen = n_allowed.new_full((len(n_allowed), n), -1)
    for column in range(n):
        last = n_allowed - n + column
        rank = torch.randint(_RANDOM_RANGE, last.shape, generator=generator) % (last + 1)
        taken = (chosen[:, :column] == rank.unsqueeze(1)).any(dim=1)
        chosen[:, column] = torch.where(taken, last, rank)
    return chosen


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _check_pools(pools: Sequence[Sized]) -> None:
    for domain, pool in enumerate(pools):
        if len(pool) == 0:
            raise DataError(f"domain {domain} has no item to draw negatives from; check the column `domain`")


def _check_users(user: np.ndarray) -> None:
    users, count = np.unique(user, return_counts=True)
    if (count > 1).any():
        raise DataError(f"user id {users[count > 1][0]} is listed twice; expected one target per user")


def _check_enough(user: np.ndarray, n_allowed: Tensor, n: int) -> None:
    short = (n_allowed < n).numpy()
    if short.any():
        fewest = int(n_allowed.min())
        raise TooFewItems(
            f"cannot draw {n} candidates for {int(short.sum())} users (the first: user id {user[short][0]}): "
            f"without a user's own items as few as {fewest} items of the target's domain are left; "
            "use at most that many, or rank all items of the domain (`candidates: domain`)"
        )
