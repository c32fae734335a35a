"""Adapter, item encoder and states at every position, against NumPy and by property."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.utils import get_model

from recbole_edt import config
from recbole_edt.layers import Adapter, ItemEncoder, last_state
from recbole_edt.model import BACKBONES, ModelSettings, build_backbone


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


def test_last_state_takes_the_state_at_the_last_item():
    states = torch.arange(12.0).reshape(2, 3, 2)
    assert last_state(states, torch.tensor([1, 3])).tolist() == [[0, 1], [10, 11]]


class FewItems:
    def num(self, field: str) -> int:
        return 20


def backbone(name: str, tmp_path) -> torch.nn.Module:
    torch.manual_seed(3)
    keys = {"n_heads": 2, "MAX_ITEM_LIST_LENGTH": 8, "backbone": name, "hidden_size": 8}
    settings = config.load("none", [], keys)
    view = config.recbole_config(settings, "LLMEDT", "none", tmp_path)
    encoder = ItemEncoder(20, 8, "id", initializer_range=1.0)
    return build_backbone(ModelSettings(backbone=name, hidden_size=8), view, FewItems(), encoder).eval()


@pytest.mark.parametrize("name", BACKBONES)
class TestBackbones:
    def test_the_last_of_all_states_is_the_stock_models_output(self, name, tmp_path):
        model = backbone(name, tmp_path)
        item_seq, length = torch.tensor([[3, 4, 5, 6, 0], [7, 8, 0, 0, 0]]), torch.tensor([4, 2])
        stock = get_model(name).__mro__[0]
        own_gather = type(model).__mro__[1].gather_indexes
        try:  # without our gather, forward is RecBole's
            type(model).__mro__[1].gather_indexes = stock.gather_indexes
            expected = stock.forward(model, item_seq, length)
        finally:
            type(model).__mro__[1].gather_indexes = own_gather
        assert torch.equal(model(item_seq, length), expected)
        assert torch.equal(last_state(model.states(item_seq, length), length), expected)

    def test_a_later_item_changes_no_earlier_state(self, name, tmp_path):
        model = backbone(name, tmp_path)
        item_seq, length = torch.tensor([[3, 4, 5, 6]]), torch.tensor([4])
        states = model.states(item_seq, length)
        for t in range(1, 4):
            changed = item_seq.clone()
            changed[0, t] = 11
            other = model.states(changed, length)
            assert torch.equal(states[:, :t], other[:, :t])
            assert (states[:, t:] - other[:, t:]).abs().max() > 1e-4

    def test_padding_changes_nothing(self, name, tmp_path):
        model = backbone(name, tmp_path)
        item_seq, length = torch.tensor([[3, 4, 5]]), torch.tensor([3])
        padded = torch.tensor([[3, 4, 5, 0, 0, 0]])
        torch.testing.assert_close(
            model.states(padded, length)[:, :3], model.states(item_seq, length), atol=1e-6, rtol=0
        )
