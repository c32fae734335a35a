"""LLM-EDT's losses and scores against computations of their own (paper Eq. 8 to 15)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import one_sequence
from hypothesis import given
from hypothesis import strategies as st

from recbole_edt.errors import ConfigError
from recbole_edt.models.base import principal_components
from recbole_edt.models.llmedt import LLMEDT, ModelSettings
from recbole_edt.models.parts.batch_fields import DOMAIN_SEQ, DOMAIN_SEQ_LEN, LAST_WINDOW, TARGET_SEQ
from recbole_edt.models.parts.states import last_state


@pytest.fixture
def ready(opener):
    """A function that opens LLM-EDT with other keys."""
    return opener("LLMEDT", attn_dropout_prob=0.0, hidden_dropout_prob=0.0)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


def fix_negatives(model: LLMEDT) -> dict:
    """Make the model draw the first item of each target's domain, and remember what it drew."""
    drawn = {}

    def draw(user, domain, n=1):
        drawn["item"] = torch.stack([model.pools[d][:n] for d in domain.tolist()])
        return drawn["item"]

    model.sampler.draw = draw
    return drawn


def test_pretraining_loss_is_the_mean_of_equation_9_over_all_positions(ready):
    model, train_data, _ = ready(alpha=0)
    drawn = fix_negatives(model)
    batch = next(iter(train_data))
    loss = model.calculate_loss(batch)
    table = model.item_embedding.weight.detach().double().numpy()
    total, n = 0.0, 0
    for b in range(len(batch)):
        length = int(batch["item_length"][b])
        states = model.backbone.states(batch["item_id_list"][b : b + 1, :length], batch["item_length"][b : b + 1])
        for t in range(length):
            target = int(batch[TARGET_SEQ][b, t])
            negative = int(model.pools[int(model.item_domain[target]) - 1][0])
            u = states[0, t].detach().double().numpy()
            total -= log_sigmoid(u @ table[target] - u @ table[negative])
            n += 1
    assert n == len(drawn["item"]) == int((batch[TARGET_SEQ] > 0).sum())
    assert loss.item() == pytest.approx(total / n, abs=1e-6)


def test_total_loss_adds_alpha_times_equation_13_at_the_end_of_each_users_training(ready):
    model, train_data, _ = ready(alpha=0.3, align_temperature=0.5)
    fix_negatives(model)
    batch = next(iter(train_data))
    batch[LAST_WINDOW][::3] = False  # as if these users' training went on in another window
    pre, align = model.calculate_loss(batch)
    with torch.no_grad():
        states = model.backbone(batch["item_id_list"], batch["item_length"])
        profile = model.profile_adapter(model.profiles[batch["user_id"]])
    chosen = batch[LAST_WINDOW].numpy()
    u, p = states.double().numpy()[chosen], profile.double().numpy()[chosen]
    cos = (u / np.linalg.norm(u, axis=1, keepdims=True)) @ (p / np.linalg.norm(p, axis=1, keepdims=True)).T / 0.5
    loss = 0.0
    for matrix in (cos, cos.T):
        others = np.exp(matrix) * (1 - np.eye(len(matrix)))
        loss += np.mean(-np.diag(matrix) + np.log(others.sum(1)))
    assert align.item() == pytest.approx(0.3 * loss, abs=1e-5)
    assert pre.item() > 0


def test_a_batch_with_one_profile_has_no_alignment_term(ready):
    model, train_data, _ = ready(alpha=1.0)
    fix_negatives(model)
    model.has_profile[:] = False
    batch = next(iter(train_data))
    model.has_profile[batch["user_id"][0]] = True
    assert model.calculate_loss(batch)[1].item() == 0.0


def finetuned(model: LLMEDT) -> LLMEDT:
    model.start(model.method.phases[1])
    for adapter in model.user_adapters:
        torch.nn.init.normal_(adapter.outer.weight)
        torch.nn.init.normal_(adapter.outer.bias)
    return model


