"""Adapter, item encoder and states at every position, against NumPy and by property."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.model.layers import TransformerEncoder

from recbole_edt.layers import Adapter, FinalNorm, ItemEncoder, PreNormLayer, last_state


def arrays(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_adapter_is_two_linear_maps_as_in_equations_7_and_10(activation, residual):
    torch.manual_seed(0)
    adapter = Adapter(6, 3, 6, activation=activation, residual=residual)
    x = torch.randn(5, 6)
    w2, b2, w1, b1, x64 = arrays(
        adapter.inner.weight, adapter.inner.bias, adapter.outer.weight, adapter.outer.bias, x
    )
    inner = x64 @ w2.T + b2
    expected = (np.maximum(inner, 0) if activation else inner) @ w1.T + b1 + residual * x64
    np.testing.assert_allclose(adapter(x).detach().numpy(), expected, atol=1e-6)


def test_an_adapter_that_starts_at_zero_adds_nothing_and_still_learns():
    adapter = Adapter(4, 2, 4, zero_start=True)
    x = torch.randn(3, 4)
    assert torch.equal(adapter(x), torch.zeros(3, 4))
    adapter(x).sum().backward()
    assert adapter.outer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("representation", ["llm", "id", "llm+id"])
def test_item_vectors_are_adapted_text_ids_or_their_sum(representation):
    torch.manual_seed(1)
    text = torch.cat([torch.zeros(1, 4), torch.randn(5, 4)])
    encoder = ItemEncoder(6, 3, representation, text)
    expected = np.zeros((6, 3))
    if "llm" in representation:
        w2, b2 = arrays(encoder.adapter.inner.weight, encoder.adapter.inner.bias)
        w1, b1 = arrays(encoder.adapter.outer.weight, encoder.adapter.outer.bias)
        assert w2.shape == (2, 4)  # bottleneck is half of the text's width
        expected += (text.double().numpy() @ w2.T + b2) @ w1.T + b1
    if "id" in representation:
        expected += arrays(encoder.ids.weight)[0]
    expected[0] = 0  # padding
    np.testing.assert_allclose(encoder.weight.detach().numpy(), expected, atol=1e-6)
    ids = torch.tensor([[3, 0], [5, 3]])
    np.testing.assert_allclose(encoder(ids).detach().numpy(), expected[ids.numpy()], atol=1e-6)
    with encoder.shared(ids, torch.tensor([1])):
        np.testing.assert_allclose(encoder(ids).detach().numpy(), expected[ids.numpy()], atol=1e-6)


def test_text_vectors_are_neither_trained_nor_saved():
    encoder = ItemEncoder(4, 2, "llm+id", torch.randn(4, 6))
    assert "text_vectors" not in encoder.state_dict()
    assert all(name.startswith(("ids", "adapter")) for name, _ in encoder.named_parameters())


def test_the_table_kept_in_evaluation_is_dropped_when_weights_change():
    encoder = ItemEncoder(4, 2, "id")
    encoder.eval()
    with torch.no_grad():
        kept = encoder.weight
        assert encoder.weight is kept
        new = {name: value + 1 for name, value in encoder.state_dict().items()}
        encoder.load_state_dict(new)
        assert not torch.equal(encoder.weight, kept)
        kept = encoder.weight
        encoder.train()
        encoder.ids.weight.add_(1)
        encoder.eval()
        assert not torch.equal(encoder.weight, kept)


def test_pre_norm_layers_are_torchs_own_on_recboles_weights():
    torch.manual_seed(4)
    encoder = TransformerEncoder(2, 2, 8, 16, 0.0, 0.0, "gelu", 1e-12).double().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    expected, x = [], torch.randn(3, 5, 8, dtype=torch.float64)
    causal = torch.triu(torch.full((5, 5), -torch.inf, dtype=torch.float64), 1)
    y = x
    for layer in encoder.layer:
        y = torchs_layer(layer)(y, src_mask=causal)
        expected.append(y)
    opened = [PreNormLayer(layer) for layer in encoder.layer]
    y = x
    for layer, expect in zip(opened, expected, strict=True):
        y = layer(y, causal)
        torch.testing.assert_close(y, expect, atol=1e-9, rtol=1e-9)
    last = FinalNorm(opened[-1]).double()(y, causal)
    torch.testing.assert_close(last, torch.nn.functional.layer_norm(y, (8,), eps=1e-12))


def torchs_layer(layer: torch.nn.Module) -> torch.nn.Module:
    """torch's pre-norm layer with the weights of one of RecBole's."""
    attention, feed_forward = layer.multi_head_attention, layer.feed_forward
    stock = torch.nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True, norm_first=True, dtype=torch.float64
    )
    ours = {
        "self_attn.out_proj": attention.dense,
        "linear1": feed_forward.dense_1,
        "linear2": feed_forward.dense_2,
        "norm1": attention.LayerNorm,
        "norm2": feed_forward.LayerNorm,
    }
    state = {f"{name}.{key}": value for name, part in ours.items() for key, value in part.state_dict().items()}
    for key in ("weight", "bias"):
        parts = [getattr(part, key) for part in (attention.query, attention.key, attention.value)]
        state[f"self_attn.in_proj_{key}"] = torch.cat(parts)
    stock.load_state_dict(state)
    return stock.eval()


def test_last_state_takes_the_state_at_the_last_item():
    states = torch.arange(12.0).reshape(2, 3, 2)
    assert last_state(states, torch.tensor([1, 3])).tolist() == [[0, 1], [10, 11]]
