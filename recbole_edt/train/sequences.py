"""Sequences of a data set, sliced lazily from flat rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_edt.data.split import leave_one_out_marks


@dataclass(frozen=True)
class Sequences:
    """All users' sequences in one flat array, ordered by (user, time, position in the file).

    ``M`` rows; ``item`` and ``user`` are RecBole ids (0 is padding), ``first[m]`` is where the user of row ``m``
    begins, ``mark`` is TRAIN, VALID or TEST, ``generated`` is True for inserted rows.
    ``of_domain[d]`` holds the rows' items of one domain, ``seen[d][m]`` counts them before row ``m`` (``[M + 1]``).
    """

    user: Tensor
    item: Tensor
    first: Tensor
    mark: Tensor
    generated: Tensor
    of_domain: tuple[Tensor, Tensor]
    seen: tuple[Tensor, Tensor]

    @classmethod
    def build(cls, user: Tensor, item: Tensor, generated: Tensor, item_domain: Tensor) -> Sequences:
        """From flat ``[M]`` columns, users non-decreasing, and ``item_domain [N]`` (0 padding, 1 A, 2 B)."""
        counts = torch.bincount(user)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        mark = leave_one_out_marks(offsets.numpy(), generated.numpy())
        of_domain, seen = [], []
        for domain in (1, 2):
            mine = item_domain[item] == domain
            of_domain.append(item[mine])
            seen.append(torch.cat([torch.zeros(1, dtype=torch.long), mine.cumsum(0)]))
        return cls(
            user,
            item,
            offsets[user],
            torch.from_numpy(mark),
            generated,
            (of_domain[0], of_domain[1]),
            (seen[0], seen[1]),
        )

    def history(
        self, first: Tensor, end: Tensor, max_length: int, width: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The last ``max_length`` items of rows ``first:end``: padded ``[B, L]`` and lengths ``[B]``."""
        return gather_slices(self.item, torch.maximum(first, end - max_length), end, width)

    def domain_history(self, d: int, first: Tensor, end: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
        """The same within one domain: split first, then cut to its last ``max_length``."""
        start, stop = self.seen[d][first], self.seen[d][end]
        return gather_slices(self.of_domain[d], torch.maximum(start, stop - max_length), stop)

    def raw(self, item_domain: Tensor) -> Sequences:
        """The same without the inserted rows."""
        if not self.generated.any():
            return self
        keep = ~self.generated
        return Sequences.build(self.user[keep], self.item[keep], self.generated[keep], item_domain)


def gather_slices(flat: Tensor, start: Tensor, end: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Cut slices ``flat[start:end]`` and pad them with 0 on the right.

    Returns: ``[B, L]`` with ``L = width`` or the longest slice (at least 1), and lengths ``[B]``.
    """
    length = end - start
    longest = max(int(length.max()), 1) if width is None else width
    position = torch.arange(longest)
    inside = position < length.unsqueeze(1)
    index = (start.unsqueeze(1) + position).clamp(max=max(len(flat) - 1, 0))
    if not len(flat):
        return torch.zeros(len(start), longest, dtype=torch.long), length
    return flat[index] * inside, length
