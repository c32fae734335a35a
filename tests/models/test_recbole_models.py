"""Whole-sequence training of RecBole's models equals RecBole's prefix rows."""

from __future__ import annotations

import pytest
import torch
from conftest import QUICK, write_tiny
from hypothesis import given
from hypothesis import strategies as st
from recbole.utils import get_model

from recbole_edt.config.recbole_config import check_model, recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.models.parts.batch_fields import TARGET_SEQ
from recbole_edt.models.parts.masking import other_items, random_mask
from recbole_edt.models.recbole_models import sequence_trained
from recbole_edt.train.dataset import EDTDataset

NO_DROPOUT = {"attn_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "dropout_prob": 0.0}


def both(tmp_path, name: str, loss_type: str):
    """The same weights twice: RecBole's model on prefix rows, ours on sequences within the maximum length."""
    write_tiny(tmp_path, "tiny")
    keys = {
        **QUICK,
        **NO_DROPOUT,
        "data_path": str(tmp_path),
        "MAX_ITEM_LIST_LENGTH": 20,
        "loss_type": loss_type,
    }
    settings = load_settings("tiny", [], keys)
    parts, models = [], []
    for training, cls in (("prefix", get_model(name)), ("sequence", sequence_trained(name))):
        view = recbole_config(settings, name, "tiny", tmp_path)
        dataset = EDTDataset(view)
        dataset._change_feat_format()
        train = dataset.parts(False, training)[0]
        torch.manual_seed(5)
        models.append(cls(view, train))
        parts.append(train)
    models[1].load_state_dict(models[0].state_dict())
    return parts, models


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_loss_and_gradient_equal_those_of_recboles_prefix_rows(tmp_path, name, loss_type):
    (prefix, sequence), (stock, ours) = both(tmp_path, name, loss_type)
    rows = prefix[torch.arange(len(prefix))]
    batch = sequence[torch.arange(len(sequence))]
    targets = batch[TARGET_SEQ]
    # the two come in the same order: users, and within a user time
    assert torch.equal(targets[targets > 0], rows["item_id"])
    torch.manual_seed(1)
    negative = other_items(rows["item_id"], stock.n_items)
    rows["neg_item_id"] = negative
    expected = stock.calculate_loss(rows)
    expected.backward()
    torch.manual_seed(1)
    loss = ours.calculate_loss(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for (key, one), (_, other) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
def test_sampled_softmax_ranks_each_target_among_negatives_of_its_own_domain(tmp_path, name):
    (_, sequence), (_, ours) = both(tmp_path, name, "CE")
    ours.loss_type, ours.n_negatives = "SSM", 4
    batch = sequence[torch.arange(len(sequence))]
    torch.manual_seed(3)
    loss = ours.calculate_loss(batch)
    torch.manual_seed(3)
    pools = [[item for item in range(ours.n_items) if sequence.item_domain[item] == d] for d in (1, 2)]
    negatives = [[pool[i] for i in torch.randint(len(pool), (4,)).tolist()] for pool in pools]
    expected = []
    with torch.no_grad():
        table = ours.item_embedding.weight
        states = ours.states(batch["item_id_list"], batch["item_length"])
        for b, t in (batch[TARGET_SEQ] > 0).nonzero().tolist():
            target = int(batch[TARGET_SEQ][b, t])
            others = [item for item in negatives[int(sequence.item_domain[target]) - 1] if item != target]
            scores = table[[target, *others]] @ states[b, t]
            expected.append(scores.logsumexp(0) - scores[0])
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)


def test_binary_cross_entropy_pulls_the_target_up_and_one_other_item_down(tmp_path):
    (_, sequence), (_, ours) = both(tmp_path, "SASRec", "CE")
    ours.loss_type = "BCE"
    batch = sequence[torch.arange(len(sequence))]
    torch.manual_seed(3)
    loss = ours.calculate_loss(batch)
    target = batch[TARGET_SEQ][batch[TARGET_SEQ] > 0]
    torch.manual_seed(3)
    negative = other_items(target, ours.n_items)
    with torch.no_grad():
        states = ours.states(batch["item_id_list"], batch["item_length"])[batch[TARGET_SEQ] > 0]
        table = ours.item_embedding.weight
        up, down = torch.sigmoid((states * table[target]).sum(1)), torch.sigmoid((states * table[negative]).sum(1))
    assert loss.item() == pytest.approx((-up.log() - (1 - down).log()).mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "BERT4Rec"])
