"""RecBole's sequential models as backbones: a state per position, our item encoder in place of their embedding.

Two kinds: causal models have read items ``0..t`` at position ``t``, so that one pass serves every target; a
masked model (BERT4Rec) reads both ways, so that every target needs a mask token and a pass of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recbole
import torch
from recbole.utils import get_model
from torch import Tensor, nn
from torch.nn import functional

from recbole_edt.errors import ConfigError
from recbole_edt.files import read_yaml
from recbole_edt.models.parts.item_encoder import ItemEncoder
from recbole_edt.models.parts.masking import random_mask
from recbole_edt.models.parts.states import (
    AllPositions,
    ConfigView,
    Masking,
    PreNorm,
    full_precision,
    last_state,
    mixed_precision,
)

MASKED = "BERT4Rec"
BACKBONES = ("SASRec", "GRU4Rec", MASKED, "NextItNet")
"""Every sequential model of RecBole with a state per position that passes the tests of causality and padding."""

PRE_NORM = ("SASRec", MASKED)
"""Those whose layers can normalise first."""

_ONE_VECTOR = "its forward() has no state per position, only one vector for a whole sequence"
_USER = "its forward() has no state per position, only one vector for a user and a whole sequence"
_FUTURE = "its states are not causal: those before an item change with it"
_TARGET = "its forward() needs the item to be scored, so it has no state of a user alone"
_FEATURES = "it needs item features or a knowledge graph, and a backbone gets interactions alone"
_SCORES = "its forward() has {0}'s states, and what it adds is a way to score that Eq. 8 and 11 replace: choose {0}"
NO_BACKBONE = {
    **dict.fromkeys(("CORE", "NARM", "RepeatNet", "SINE", "SRGNN", "STAMP"), _ONE_VECTOR),
    **dict.fromkeys(("Caser", "FOSSIL", "FPMC", "HGN", "HRM", "NPE", "SHAN", "TransRec"), _USER),
    **dict.fromkeys(("FEARec", "GCSAN", "LightSANs"), _FUTURE),
    **dict.fromkeys(("DIEN", "DIN"), _TARGET),
    **dict.fromkeys(("FDSA", "GRU4RecF", "GRU4RecKG", "KSR", "S3Rec", "SASRecF"), _FEATURES),
    "GRU4RecCPR": _SCORES.format("GRU4Rec"),
    "SASRecCPR": _SCORES.format("SASRec"),
}
"""Every other sequential model of RecBole, and what it lacks."""


def backbone_faults(name: Any) -> list[str]:
    """What is wrong with a value of the key ``backbone``; nothing, or one sentence."""
    if name in BACKBONES:
        return []
    reason = f"; {NO_BACKBONE[name]}" if isinstance(name, str) and name in NO_BACKBONE else ""
    return [f"backbone: {name!r} is not one of {', '.join(BACKBONES)}{reason}"]


class CausalStates(AllPositions):
    """First base of a causal model: trained on the next item of every position at once."""

    def predicted(self, targets: Tensor, length: Tensor) -> Tensor:
        """``[B, L]`` bool: the positions whose target counts in this step."""
        return targets > 0

    def has_read(self, length: Tensor, predicted: Tensor) -> Tensor:
        """``[B, L]`` bool: where a state of ``training_states`` has read any item."""
        return torch.ones_like(predicted)

    def training_states(self, item_seq: Tensor, length: Tensor, predicted: Tensor) -> Tensor:
        """``[B, L, H]``; at a predicted position the state from which its target is predicted."""
        return self.states(item_seq, length)

    def user_states(self, item_seq: Tensor, length: Tensor, states: Tensor) -> Tensor:
        """``[B, H]`` states of users for Eq. 13, at the last position; ``states`` as ``training_states`` gave them.

        That position has a target, so its state has read all training items but the last.
        """
        return last_state(states, length)


class DilatedStates(CausalStates):
    """First base of NextItNet, whose own ``forward`` reads the last column, be it padding."""

    def states(self: Any, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        with mixed_precision(self, item_seq.device):
            return full_precision(self.final_layer(self.residual_blocks(self.item_embedding(item_seq))))


class MaskedStates(Masking):
    """First base of BERT4Rec: trained by masking, asked by a mask token after the last item."""

    def __init__(self: Any, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        del self.output_bias  # scores are those of Eq. 8 and 11

    def predicted(self: Any, targets: Tensor, length: Tensor) -> Tensor:
        """``[B, L]`` bool: a fresh mask, without the positions that are no targets."""
        return random_mask(length, targets.shape[1], self.mask_ratio, self.ft_ratio) & (targets > 0)

    def has_read(self: Any, length: Tensor, predicted: Tensor) -> Tensor:
        """``[B, L]`` bool: where a state of ``training_states`` has read any item; nowhere if all are masked."""
        return (predicted.sum(1) < length).unsqueeze(1).expand_as(predicted)

    def training_states(self: Any, item_seq: Tensor, length: Tensor, predicted: Tensor) -> Tensor:
        """``[B, L, H]`` states of the sequence with the predicted items masked."""
        with mixed_precision(self, item_seq.device):
            states = super().forward(item_seq.masked_fill(predicted, self.mask_token))  # type: ignore[misc]
            return full_precision(states)

    def user_states(self, item_seq: Tensor, length: Tensor, states: Tensor) -> Tensor:
        """``[B, H]`` states of users for Eq. 13: that of a mask token after all training items, a pass of its own.

        Training hides random items, so none of its states is what stands for a user at inference; this one is.
        """
        return self(item_seq, length)

    def forward(self: Any, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The state of a mask token after the last item, ``[B, H]``.

        A sequence of the maximum length gives up its first item for it; RecBole drops the first of any sequence.
        """
        longest = self.max_seq_length
        full = (item_seq_len == longest).unsqueeze(1)
        item_seq = torch.where(full, item_seq.roll(-1, 1), item_seq)
        if item_seq.shape[1] < longest:
            item_seq = functional.pad(item_seq, (0, 1))
        place = item_seq_len.clamp(max=longest - 1)
        states = super().forward(item_seq.scatter(1, place.unsqueeze(1), self.mask_token))  # type: ignore[misc]
        return last_state(states, place + 1)


