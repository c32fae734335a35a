"""A state at every position out of RecBole's models, norms before layers, and precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recbole_edt.models.parts.faster import CHUNK_POSITIONS, quicken, quicken_dropout


class AllPositions:
    """First base of a RecBole sequential model: the state at every position, not only the last.

    RecBole's models end ``forward`` by gathering the last position; here that step is left out of ``states``
    and done by ``forward``, so everything else of the model works as it did.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)  # type: ignore[call-arg]
        self.mixed_precision = bool(config["enable_amp"])
        quicken(self)  # type: ignore[arg-type]

    asked: Tensor | None = None
    """``[B]`` the one position of each row whose state is wanted; None for all."""

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        return output

    def get_attention_mask(self, item_seq: Tensor, bidirectional: bool = False) -> Tensor | None:
        """No mask, since padding comes after all that a position may see; only which positions are asked for."""
        return self.asked

    def states(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """``[B, L]`` items, ``[B]`` lengths to ``[B, L, H]``; position ``t`` has seen items ``0..t``."""
        with mixed_precision(self, item_seq.device):
            return full_precision(super().forward(item_seq, item_seq_len))  # type: ignore[misc]

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The state at the last item, ``[B, H]``; on a processor rows of like length go together."""
        if torch.is_grad_enabled():
            return last_state(self.states(item_seq, item_seq_len), item_seq_len)
        if item_seq.device.type != "cpu":
            return self._last_states(item_seq, item_seq_len)
        order = item_seq_len.argsort()
        parts = []
        for rows in order.split(max(1, CHUNK_POSITIONS // item_seq.shape[1])):
            length = item_seq_len[rows]
            parts.append(self._last_states(item_seq[rows, : max(int(length[-1]), 1)], length))
        return torch.cat(parts)[order.argsort()]

    def _last_states(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        self.asked = item_seq_len.clamp(min=1) - 1
        try:
            states = self.states(item_seq, item_seq_len)
        finally:
            self.asked = None
        return states[:, 0] if states.shape[1] == 1 else last_state(states, item_seq_len)


class Masking:
    """First base of BERT4Rec, whose share of last items RecBole keeps in a batch transform."""

    def __init__(self: Any, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)  # type: ignore[call-arg]
        self.ft_ratio = config["ft_ratio"]
        self.mixed_precision = bool(config["enable_amp"])
        quicken_dropout(self)


class ConfigView:
    """The configuration that a constructor of RecBole's sees: some keys fixed, then its own, then defaults."""

    def __init__(self, config: Any, fixed: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self._config, self._fixed, self._defaults = config, fixed, defaults or {}

    def __getitem__(self, key: str) -> Any:
        if key in self._fixed:
            return self._fixed[key]
        value = self._config[key]
        return self._defaults.get(key) if value is None else value


class PreNorm:
    """First base of a RecBole model: with ``norm_first: true``, its transformer layers normalise their input."""

    def __init__(self: Any, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)  # type: ignore[call-arg]
        if config["norm_first"] and hasattr(self, "trm_encoder"):
            layers = [PreNormLayer(layer) for layer in self.trm_encoder.layer]
            self.trm_encoder.layer = nn.ModuleList([*layers, FinalNorm(layers[-1])])


class PreNormLayer(nn.Module):
    """A layer of RecBole's transformers as ``x + f(norm(x))`` where RecBole has ``norm(x + f(x))``, on its weights.

    Args:
        layer: RecBole's ``TransformerLayer``; its parts are taken over.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList([layer.multi_head_attention, layer.feed_forward])
        self.norms = nn.ModuleList([part.LayerNorm for part in self.parts])
        for part in self.parts:
            part.LayerNorm = nn.Identity()

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, L, H]`` and RecBole's additive mask to ``[B, L, H]``."""
        attention, feed_forward = self.parts
        y = self.norms[0](x)
        x = x + (attention(y, attention_mask) - y)  # RecBole's parts add their input
        y = self.norms[1](x)
        return x + (feed_forward(y) - y)


class FinalNorm(nn.Module):
    """What follows the last pre-norm layer, in the form of a layer."""

    def __init__(self, last: PreNormLayer) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(last.norms[0].normalized_shape, last.norms[0].eps)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, L, H]`` to ``[B, L, H]``; the mask is not needed."""
        return self.norm(x)


def mixed_precision(model: Any, device: Any) -> Any:
    """bfloat16 for the linear maps inside, in training and if the model asks for it (``enable_amp``).

    Its range is that of float32, so that nothing needs scaling; scores and losses stay outside.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=model.mixed_precision and model.training)


@contextmanager
def bfloat16_by_default(device: Any) -> Iterator[None]:
    """RecBole's own loop leaves the format of mixed precision to torch, which takes float16 on a GPU."""
    before = torch.get_autocast_dtype(device.type)
    torch.set_autocast_dtype(device.type, torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_dtype(device.type, before)


def full_precision(states: Tensor) -> Tensor:
    """What `mixed_precision` made of them as float32; as they are without it."""
    return states.float() if states.dtype == torch.bfloat16 else states


def last_state(states: Tensor, length: Tensor) -> Tensor:
    """The state at position ``length - 1``: ``[B, L, H]`` and ``[B]`` to ``[B, H]``."""
    return states[torch.arange(len(states), device=states.device), length.clamp(min=1) - 1]
