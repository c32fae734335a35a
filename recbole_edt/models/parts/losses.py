"""Training losses on flat positions: scores or states in, one scalar out (paper eq. 9, 12 and 13).

Every loss is a mean, so that weights between losses keep their meaning whatever the batch holds. A loss over
no positions is 0 and can still be differentiated: a batch may hold no target of one of the domains.

Axes: ``T`` positions, ``n`` negatives per position, ``B`` users, ``H`` hidden, ``N`` items.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

DENOMINATORS = ("paper", "infonce")


def bpr(positive_score: Tensor, negative_score: Tensor) -> Tensor:
    """Bayesian personalised ranking, ``-log sigmoid(positive - negative)`` (paper eq. 9 and 12).

    Args:
        positive_score: ``[T]`` scores of the targets.
        negative_score: ``[T, n]`` scores of the negatives of each target.

    Returns: a scalar, the mean over positions and negatives.
    Raises: ValueError if the shapes do not fit.
    """
    _check_scores(positive_score, negative_score)
    return _mean(functional.softplus(negative_score - positive_score.unsqueeze(1)))


def bce(positive_score: Tensor, negative_score: Tensor) -> Tensor:
    """Binary cross-entropy: targets towards 1, negatives towards 0 (the released code's choice).

    Args:
        positive_score: ``[T]`` scores of the targets.
        negative_score: ``[T, n]`` scores of the negatives of each target.

    Returns: a scalar, the mean over targets plus the mean over negatives.
    Raises: ValueError if the shapes do not fit.
    """
    _check_scores(positive_score, negative_score)
    return _mean(functional.softplus(-positive_score)) + _mean(functional.softplus(negative_score))


def softmax_cross_entropy(
    user: Tensor, table: Tensor, target: Tensor, bias: Tensor | None = None, max_elements: int = 2**26
) -> Tensor:
    """Cross-entropy of the target among all rows of the table, without ever holding all scores at once.

    Positions are worked off in chunks whose scores are computed again for the gradient: a third more
    arithmetic, and memory that does not grow with ``T * N``.

    Args:
        user: ``[T, H]`` states.
        table: ``[N, H]`` item vectors; the score of item ``i`` is ``user . table[i] + bias[i]``.
        target: ``[T]`` rows of the table.
        bias: ``[N]`` or None; ``-inf`` takes an item out of the softmax (padding, for one).
        max_elements: the most scores alive at a time; a single position may exceed it.

    Returns: a scalar, the mean over positions.
    """
    rows = max(1, max_elements // len(table))
    if len(user) <= rows:
        return _summed_cross_entropy(user, table, target, bias) / max(len(user), 1)
    total = user.new_zeros((), dtype=torch.float32)
    for part, part_target in zip(user.split(rows), target.split(rows), strict=True):
        arguments = (part, table, part_target, bias)
        total = total + checkpoint(_summed_cross_entropy, *arguments, use_reentrant=False)
    return total / len(user)


def sampled_softmax(positive_score: Tensor, negative_score: Tensor, hit: Tensor) -> Tensor:
    """Cross-entropy of the target among itself and its negatives.

    Args:
        positive_score: ``[T]`` scores of the targets.
        negative_score: ``[T, n]`` scores of the negatives of each target.
        hit: ``[T, n]`` True where a negative is the target itself; these are left out.

    Returns: a scalar, the mean over positions.
    Raises: ValueError if the shapes do not fit.
    """
    _check_scores(positive_score, negative_score)
    others = negative_score.masked_fill(hit, -torch.inf)
    scores = torch.cat([positive_score.unsqueeze(1), others], dim=1)  # [T, 1 + n]
    return _mean(scores.logsumexp(dim=1) - positive_score)


def alignment_loss(user: Tensor, profile: Tensor, temperature: float, denominator: str = "paper") -> Tensor:
    """Pull each user's state towards that user's own profile, in both directions (paper eq. 13).

    Args:
        user: ``[B, H]`` global states, any length.
        profile: ``[B, H]`` adapted profile vectors; row ``i`` belongs to ``user[i]``.
        temperature: above 0; cosines are divided by it.
        denominator: ``paper`` leaves the positive pair out of the denominator, as eq. 13 is printed (the loss
            may then be negative); ``infonce`` keeps it.

    Returns: a scalar, the sum of the two directions, each a mean over the batch.
    Raises: ValueError if ``B < 2`` (there is no negative), if ``temperature`` is not above 0 or the
        denominator is unknown.
    """
    _check_alignment(len(user), temperature, denominator)
    cosine = functional.normalize(user, dim=-1) @ functional.normalize(profile, dim=-1).T  # [B, B]
    logits = cosine / temperature
    own = logits.diagonal()
    if denominator == "paper":
        same = torch.eye(len(user), dtype=torch.bool, device=user.device)
        logits = logits.masked_fill(same, -torch.inf)
    return (logits.logsumexp(dim=1) - own).mean() + (logits.logsumexp(dim=0) - own).mean()


def _summed_cross_entropy(user: Tensor, table: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
    scores = functional.linear(user, table, bias)  # [T, N]
    return functional.cross_entropy(scores.float(), target, reduction="sum")


def _mean(losses: Tensor) -> Tensor:
    """The mean, and 0 (not NaN) of nothing."""
    return losses.sum() / max(losses.numel(), 1)


def _check_scores(positive_score: Tensor, negative_score: Tensor) -> None:
    # [T] against [T] would broadcast to [T, T] without a word.
    if positive_score.dim() != 1 or negative_score.dim() != 2 or len(positive_score) != len(negative_score):
        raise ValueError(
            "expected positive scores [T] and negative scores [T, n], got "
            f"{tuple(positive_score.shape)} and {tuple(negative_score.shape)}"
        )


def _check_alignment(n_users: int, temperature: float, denominator: str) -> None:
    if n_users < 2:
        raise ValueError(f"the alignment loss needs at least 2 users in a batch, got {n_users}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {', '.join(DENOMINATORS)}, got {denominator!r}")