def test_scores_are_the_stock_models(tmp_path, name):
    (prefix, _), (stock, ours) = both(tmp_path, name, "CE")
    rows = prefix[torch.arange(7)]
    stock.eval(), ours.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.full_sort_predict(rows), stock.full_sort_predict(rows))
        torch.testing.assert_close(ours.predict(rows), stock.predict(rows))


@pytest.mark.parametrize("name", ["SASRec", "BERT4Rec"])
def test_baselines_take_pre_norm_as_llmedt_does_and_their_scores_agree(tmp_path, name):
    write_tiny(tmp_path, "tiny")
    keys = {**QUICK, **NO_DROPOUT, "data_path": str(tmp_path), f"model_settings.{name}.norm_first": True}
    settings = load_settings("tiny", [], keys)
    check_model(settings, name)
    view = recbole_config(settings, name, "tiny", tmp_path)
    dataset = EDTDataset(view)
    dataset._change_feat_format()
    train = dataset.parts(False, "masked" if name == "BERT4Rec" else "sequence")[0]
    model = sequence_trained(name)(view, train)
    assert [type(layer).__name__ for layer in model.trm_encoder.layer] == ["PreNormLayer", "PreNormLayer", "FinalNorm"]
    batch = train[torch.arange(len(train))]
    model.calculate_loss(batch).backward()
    assert all(weight.grad is not None for weight in model.trm_encoder.parameters())
    model.eval()
    test = dataset.parts(False, "prefix")[2]
    rows = test[torch.arange(len(test))]
    with torch.no_grad():
        scores = model.full_sort_predict(rows)
        torch.testing.assert_close(model.predict(rows), scores[torch.arange(len(rows)), rows["item_id"]])


def test_bert4rec_learns_the_masked_items_only(tmp_path):
    _, (_, ours) = both(tmp_path, "BERT4Rec", "CE")
    batch = {"item_id_list": torch.tensor([[3, 4, 5, 0], [6, 7, 0, 0]]), "item_length": torch.tensor([3, 2])}
    torch.manual_seed(2)
    masked = random_mask(batch["item_length"], 4, ours.mask_ratio, ours.ft_ratio)
    torch.manual_seed(2)
    loss = ours.calculate_loss(batch)
    expected = []
    with torch.no_grad():
        states = ours.forward(torch.where(masked, ours.mask_token, batch["item_id_list"]))
        for b, t in masked.nonzero().tolist():
            logits = states[b, t] @ ours.item_embedding.weight[: ours.n_items].T + ours.output_bias
            expected.append(logits.logsumexp(0) - logits[batch["item_id_list"][b, t]])
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_a_mask_never_leaves_the_sequence_and_is_never_empty(lengths, mask_ratio, last_ratio):
    length = torch.tensor(lengths)
    masked = random_mask(length, 9, mask_ratio, last_ratio)
    assert not (masked & (torch.arange(9) >= length.unsqueeze(1))).any()
    assert masked.any(1).all()
    if last_ratio == 1:
        assert torch.equal(masked.int().argmax(1), length - 1) and (masked.sum(1) == 1).all()


def test_negatives_are_uniform_over_all_other_items():
    torch.manual_seed(0)
    target = torch.full((30_000,), 3)
    drawn = other_items(target, n_items=6)
    assert torch.unique(drawn).tolist() == [1, 2, 4, 5]
    share = torch.bincount(drawn)[[1, 2, 4, 5]] / len(drawn)
    assert ((share - 0.25).abs() < 0.02).all()
