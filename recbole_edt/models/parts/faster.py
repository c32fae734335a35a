"""RecBole's attention and dropout, made faster with the same result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from recbole.model.layers import MultiHeadAttention, TransformerEncoder, TransformerLayer
from torch import Tensor, nn
from torch.nn import functional as F

# Positions that go through a transformer together on a processor: few enough for its cache.
CHUNK_POSITIONS = 4096


# ---- instead of RecBole's ------------------------------------------------------------------------------------


class Dropout(nn.Dropout):
    """Dropout whose random numbers cost a tenth of torch's on a processor: four from every random integer.

    The probability is rounded to a multiple of 1/65536. Elsewhere it is torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)
        quick = input.device.type == "cpu" and 0 < dropped < 2**16 and not torch.compiler.is_compiling()
        return _QuickDropout.apply(input, dropped) if quick and self.training else super().forward(input)


class _QuickDropout(torch.autograd.Function):
    """Zeroes each element with probability ``dropped / 65536`` and scales the rest; keeps one byte for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        quads = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        random = quads.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in -32768 ... 32767
        kept = torch.empty(x.shape, dtype=torch.int8)
        torch.ge(random, dropped - 2**15, out=kept)
        ctx.save_for_backward(kept)
        ctx.scale = 2**16 / (2**16 - dropped)
        return kept.to(x.dtype).mul_(ctx.scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return kept.to(gradient.dtype).mul_(ctx.scale).mul_(gradient), None


class CausalAttention(MultiHeadAttention):
    """RecBole's attention of a sequence to its past, through torch's fused kernels where there are any."""

    def forward(self, input_tensor: Tensor, asked: Tensor | None = None) -> Tensor:
        """``[B, L, H]`` to ``[B, L, H]``; or to ``[B, 1, H]``, at the positions ``asked [B]`` alone."""
        chosen = input_tensor
        if asked is not None:
            chosen = input_tensor.gather(1, asked[:, None, None].expand(-1, 1, input_tensor.shape[2]))
        query, key, value = (
            part(x).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for part, x in ((self.query, chosen), (self.key, input_tensor), (self.value, input_tensor))
        )
        context = self._context(query, key, value, asked)
        output = self.out_dropout(self.dense(context.transpose(1, 2).flatten(2)))
        return self.LayerNorm(output + chosen)

    def _context(self, query: Tensor, key: Tensor, value: Tensor, asked: Tensor | None) -> Tensor:
        """``[B, heads, L or 1, H / heads]``."""
        p = self.attn_dropout.p if self.training else 0.0
        position = torch.arange(key.shape[2], device=key.device)
        if asked is not None:
            past = position <= asked[:, None, None, None]
            return F.scaled_dot_product_attention(query, key, value, past, p)
        if p == 0 or query.device.type != "cpu":
            return F.scaled_dot_product_attention(query, key, value, dropout_p=p, is_causal=True)
        # On a processor torch has no fused kernel with dropout.
        scores = (query / self.sqrt_attention_head_size) @ key.transpose(-1, -2)  # [B, heads, L, L]
        scores = scores.masked_fill_(position > position.unsqueeze(1), -torch.inf)
        return self.attn_dropout(scores.softmax(-1)) @ value


class CausalEncoder(TransformerEncoder):
    """RecBole's transformer over sequences padded on the right, a few rows at a time on a processor."""

    def forward(
        self, hidden_states: Tensor, asked: Tensor | None = None, output_all_encoded_layers: bool = True
    ) -> list[Tensor]:
        """``[B, L, H]`` to a list that ends with the last layer's ``[B, L, H]``, or ``[B, 1, H]`` where asked for."""
        if asked is not None and type(self.layer[-1]) is TransformerLayer:
            return [self.layer[-1](self._through(self.layer[:-1], hidden_states), asked)]
        n_rows, width, _ = hidden_states.shape
        rows = max(1, CHUNK_POSITIONS // width) if hidden_states.device.type == "cpu" else n_rows
        return [torch.cat([self._through(self.layer, part) for part in hidden_states.split(rows)])]

    @staticmethod
    def _through(layers: Iterable[nn.Module], states: Tensor) -> Tensor:
        for layer in layers:
            states = layer(states, None)
        return states


def quicken(model: nn.Module) -> None:
    """Put the modules above in the place of RecBole's, parameters and their names unchanged.

    A transformer must be causal, with padding on the right (`AllPositions`).
    """
    for module in model.modules():
        if type(module) is TransformerEncoder:
            module.__class__ = CausalEncoder
        elif type(module) is MultiHeadAttention:
            module.__class__ = CausalAttention
    quicken_dropout(model)


def quicken_dropout(model: nn.Module) -> None:
    """The same for dropout alone, in any model."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
