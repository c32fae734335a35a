"""Names of the fields of a batch, and the protocol of models whose scores are products of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # saved ranks can be read without torch
    from torch import Tensor

# Fields of batches whose frozen states are known.
STATE, OWN_STATE, HAS_OWN = "state", "own_state", "has_own"


@dataclass(frozen=True, eq=False)
class VectorScores:
    """Scores of a batch as the products they are: looked at block by block, never held as ``[B, N]``.

    Attributes:
        user: ``[B, H]``, or ``[2, B, H]`` where a user's vector depends on the domain of the item.
        item: ``[N, H]``.
    """

    user: Tensor
    item: Tensor

    def of_domain(self, d: int) -> Tensor:
        """User vectors ``[B, H]`` for items of domain ``d``, 1 or 2."""
        return self.user if self.user.dim() == 2 else self.user[d - 1]

    @property
    def device(self) -> Any:
        return self.user.device

TARGET_SEQ = "target_list"
LAST_WINDOW = "last_window"
DOMAIN_SEQ = ("item_id_list_a", "item_id_list_b")
DOMAIN_SEQ_LEN = ("item_length_a", "item_length_b")