def test_finetuning_scores_each_target_with_its_own_domains_latest_state_and_no_future(ready):
    model = finetuned(ready(alpha=0)[0])
    fix_negatives(model)
    a, b = (pool.tolist() for pool in model.pools)
    items, targets = [a[1], b[1], a[2], a[3], b[2]], [b[1], a[2], a[3], b[2], b[3]]  # A B A A B, then B
    batch = one_sequence(model, items, targets)
    losses = model.calculate_loss(batch)
    table = model.item_embedding.weight.double().numpy()
    for d, pool in enumerate(model.pools):
        expected = []
        for t, target in enumerate(targets):
            if int(model.item_domain[target]) != d + 1:
                continue
            shared = model.backbone(torch.tensor([items[: t + 1]]), torch.tensor([t + 1]))[0]
            own = [i for i in items[: t + 1] if model.item_domain[i] == d + 1]
            vector = shared
            if own:
                state = model.backbone(torch.tensor([own]), torch.tensor([len(own)]))[0]
                vector = shared + model.user_adapters[d](state)
            v = vector.detach().double().numpy()
            expected.append(-log_sigmoid(v @ table[target] - v @ table[int(pool[0])]))
        assert losses[d].item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_score_is_the_sum_of_the_global_and_the_domains_part(ready):
    model, _, test_data = ready(alpha=0)
    finetuned(model).eval()
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
        shared = model.backbone(batch["item_id_list"], batch["item_length"])
        table = model.item_embedding.weight
        for d, pool in enumerate(model.pools):
            own = model.user_adapters[d](model.backbone(batch[DOMAIN_SEQ[d]], batch[DOMAIN_SEQ_LEN[d]]))
            own[batch[DOMAIN_SEQ_LEN[d]] == 0] = 0
            torch.testing.assert_close(
                scores[:, pool], own @ table[pool].T + shared @ table[pool].T, atol=1e-5, rtol=1e-5
            )
        assert scores[:, 0].isinf().all()
        picked = model.predict(batch)
    torch.testing.assert_close(picked, scores[torch.arange(len(batch)), batch["item_id"]], atol=1e-5, rtol=1e-5)


def test_a_user_without_history_in_a_domain_gets_the_global_score_there(ready):
    model = finetuned(ready(alpha=0)[0]).eval()
    a, b = (pool.tolist() for pool in model.pools)
    batch = one_sequence(model, [a[1], a[2]], [a[2], a[3]])
    with torch.no_grad():
        scores = model.full_sort_predict(batch)[0]
        shared = model.backbone(batch["item_id_list"], batch["item_length"])[0]
        table = model.item_embedding.weight
    torch.testing.assert_close(scores[b], table[b] @ shared, atol=1e-6, rtol=1e-5)
    assert (scores[a] - table[a] @ shared).abs().max() > 1e-3


def test_finetuning_starts_at_the_pretrained_scores(ready):
    model, _, test_data = ready()
    model.eval()
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        before = model.full_sort_predict(batch)
        model.start(model.method.phases[1])
        model.eval()
        after = model.full_sort_predict(batch)
    torch.testing.assert_close(before, after)


def test_only_the_user_adapters_change_in_finetuning_and_dropout_is_off(ready):
    model, train_data, _ = ready(hidden_dropout_prob=0.5, attn_dropout_prob=0.5)
    model.start(model.method.phases[1])
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.user_adapters.parameters(), 0.1)
    batch = next(iter(train_data))
    assert [p.requires_grad for p in model.user_adapters.parameters()] == [True] * 8
    assert not any(p.requires_grad for n, p in model.named_parameters() if not n.startswith("user_adapters"))
    assert torch.equal(
        model.backbone(batch["item_id_list"], batch["item_length"]),
        model.backbone(batch["item_id_list"], batch["item_length"]),
    )
    for _ in range(2):
        optimizer.zero_grad()
        sum(model.calculate_loss(batch)).backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("user_adapters") for name in changed)


