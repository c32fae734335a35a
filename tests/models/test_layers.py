"""Adapter, item encoder and states at every position, against NumPy and by property."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.model.layers import TransformerEncoder
from recbole.utils import get_model

from recbole_edt.config import settings as config
from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.models.parts.faster import Dropout
from recbole_edt.models.parts.item_encoder import Adapter, ItemEncoder
from recbole_edt.models.parts.states import FinalNorm, PreNormLayer, last_state
from recbole_edt.models.recbole_models import sequence_trained


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


class FewItems:
    item_domain = torch.ones(20, dtype=torch.long)

    def num(self, field: str) -> int:
        return 20


# ---- instead of RecBole's: the same results --------------------------------------------------------------------------


def pair_of_backbones(tmp_path, **keys) -> tuple[torch.nn.Module, torch.nn.Module]:
    """RecBole's own SASRec, and ours with the same weights."""
    torch.manual_seed(4)
    loaded = config.load_settings("none", [], {"n_heads": 2, "MAX_ITEM_LIST_LENGTH": 8, "hidden_size": 8, **keys})
    view = recbole_config(loaded, "SASRec", "none", tmp_path)
    stock, ours = get_model("SASRec")(view, FewItems()), sequence_trained("SASRec")(view, FewItems())
    ours.load_state_dict(stock.state_dict())
    return stock, ours


ITEM_SEQ = torch.tensor([[3, 4, 5, 6, 2], [7, 8, 0, 0, 0], [9, 1, 1, 0, 0]])
LENGTH = torch.tensor([5, 2, 3])


@pytest.mark.parametrize("attention_dropout", [0.0, 1e-6])  # the fused kernel; the path with dropout, dropping none
def test_states_and_gradients_are_those_of_recboles_modules(tmp_path, attention_dropout):
    stock, ours = pair_of_backbones(tmp_path, attn_dropout_prob=attention_dropout, hidden_dropout_prob=0.0)
    weight = torch.randn(3, 8)
    expected = stock(ITEM_SEQ, LENGTH)
    (expected * weight).sum().backward()
    found = ours(ITEM_SEQ, LENGTH)
    (found * weight).sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for (name, one), (_, other) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4, msg=name)
    stock.eval(), ours.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(ITEM_SEQ, LENGTH), stock(ITEM_SEQ, LENGTH), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("positions", [1, 7, 4096])
def test_rows_taken_a_few_at_a_time_give_the_same_states(tmp_path, monkeypatch, positions):
    _, ours = pair_of_backbones(tmp_path)
    ours.eval()
    expected = last_state(ours.states(ITEM_SEQ, LENGTH), LENGTH)
    monkeypatch.setattr("recbole_edt.models.parts.faster.CHUNK_POSITIONS", positions)
    torch.testing.assert_close(last_state(ours.states(ITEM_SEQ, LENGTH), LENGTH), expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        empty_too = torch.tensor([5, 0, 3])
        found = ours(ITEM_SEQ, empty_too)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], atol=1e-6, rtol=1e-5)
    assert found.isfinite().all()


@settings(max_examples=50)
@given(st.integers(0, 300), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_dropout_zeroes_or_scales_and_its_gradient_goes_the_same_way(n, p, seed):
    torch.manual_seed(seed)
    x = (torch.randn(n) + 3).requires_grad_()
    y = Dropout(p)(x)
    y.sum().backward()
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - p), rtol=1e-3, atol=0)
    torch.testing.assert_close(x.grad, kept / (1 - p), rtol=1e-3, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.73])
def test_dropout_drops_the_share_asked_for_independently(p):
    torch.manual_seed(0)
    dropped = Dropout(p)(torch.ones(4, 50_000)) == 0
    assert dropped.float().mean().item() == pytest.approx(p, abs=0.005)
    correlation = torch.corrcoef(dropped.reshape(-1, 4).T.float())  # four masks out of each random integer
    assert (correlation - torch.eye(4)).abs().max() < 0.02


def test_dropout_at_the_ends_and_in_evaluation():
    x = torch.ones(1000)
    assert torch.equal(Dropout(0.0)(x), x) and torch.equal(Dropout(0.5).eval()(x), x)
    assert not Dropout(1.0)(x).any()
    torch.manual_seed(3)
    one = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(one, Dropout(0.5)(x))


def test_mixed_precision_changes_states_little_and_evaluation_not_at_all(tmp_path):
    no_dropout = {"attn_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    _, plain = pair_of_backbones(tmp_path, **no_dropout)
    _, mixed = pair_of_backbones(tmp_path, **no_dropout, enable_amp=True)
    one, other = plain(ITEM_SEQ, LENGTH), mixed(ITEM_SEQ, LENGTH)
    assert other.dtype == torch.float32 and not torch.equal(one, other)
    torch.testing.assert_close(other, one, atol=0.05, rtol=0.05)
    plain.eval(), mixed.eval()
    assert torch.equal(plain(ITEM_SEQ, LENGTH), mixed(ITEM_SEQ, LENGTH))
