"""Neural parts that know no configuration: the adapter, the item encoder, and states at every position.

The last part stands in for modules of RecBole's that are slow on a processor: same parameters, same results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from recbole.model.layers import MultiHeadAttention, TransformerEncoder, TransformerLayer
from torch import Tensor, nn
from torch.nn import functional as F

# Positions that go through a transformer together on a processor: few enough for its cache.
CHUNK_POSITIONS = 4096


class Adapter(nn.Module):
    """Two linear maps through a bottleneck, ``W_out (W_in x + b_in) + b_out`` (paper Eq. 7 and 10).

    Without an activation in between, the two are multiplied first, which is cheaper for many rows.

    Args:
        in_size: width of what comes in, above 0.
        bottleneck: width in between, above 0.
        out_size: width of what comes out, above 0.
        activation: ReLU between the maps (the released code; not in the paper).
        residual: add the input (released code; needs ``in_size == out_size``).
        dropout: on the bottleneck (released code).
        zero_start: the last map starts at zero, so that the adapter first adds nothing.
    """

    def __init__(
        self,
        in_size: int,
        bottleneck: int,
        out_size: int,
        activation: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
        zero_start: bool = False,
    ) -> None:
        super().__init__()
        self.inner = nn.Linear(in_size, bottleneck)
        self.outer = nn.Linear(bottleneck, out_size)
        self.activation, self.residual, self.dropout = activation, residual, dropout
        if zero_start:
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_size]`` to ``[..., out_size]``."""
        if self.activation or self.dropout:
            inner = self.inner(x)
            inner = F.relu(inner) if self.activation else inner
            y = self.outer(F.dropout(inner, self.dropout, self.training))
        else:
            weight = self.outer.weight @ self.inner.weight  # [out_size, in_size]
            y = F.linear(x, weight, F.linear(self.inner.bias, self.outer.weight, self.outer.bias))
        return x + y if self.residual else y


class ItemEncoder(nn.Module):
    """Item ids to vectors: adapted text (paper Eq. 7), an id embedding, or their sum.

    It stands where RecBole's models keep ``item_embedding``: callable on ids, with a ``weight`` of ``[N, H]``.
    The frozen text vectors are a buffer outside the checkpoint. Row 0, the padding, is always zero.

    Args:
        n_items: ``N``, the padding included.
        hidden_size: ``H``.
        representation: ``llm``, ``id`` or ``llm+id``.
        text_vectors: ``[N, D]`` with row 0 the padding; None only for ``id``.
        initializer_range: standard deviation of the id embedding at the start.
    """

    def __init__(
        self,
        n_items: int,
        hidden_size: int,
        representation: str,
        text_vectors: Tensor | None = None,
        initializer_range: float = 0.02,
    ) -> None:
        super().__init__()
        self.n_items, self.embedding_dim = n_items, hidden_size
        self.ids: nn.Embedding | None = None
        self.adapter: Adapter | None = None
        if "id" in representation.split("+"):
            self.ids = nn.Embedding(n_items, hidden_size, padding_idx=0)
            nn.init.normal_(self.ids.weight, std=initializer_range)
            nn.init.zeros_(self.ids.weight[0])
        if "llm" in representation.split("+"):
            assert text_vectors is not None
            width = text_vectors.shape[1]
            self.adapter = Adapter(width, max(1, width // 2), hidden_size)
            self.register_buffer("text_vectors", text_vectors, persistent=False)
        self.register_buffer("_row", torch.zeros(n_items, dtype=torch.long), persistent=False)
        self._table: Tensor | None = None
        self._whole: Tensor | None = None

    def encode(self, items: Tensor) -> Tensor:
        """``[n]`` ids to ``[n, H]``, computed anew."""
        vectors = torch.zeros((), device=items.device)
        if self.adapter is not None:
            vectors = vectors + self.adapter(F.embedding(items, self.text_vectors))
        if self.ids is not None:
            vectors = vectors + self.ids(items)
        return vectors * (items > 0).unsqueeze(-1)

    @contextmanager
    def shared(self, *items: Tensor) -> Iterator[None]:
        """Inside, each distinct id among ``items`` is encoded once, however often it occurs."""
        distinct = torch.unique(torch.cat([part.reshape(-1) for part in items]))
        self._row[distinct] = torch.arange(len(distinct), device=distinct.device)
        self._table = self.encode(distinct)
        try:
            yield
        finally:
            self._table = None

    def forward(self, items: Tensor) -> Tensor:
        """``[...]`` ids to ``[..., H]``."""
        if self._table is not None:
            return F.embedding(self._row[items], self._table)
        if self._whole is not None:
            return F.embedding(items, self._whole)
        distinct, inverse = torch.unique(items, return_inverse=True)
        return F.embedding(inverse, self.encode(distinct))

    @property
    def weight(self) -> Tensor:
        """The whole table ``[N, H]``; in evaluation computed once and kept until training goes on."""
        if self._whole is not None:
            return self._whole
        table = self.encode(torch.arange(self.n_items, device=self._row.device))
        if not self.training and not torch.is_grad_enabled():
            self._whole = table
        return table

    def train(self, mode: bool = True) -> ItemEncoder:
        self._whole = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._whole = None  # a table of the old weights
        super()._load_from_state_dict(*args, **kwargs)


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
