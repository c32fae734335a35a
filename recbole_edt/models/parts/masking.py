"""Items of a sequence hidden at random, as BERT4Rec trains."""

from __future__ import annotations

import torch
from torch import Tensor


def other_items(target: Tensor, n_items: int) -> Tensor:
    """One item per target, uniform over all others (RecBole's sampling for sequential models)."""
    drawn = torch.randint(1, n_items - 1, target.shape, device=target.device)
    return drawn + (drawn >= target)


def random_mask(length: Tensor, width: int, mask_ratio: float, last_ratio: float) -> Tensor:
    """``[B, width]`` bool, at least one True per row: a random share of the items, or only the last one."""
    position = torch.arange(width, device=length.device)
    inside = position < length.unsqueeze(1)
    masked = inside & (torch.rand(inside.shape, device=length.device) < mask_ratio)
    only_last = torch.rand(len(length), device=length.device) < last_ratio
    only_last |= ~masked.any(1)
    last = position == (length - 1).unsqueeze(1)
    return torch.where(only_last.unsqueeze(1), last, masked)