class MaskedItemEncoder(ItemEncoder):
    """Item encoder with a learnt vector for the mask token, whose id is ``N``."""

    def __init__(self, *args: Any, initializer_range: float = 0.02, **kwargs: Any) -> None:
        super().__init__(*args, initializer_range=initializer_range, **kwargs)
        self.mask = nn.Parameter(torch.randn(self.embedding_dim) * initializer_range)

    def forward(self, items: Tensor) -> Tensor:
        masked = items == self.n_items
        return torch.where(masked.unsqueeze(-1), self.mask, super().forward(items.masked_fill(masked, 0)))


def item_encoder(name: str) -> type[ItemEncoder]:
    """The kind of item encoder that a backbone needs."""
    return MaskedItemEncoder if name == MASKED else ItemEncoder


def build_backbone(name: str, config: Any, dataset: Any, item_embedding: ItemEncoder) -> nn.Module:
    """RecBole's own model with states at every position and our item encoder in place of its embedding.

    Args:
        name: one of ``BACKBONES``.
        config: its keys, by name; RecBole's defaults stand in for those it lacks.
        dataset: tells the number of items.
        item_embedding: of the kind ``item_encoder(name)``; its width is the backbone's.

    Raises: ConfigError if the sizes do not fit together.
    """
    width = item_embedding.embedding_dim
    path = Path(recbole.__file__).parent / "properties" / "model" / f"{name}.yaml"
    defaults = read_yaml(path.read_text(encoding="utf-8"))
    view = ConfigView(config, {"embedding_size": width, "hidden_size": width, "loss_type": "CE"}, defaults)
    heads = view["n_heads"] if "n_heads" in defaults else 1
    if width % heads:
        raise ConfigError(f"hidden_size: {width} is not a multiple of n_heads, {heads}")
    kind = {MASKED: MaskedStates, "NextItNet": DilatedStates}.get(name, CausalStates)
    backbone = type(name, (kind, PreNorm, get_model(name)), {})(view, dataset)
    # After its own initialisation, which would otherwise run over the encoder.
    backbone.item_embedding = item_embedding
    return backbone
