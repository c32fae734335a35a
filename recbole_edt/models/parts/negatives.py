"""Items of the target's domain that the user does not have, drawn anew for every batch."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import torch
from torch import Tensor

from recbole_edt.errors import DataError

# Far above any pool, so that the remainder of a random integer is uniform to within 1e-13.
RANDOM_RANGE = 2**62


class AllowedItems:
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
        check_pools(pools)
        self._allowed = AllowedItems(pools, user, item, n_users)

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
        random = torch.randint(RANDOM_RANGE, segment.shape, generator=generator, device=segment.device)
        return allowed.item_at(segment, random % choices)


def check_pools(pools: Sequence[Sized]) -> None:
    for domain, pool in enumerate(pools):
        if len(pool) == 0:
            raise DataError(f"domain {domain} has no item to draw negatives from; check the column `domain`")
