"""In-domain negatives: drawn anew for training, drawn once and kept for evaluation.

Both draw uniformly from a domain's pool without the items a user knows, exactly and without rejection. The
positions in the pools decide what is drawn, not the ids: pools in the order of the item file give the same
items for the same seed, however a data set numbers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_edt.errors import DataError, TooFewItems
from recbole_edt.files import read_json, sha256_of, write_json, write_safely
from recbole_edt.models.parts.negatives import RANDOM_RANGE, AllowedItems, check_pools


@dataclass(frozen=True)
class SeenItems:
    """The items that each user had before the target: on data without repeats the target is never one of them.

    Attributes:
        offsets: ``[U + 1]``, the items of user ``u`` are ``item[offsets[u]:offsets[u + 1]]``.
        item: ``[M]`` item ids, each once per user.
    """

    offsets: Tensor
    item: Tensor

    @classmethod
    def build(cls, user: Tensor, item: Tensor, n_users: int) -> SeenItems:
        """From the ``[M]`` rows of histories, in any order."""
        pairs = torch.stack([user, item], 1).unique(dim=0)
        counts = torch.bincount(pairs[:, 0], minlength=n_users)
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), pairs[:, 1])

    def of(self, user: Tensor) -> Tensor:
        """``[R, K]`` items of each user ``[R]``, 0 where a user has fewer than the one with most."""
        start, length = self.offsets[user], self.offsets[user + 1] - self.offsets[user]
        place = torch.arange(int(length.max()), device=user.device)  # [K]
        inside = place < length.unsqueeze(1)
        return self.item[(start.unsqueeze(1) + place).where(inside, 0)].where(inside, 0)

    def to(self, device: Any) -> SeenItems:
        """The same on another device."""
        return SeenItems(self.offsets.to(device), self.item.to(device))


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
        check_pools(pools)
        user, domain = np.asarray(user, dtype=np.int64), np.asarray(domain, dtype=np.int64)
        _check_users(user)
        n_users = 1 + max(int(user.max(initial=-1)), int(np.max(history_user, initial=-1)))
        known = _tensor(history_user), _tensor(history_item)
        allowed = AllowedItems([_tensor(pool) for pool in pools], *known, n_users)
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
        rank = torch.randint(RANDOM_RANGE, last.shape, generator=generator) % (last + 1)
        taken = (chosen[:, :column] == rank.unsqueeze(1)).any(dim=1)
        chosen[:, column] = torch.where(taken, last, rank)
    return chosen


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


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