@pytest.mark.parametrize("representation", ["id", "llm+id"])
@pytest.mark.parametrize("backbone", ["SASRec", "BERT4Rec"])
def test_learnt_embeddings_start_at_random_or_from_the_components_of_all_texts(ready, backbone, representation):
    model, train_data, _ = ready(backbone=backbone, item_representation=representation, item_ids="pca")
    ids, text = model.item_embedding.ids.weight, train_data._dataset.item_vectors()
    expected = principal_components(text[1:], model.settings.hidden_size)
    torch.testing.assert_close(ids[1:].detach(), expected)
    assert expected.any() and not ids[0].any() and ids.requires_grad
    other = ready(backbone=backbone, item_representation=representation)[0].item_embedding.ids.weight
    assert other[1:].std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("loss_type", ["BPR", "BCE", "CE", "SSM"])
@pytest.mark.parametrize("representation", ["llm", "id", "llm+id"])
def test_every_loss_and_representation_learns_in_both_phases(ready, loss_type, representation):
    model, train_data, _ = ready(loss_type=loss_type, item_representation=representation, n_negatives=4)
    batch = next(iter(train_data))
    for phase in ("pretrain", "finetune"):
        if phase == "finetune":
            model.start(model.method.phases[1])
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
        curve = []
        for step in range(25):
            torch.manual_seed(step % 2)
            optimizer.zero_grad()
            parts = model.calculate_loss(batch)
            loss = sum(parts)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        assert np.isfinite(curve).all()
        assert np.mean(curve[-4:]) < np.mean(curve[:4])


def test_softmax_loss_is_over_the_targets_domain_only(ready):
    model, train_data, _ = ready(loss_type="CE", alpha=0)
    batch = next(iter(train_data))
    loss = model.calculate_loss(batch)
    counted = batch[TARGET_SEQ] > 0
    with torch.no_grad():
        states = model.backbone.states(batch["item_id_list"], batch["item_length"])[counted].double().numpy()
        table = model.item_embedding.weight.double().numpy()
    expected = []
    for u, target in zip(states, batch[TARGET_SEQ][counted].tolist(), strict=True):
        pool = model.pools[int(model.item_domain[target]) - 1].numpy()
        logits = table[pool] @ u
        expected.append(np.log(np.exp(logits).sum()) - table[target] @ u)
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_negatives_come_from_the_targets_domain_and_never_from_the_users_training_items(ready):
    model, train_data, _ = ready()
    user, item = train_data._dataset.training_pairs
    own = set(zip(user.tolist(), item.tolist(), strict=True))
    domain = model.item_domain[item] - 1
    drawn = model._negatives(user, domain)
    assert torch.equal(model.item_domain[drawn[:, 0]] - 1, domain)
    assert not own & set(zip(user.tolist(), drawn[:, 0].tolist(), strict=True))


@given(st.permutations(range(8)))
def test_alignment_of_states_is_read_where_the_sequence_ends(order):
    states = torch.arange(32.0).reshape(8, 2, 2)[list(order)]
    length = torch.tensor([1 + i % 2 for i in order])
    expected = states[range(8), [i % 2 for i in order]]
    assert torch.equal(last_state(states, length), expected)


def test_settings_out_of_range_are_listed_together():
    with pytest.raises(ConfigError) as error:
        ModelSettings.read({name: None for name in ModelSettings.__dataclass_fields__} | {
            "backbone": "SASRek", "loss_type": "XE", "adapter_size": 0, "alpha": -1, "align_temperature": 0
        })
    for key in ("backbone", "loss_type", "adapter_size", "alpha", "align_temperature"):
        assert f"{key}:" in str(error.value)


def test_a_hidden_size_that_heads_do_not_divide_is_refused(ready):
    with pytest.raises(ConfigError, match="hidden_size: 10 is not a multiple of n_heads, 4"):
        ready(hidden_size=10, n_heads=4)
