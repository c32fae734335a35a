"""Neural parts that know no configuration: the adapter, the item encoder, and states at every position.

The last part stands in for modules of RecBole's that are slow on a processor: same parameters, same results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
