"""LLM4CDSR: losses and scores against NumPy, aligned positions, draws, ablations, and whole runs by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, one_sequence
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from test_end_to_end import TINY, model_folder, swap_held_out

import recbole_edt
from recbole_edt.cli import run
from recbole_edt.config.recbole_config import check_model, recbole_config
from recbole_edt.config.settings import load_settings, profiles_of
from recbole_edt.errors import ConfigError
from recbole_edt.experiments import ablation
from recbole_edt.models.base import principal_components, read_settings
from recbole_edt.models.llm4cdsr import LLM4CDSR, LLM4CDSRSettings
from recbole_edt.models.parts.backbones import BACKBONES, MASKED
from recbole_edt.models.parts.batch_fields import DOMAIN_SEQ, DOMAIN_SEQ_LEN, LAST_WINDOW, TARGET_SEQ, VectorScores
from recbole_edt.models.registry import METHODS
from recbole_edt.train import comparison
from recbole_edt.train.checkpoints import load_checkpoint
from recbole_edt.train.run import loaders

NO_DROPOUT = dict.fromkeys(("attn_dropout_prob", "hidden_dropout_prob", "dropout_prob"), 0.0)


@pytest.fixture
def ready(opener):
    """A function that opens LLM4CDSR with other keys on the tiny data set."""
    return opener("LLM4CDSR", **NO_DROPOUT, dilations=[1], block_num=2)


def fix_negatives(model: LLM4CDSR) -> None:
    """Make the model draw the first item of each target's domain."""
    model.sampler.draw = lambda user, domain, n=1: torch.stack([model.pools[d][:n] for d in domain.tolist()])


def tables(model: LLM4CDSR) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors of the mixed thread and of the domain threads."""
    own = model.threads[0].item_embedding
    with torch.no_grad():
        return model.item_embedding.weight.double().numpy(), own.weight.double().numpy()


def state(thread, items: list[int]) -> np.ndarray:
    """The state of one thread after some items; zeros after none."""
    if not items:
        return np.zeros(thread.item_embedding.embedding_dim)
    with torch.no_grad():
        return thread(torch.tensor([items]), torch.tensor([len(items)]))[0].double().numpy()


def both(model: LLM4CDSR) -> tuple[list[int], list[int]]:
    return model.pools[0].tolist(), model.pools[1].tolist()


def log_sigmoid(x: float) -> float:
    return -float(np.logaddexp(0, -x))


# ---- the losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != MASKED])
@pytest.mark.parametrize("loss_type", ["BCE", "BPR"])
def test_the_losses_of_a_and_b_are_of_the_summed_scores_of_the_same_items_at_aligned_positions(
    ready, backbone, loss_type
):
    model = ready(alpha=0, beta=0, backbone=backbone, loss_type=loss_type)[0].eval()
    fix_negatives(model)
    a, b = both(model)
    items, targets = [a[1], b[1], a[2], a[3], b[2]], [b[1], a[2], a[3], b[2], b[3]]  # A B A A B, then B
    found = model.calculate_loss(one_sequence(model, items, targets))
    mixed, own = tables(model)
    expected: list[list[float]] = [[], []]
    for t, target in enumerate(targets):
        d = int(model.item_domain[target]) - 1
        read = items[: t + 1]
        u = state(model.backbone, read)
        v = state(model.threads[d], [item for item in read if model.item_domain[item] == d + 1])
        positive, negative = (mixed[item] @ u + own[item] @ v for item in (target, (a, b)[d][0]))
        if loss_type == "BPR":
            expected[d].append(-log_sigmoid(positive - negative))
        else:
            expected[d].append(-log_sigmoid(positive) - log_sigmoid(-negative))
    assert [len(one) for one in expected] == [2, 3]
    for d in (0, 1):
        assert found[d].item() == pytest.approx(np.mean(expected[d]), abs=1e-6)


@pytest.mark.parametrize("loss_type", ["CE", "SSM"])
def test_softmax_losses_are_of_the_summed_scores_too(ready, loss_type, monkeypatch):
    model = ready(alpha=0, beta=0, loss_type=loss_type, n_negatives=4)[0].eval()
    a, b = both(model)
    drawn = torch.stack([pool[[2, 3, 5, 6]] for pool in model.pools])
    if loss_type == "SSM":
        monkeypatch.setattr(model, "_negatives", lambda user, domain: drawn)
    items, targets = [a[1], b[1], a[2]], [b[1], a[2], b[3]]
    found = model.calculate_loss(one_sequence(model, items, targets))
    mixed, own = tables(model)
    for d in (0, 1):
        losses = []
        for t in (t for t, target in enumerate(targets) if model.item_domain[target] == d + 1):
            u = state(model.backbone, items[: t + 1])
            v = state(model.threads[d], [i for i in items[: t + 1] if model.item_domain[i] == d + 1])
            target = targets[t]
            others = (a, b)[d] if loss_type == "CE" else [target, *(i for i in drawn[d].tolist() if i != target)]
            scores = {item: mixed[item] @ u + own[item] @ v for item in others}
            losses.append(np.log(np.sum(np.exp(list(scores.values())))) - scores[target])
        assert found[d].item() == pytest.approx(np.mean(losses), abs=1e-5)


def infonce(one: np.ndarray, other: np.ndarray, temperature: float) -> float:
    """Both directions, each the mean over the batch, of cosines; from the definition."""
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    similarity = np.exp(one @ other.T / temperature)
    own = np.diag(similarity)
    return float(np.mean(-np.log(own / similarity.sum(1))) + np.mean(-np.log(own / similarity.sum(0))))


def test_the_regulariser_is_infonce_between_adapted_items_of_both_domains_that_one_user_met(ready, monkeypatch):
    model, train_data, _ = ready(alpha=0.4, beta=0, regulariser_temperature=0.5)
    a, b = both(model)
    met = torch.tensor([[a[1], a[2], a[5]], [b[2], b[1], b[7]]])
    monkeypatch.setattr(model, "_one_of_each_domain", lambda interaction: met)
    found = model.calculate_loss(next(iter(train_data)))
    assert len(found) == 3
    adapted = tables(model)[0][met.numpy()]
    assert found[2].item() == pytest.approx(0.4 * infonce(adapted[0], adapted[1], 0.5), abs=1e-5)


def test_the_regulariser_trains_the_adapter_and_nothing_else(ready):
    model, train_data, _ = ready(alpha=1.0, beta=0)
    model._regulariser(model._one_of_each_domain(next(iter(train_data)))).backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained == {f"backbone.item_embedding.adapter.{part}" for part in (
        "inner.weight", "inner.bias", "outer.weight", "outer.bias")}  # fmt: skip


@pytest.mark.parametrize("backbone", ["SASRec", MASKED])
def test_users_are_aligned_with_their_profiles_by_infonce_at_the_end_of_training(ready, backbone):
    model, train_data, _ = ready(alpha=0, beta=0.3, align_temperature=0.5, backbone=backbone)
    batch = next(iter(train_data))
    found = model.calculate_loss(batch)
    assert len(found) == 3
    with torch.no_grad():
        u = model.backbone(batch["item_id_list"], batch["item_length"]).double().numpy()
        p = model.profile_adapter(model.profiles[batch["user_id"]]).double().numpy()
    chosen = (batch[LAST_WINDOW].bool() & model.has_profile[batch["user_id"]]).numpy()
    assert 1 < chosen.sum()
    assert found[2].item() == pytest.approx(0.3 * infonce(u[chosen], p[chosen], 0.5), abs=1e-5)


# ---- what is drawn -----------------------------------------------------------------------------------------------


def test_the_pair_of_a_user_is_drawn_from_the_training_history_evenly_and_once_an_epoch(ready):
    model, train_data, _ = ready(alpha=0.1, MAX_ITEM_LIST_LENGTH=3)  # windows: long histories come several times
    part = train_data._dataset
    user, item = part.training_pairs
    history = {u: item[user == u].tolist() for u in range(1, part.user_num)}
    by_domain = {u: [[i for i in own if model.item_domain[i] == d + 1] for d in (0, 1)] for u, own in history.items()}
    overlapping = [u for u, own in by_domain.items() if all(own)]
    assert 0 < len(overlapping)
    n_drawn = 0
    for batch in train_data:
        met = model._one_of_each_domain(batch)
        last = batch["user_id"][batch[LAST_WINDOW].bool()].tolist()
        users = [u for u in last if all(by_domain[u])]
        assert met.shape == (2, len(users))
        n_drawn += len(users)
        for u, one, other in zip(users, *met.tolist(), strict=True):
            assert one in by_domain[u][0] and other in by_domain[u][1]
    assert n_drawn == len(overlapping)
    longest = max(overlapping, key=lambda u: len(set(by_domain[u][0])))
    batch = Interaction({"user_id": torch.tensor([longest] * 4000), LAST_WINDOW: torch.ones(4000)})
    drawn = model._one_of_each_domain(batch)[0].tolist()
    own = by_domain[longest][0]
    for one in set(own):
        assert drawn.count(one) / 4000 == pytest.approx(own.count(one) / len(own), abs=0.05)


def test_users_of_one_domain_are_trained_and_left_out_of_the_pairs(ready):
    model = ready(alpha=0.1, beta=0)[0].eval()
    fix_negatives(model)
    a, _ = both(model)
    for d in (0, 1):
        getattr(model, f"history_count_{d}")[1] = 1 - d  # user 1 has met nothing of B
    batch = one_sequence(model, [a[1], a[2]], [a[2], a[3]])
    loss_a, loss_b, regulariser = model.calculate_loss(batch)
    assert model._one_of_each_domain(batch).shape == (2, 0)
    assert loss_a.item() > 0 and loss_b.item() == 0 and regulariser.item() == 0
    sum((loss_a, loss_b, regulariser)).backward()
    assert all(weight.grad is None for weight in model.threads[1].position_embedding.parameters())


# ---- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_score_is_that_of_the_mixed_thread_plus_that_of_the_items_domain(ready, backbone):
    model, _, test_data = ready(backbone=backbone)
    model.eval()
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
        shared = model.backbone(batch["item_id_list"], batch["item_length"])
        mixed, own = model.item_embedding.weight, model.threads[0].item_embedding.weight
        for d, pool in enumerate(model.pools):
            v = model.threads[d](batch[DOMAIN_SEQ[d]], batch[DOMAIN_SEQ_LEN[d]])
            v[batch[DOMAIN_SEQ_LEN[d]] == 0] = 0
            torch.testing.assert_close(scores[:, pool], shared @ mixed[pool].T + v @ own[pool].T, atol=1e-5, rtol=1e-5)
        assert scores[:, 0].isinf().all()
        picked = model.predict(batch)
        vectors, again = model.vector_scores(batch), model.vector_scores(batch)
    torch.testing.assert_close(picked, scores[torch.arange(len(batch)), batch["item_id"]], atol=1e-5, rtol=1e-5)
    assert isinstance(vectors, VectorScores) and vectors.item is again.item
    for d, pool in enumerate(model.pools):
        torch.testing.assert_close(vectors.of_domain(d + 1) @ vectors.item[pool].T, scores[:, pool])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_user_without_history_in_a_domain_has_the_mixed_threads_score_alone_there(ready, backbone):
    model = ready(backbone=backbone)[0].eval()
    a, b = both(model)
    with torch.no_grad():
        scores = model.full_sort_predict(one_sequence(model, [a[1], a[2]], [a[2], a[3]]))[0]
        shared = model.backbone(torch.tensor([[a[1], a[2]]]), torch.tensor([2]))[0]
        table = model.item_embedding.weight
    torch.testing.assert_close(scores[b], table[b] @ shared, atol=1e-6, rtol=1e-5)
    assert (scores[a] - table[a] @ shared).abs().max() > 1e-3


def test_new_weights_give_new_scores_in_a_later_evaluation(ready):
    model, _, test_data = ready()
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        before = model.eval().item_table
        assert model.item_table is before
        model.train()
        model.threads[0].item_embedding.ids.weight[1:] += 1
        after = model.eval().item_table
        model.load_state_dict({key: value * 0 for key, value in model.state_dict().items()})
        assert not model.item_table.any()
    torch.testing.assert_close(after[1:, QUICK["hidden_size"] :], before[1:, QUICK["hidden_size"] :] + 1)
    assert torch.isfinite(model.full_sort_predict(batch)[:, 1:]).any()


# ---- positions, causality, padding -------------------------------------------------------------------------------


def own_states(model: LLM4CDSR, batch: Interaction) -> torch.Tensor:
    """``[T, H]`` of the domain threads, with nothing masked."""
    with torch.no_grad():
        return model._own_states(batch, batch[TARGET_SEQ] > 0, int((batch[TARGET_SEQ] > 0).sum()))[0]


@pytest.mark.parametrize("longest", [3, 8])
def test_every_target_of_every_window_has_the_state_of_its_domain_where_the_mixed_sequence_is(ready, longest):
    model, train_data, _ = ready(MAX_ITEM_LIST_LENGTH=longest)
    model.eval()
    part = train_data._dataset
    sequences, n_without = part.sequences, 0
    batch = part[torch.arange(len(part))]
    found = iter(own_states(model, batch))
    for place, row in enumerate(part.row.tolist()):
        first, start = int(sequences.first[row]), max(int(sequences.first[row]), row - longest)
        whole = sequences.item[first:row].tolist()
        for t in range(row - start):
            target = int(sequences.item[start + t + 1])
            assert int(batch[TARGET_SEQ][place, t]) == target
            d = int(model.item_domain[target]) - 1
            own = [i for i in whole if model.item_domain[i] == d + 1][-longest:]
            later = sum(int(model.item_domain[i]) == d + 1 for i in whole[start + t + 1 - first :])
            read = own[: len(own) - later]
            n_without += not read
            np.testing.assert_allclose(next(found).numpy(), state(model.threads[d], read), atol=1e-5)
    assert next(found, None) is None and n_without


def test_an_item_after_a_position_changes_nothing_at_or_before_it(ready):
    model = ready(alpha=0, beta=0)[0].eval()
    a, b = both(model)
    items, targets = [a[1], b[1], a[2], a[3], b[2]], [b[1], a[2], a[3], b[2], b[3]]
    before = own_states(model, one_sequence(model, items, targets))
    for t in range(1, 5):
        changed = list(items)
        changed[t] = (a, b)[int(model.item_domain[items[t]]) - 1][9]
        after = own_states(model, one_sequence(model, changed, targets))
        assert torch.equal(before[:t], after[:t])
        later = [s for s in range(t, 5) if model.item_domain[targets[s]] == model.item_domain[items[t]]]
        assert all((before[s] - after[s]).abs().max() > 1e-4 for s in later)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_changes_nothing(ready, backbone):
    model, train_data, test_data = ready(backbone=backbone, alpha=0, beta=0)
    model.eval()
    fix_negatives(model)
    train, test = next(iter(train_data)), next(iter(test_data))[0]
    model.backbone.predicted = lambda targets, length: targets > 0
    results = []
    for n in (0, 3):
        wide = []
        for batch in (train, test):
            columns = {key: x for key, x in batch.interaction.items()}
            for key, x in columns.items():
                if x.dim() == 2:
                    columns[key] = torch.nn.functional.pad(x, (0, min(n, QUICK["MAX_ITEM_LIST_LENGTH"] - x.shape[1])))
            wide.append(Interaction(columns))
        with torch.no_grad():
            results.append((torch.stack(model.calculate_loss(wide[0])), model.full_sort_predict(wide[1])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_by_masking_the_same_items_are_hidden_from_both_threads_that_predict_them(ready):
    model = ready(backbone=MASKED, alpha=0, beta=0)[0].eval()
    a, b = both(model)
    items = [a[1], b[1], a[2], a[3], b[2]]
    batch = one_sequence(model, items, items)
    hidden = torch.tensor([[False, True, True, False, False]])  # b1 of two B, a2 of three A
    with torch.no_grad():
        found = model._own_states(batch, hidden, int(hidden.sum()))[0]
        own = [torch.tensor([[a[1], a[2], a[3]]]), torch.tensor([[b[1], b[2]]])]
        masks = [torch.tensor([[False, True, False]]), torch.tensor([[True, False]])]
        of_a, of_b = (
            thread.training_states(seq, torch.tensor([seq.shape[1]]), mask)[0]
            for thread, seq, mask in zip(model.threads, own, masks, strict=True)
        )
        torch.testing.assert_close(found, torch.stack([of_b[0], of_a[1]]))
        all_of_b = model._own_states(batch, torch.tensor([[False, True, False, False, True]]), 2)[0]
    assert not all_of_b.any()  # with all of B hidden there is no history in B


# ---- backbones and losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("loss_type", ["BCE", "BPR", "CE", "SSM"])
def test_every_backbone_learns_with_every_loss(ready, backbone, loss_type):
    model, train_data, _ = ready(backbone=backbone, loss_type=loss_type, n_negatives=4)
    batch = next(iter(train_data))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    curve = []
    for step in range(20):
        torch.manual_seed(step % 2)
        optimizer.zero_grad()
        loss = sum(model.calculate_loss(batch))
        loss.backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
        optimizer.step()
        curve.append(loss.item())
    assert np.isfinite(curve).all() and np.mean(curve[-4:]) < np.mean(curve[:4])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mixed_precision_trains_with_losses_in_full_precision(ready, backbone):
    model, train_data, _ = ready(backbone=backbone, enable_amp=True)
    parts = model.train().calculate_loss(next(iter(train_data)))
    assert all(part.dtype == torch.float32 and part.isfinite() for part in parts)
    sum(parts).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


# ---- item embeddings ---------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**16))
def test_principal_components_are_those_of_the_covariance_of_the_directions(n, width, size, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    vectors[0] = 0
    found = principal_components(torch.from_numpy(vectors), size).double().numpy()
    unit = vectors[1:] / np.linalg.norm(vectors[1:], axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    kept = min(size, width, n - 2)
    _, _, axes = np.linalg.svd(centred.astype(np.float64))
    expected = centred @ axes[:kept].T
    assert found.shape == (n, size) and not found[0].any() and not found[:, kept:].any()
    # Components are told apart by their variances only, and the sign is free.
    np.testing.assert_allclose((found[1:] ** 2).sum(0)[:kept], (expected**2).sum(0), atol=1e-5)
    np.testing.assert_allclose(found[1:] @ found[1:].T, expected @ expected.T, atol=1e-5)


@pytest.mark.parametrize("vectors", [torch.zeros(3, 4), torch.tensor([[0.0, 0], [3, 4]])])
def test_no_vectors_and_a_single_one_have_no_components(vectors):
    assert torch.equal(principal_components(vectors, 2), torch.zeros(len(vectors), 2))


def test_domain_embeddings_start_from_the_components_of_their_domain_or_at_random(ready):
    model = ready()[0]
    text = model.item_embedding.text_vectors
    table = model.threads[0].item_embedding.ids.weight.data
    for pool in model.pools:
        torch.testing.assert_close(table[pool], principal_components(text[pool], QUICK["hidden_size"]))
    assert not table[0].any()
    assert model.threads[0].item_embedding.ids is model.threads[1].item_embedding.ids  # rows of one table
    other = ready(domain_items="random")[0].threads[0].item_embedding.ids.weight
    assert other[1:].std().item() == pytest.approx(0.02, rel=0.2)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    assert sum(size for name, size in sizes.items() if name.endswith("ids.weight")) == table.numel()
    assert "backbone.item_embedding.text_vectors" not in model.state_dict()  # frozen, and beside the data


# ---- ablations ---------------------------------------------------------------------------------------------------


def test_each_ablation_switches_one_part_off(ready):
    def parts(**keys):
        model, train_data, _ = ready(**keys)
        return model, len(model.calculate_loss(next(iter(train_data))))

    whole, n_losses = parts()
    assert n_losses == 4
    model, n_losses = parts(alpha=0)
    assert n_losses == 3 and not hasattr(model, "history_0")
    model, n_losses = parts(beta=0)
    assert n_losses == 3 and model.profile_adapter is None
    model, n_losses = parts(domain_threads=False)
    assert n_losses == 4 and len(model.threads) == 0
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"backbone", "profile_adapter"}
    model, n_losses = parts(item_adapter=False, alpha=0)
    assert n_losses == 3 and model.item_embedding.adapter is None
    assert whole.item_embedding.adapter is not None


def test_the_single_thread_scores_with_the_mixed_thread_alone(ready):
    model, _, test_data = ready(domain_threads=False)
    model.eval()
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
        expected = model.backbone(batch["item_id_list"], batch["item_length"]) @ model.item_embedding.weight.T
    real = torch.cat(model.scored)
    torch.testing.assert_close(scores[:, real], expected[:, real], atol=1e-5, rtol=1e-5)


def test_without_the_adapter_the_mixed_items_are_components_that_never_change(ready):
    model, train_data, _ = ready(item_adapter=False, alpha=0)
    before = model.item_embedding.weight.clone()
    text = train_data._dataset.item_vectors()
    torch.testing.assert_close(before[1:], principal_components(text[1:], QUICK["hidden_size"]))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1)
    sum(model.calculate_loss(next(iter(train_data)))).backward()
    optimizer.step()
    assert torch.equal(model.item_embedding.weight, before)


def test_ablate_has_a_row_for_each_part(workplace):
    settings = load_settings("tiny", [], {**QUICK, "model": "LLM4CDSR"})
    variants = ablation.variants_of(settings)
    assert list(variants) == [
        "LLM4CDSR", "w/o Regulariser", "w/o Profiles", "w/o Hierarchical Profiling", "w/o Adapter", "Single Thread"
    ]  # fmt: skip
    ablation.check(settings)
    own = {name: ablation.settings_of(settings, name, keys, 42) for name, keys in variants.items()}
    assert {name for name, one in own.items() if one.data_variant} == {"w/o Hierarchical Profiling"}
    assert own["w/o Hierarchical Profiling"].pipelines == ("plain",)
    assert own["Single Thread"].pipelines == ("hierarchical",)


# ---- settings ----------------------------------------------------------------------------------------------------


def test_settings_out_of_range_are_listed_together():
    given = {"backbone": "SASRek", "loss_type": "XE", "alpha": -1, "beta": -0.5, "regulariser_temperature": 0}
    given |= {"align_temperature": 0, "domain_items": "svd", "n_negatives": 0}
    with pytest.raises(ConfigError) as error:
        read_settings(LLM4CDSRSettings, dict.fromkeys(LLM4CDSRSettings.__dataclass_fields__) | given)
    assert all(f"{key}:" in str(error.value) for key in given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"item_adapter": False}, "item_adapter: false leaves nothing for the regulariser to train; set alpha: 0"),
        ({"betta": 0.1}, "unknown key 'betta' (did you mean 'beta'?)"),
        ({"model_settings.LLM4CDSR.beta": -1}, "beta: -1 is below 0"),
        ({"domain_items": "svd"}, "domain_items: 'svd' is not one of pca, random"),
        ({"domain_threads": 2}, "domain_threads: 2 is not true or false"),
        ({"profiles": "sar"}, "profiles: 'sar' is not one of sra, hierarchical, plain"),
        ({"model": "LLM4CDRS"}, "unknown model 'LLM4CDRS' (did you mean 'LLM4CDSR'?)"),
    ],
)
def test_a_key_that_is_wrong_is_named_before_any_work(given, said):
    with pytest.raises(ConfigError) as error:
        load_settings("tiny", [], {"model": "LLM4CDSR", **given})
    assert said in str(error.value)


def test_a_width_that_heads_do_not_divide_is_named():
    settings = load_settings("tiny", [], {"model": "LLM4CDSR", "hidden_size": 9})
    with pytest.raises(ConfigError, match="LLM4CDSR: hidden_size: 9 is not a multiple of n_heads, 2"):
        check_model(settings, "LLM4CDSR")


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({}, ("sra",)),
        ({"model": "LLM4CDSR"}, ("hierarchical",)),
        ({"models": "SASRec,LLM4CDSR"}, ("hierarchical",)),
        ({"models": "LLM4CDSR,LLMEDT"}, ("sra", "hierarchical")),
        ({"models": "Pop"}, ("sra",)),
        ({"model": "LLM4CDSR", "profile.pipeline": "plain"}, ("plain",)),
        ({"models": "LLM4CDSR,LLMEDT", "profile.pipeline": "sra"}, ("sra",)),
        ({"models": "LLM4CDSR,LLMEDT", "model_settings.LLM4CDSR.profiles": "plain"}, ("sra", "plain")),
    ],
)
def test_the_profiles_written_are_those_that_the_methods_read(given, kinds, workplace):
    settings = load_settings("tiny", [], {**QUICK, **given})
    assert settings.pipelines == kinds and settings.profile.pipeline == kinds[0]
    for model in ("LLMEDT", "LLM4CDSR"):
        read = recbole_config(settings, model, "tiny-edt", Path("runs"))["profiles"] or METHODS[model].profiles
        assert read == profiles_of(settings, model)
        if model in given.get("models", given.get("model", "LLMEDT")):
            assert read in kinds


# ---- whole runs --------------------------------------------------------------------------------------------------


def test_both_methods_are_compared_by_name_each_with_its_own_profiles(workplace, capsys):
    assert run(["--models=Pop,LLM4CDSR,LLMEDT", *TINY]) == 0
    printed = capsys.readouterr().out
    rows = [line.split()[0].rstrip("†") for line in printed.splitlines()]
    assert [row for row in rows if row in ("Pop", "LLM4CDSR", "LLMEDT")] == ["Pop", "LLM4CDSR", "LLMEDT"]
    assert "hierarchical profiles: 40 of 40 users" in printed and "\nprofiles: 40 of 40 users" in printed
    names = {path.name for path in Path("atomic_files/tiny-edt").iterdir()}
    assert {"tiny-edt.uservec.safetensors", "tiny-edt.hierarchical.uservec.safetensors"} <= names
    assert {"profile.json", "profile.hierarchical.json", "tiny-edt.user", "tiny-edt.hierarchical.user"} <= names
    results = {name: json.loads((model_folder(name) / "result.json").read_text()) for name in ("LLM4CDSR", "LLMEDT")}
    assert [results[name]["sees_generated"] for name in results] == [False, True]
    assert results["LLM4CDSR"]["split_hash"] == results["LLMEDT"]["split_hash"]
    assert [phase["phase"] for phase in results["LLM4CDSR"]["phases"]] == ["train"]
    best = model_folder("LLM4CDSR") / "best.pth"
    before = best.stat().st_mtime_ns
    assert run(["compare", "--models=LLM4CDSR,LLMEDT", *TINY]) == 0
    assert best.stat().st_mtime_ns == before


@pytest.mark.parametrize("backbone", ["GRU4Rec", MASKED])
def test_a_trained_run_is_opened_and_recommends(workplace, backbone):
    assert run(["--model=LLM4CDSR", f"--backbone={backbone}", *TINY]) == 0
    model = recbole_edt.load(model_folder("LLM4CDSR"))
    top = model.recommend(["f1", "k2", "f3"], k=5, domain="kitchen")
    assert len(top) == 5 and top["item"].str.startswith("k").all() and not top["item"].eq("k2").any()
    new = model.recommend(["f1"], k=5, domain="kitchen")  # no history there
    assert len(new) == 5 and np.isfinite(new["score"]).all()


def test_a_run_that_was_interrupted_ends_with_the_same_weights(workplace, monkeypatch):
    for stage in ("embed", "augment", "profile"):
        assert run([stage, "--model=LLM4CDSR", *TINY]) == 0
    train = ["train", "--model=LLM4CDSR", *TINY, "--epochs=3"]
    assert run([*train, "--runs_path=one"]) == 0
    real, calls = LLM4CDSR.calculate_loss, []

    def fails_once(self, interaction):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, interaction)

    monkeypatch.setattr(LLM4CDSR, "calculate_loss", fails_once)
    assert run([*train, "--runs_path=other"]) == 130
    assert run([*train, "--runs_path=other"]) == 0
    folders = [model_folder("LLM4CDSR", runs) for runs in ("one", "other")]
    one, other = (load_checkpoint(folder / "best.pth")["state_dict"] for folder in folders)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_other_held_out_items_change_no_profile_no_batch_and_no_pair(workplace):
    assert swap_held_out(Path("atomic_files/tiny"), Path("swapped/tiny")) == 80
    seen, files = [], []
    for folder in ("atomic_files", "swapped"):
        arguments = ["--model=LLM4CDSR", *TINY, f"--data_path={folder}"]
        for stage in ("embed", "augment", "profile"):
            assert run([stage, *arguments]) == 0
        keys = {**QUICK, "model": "LLM4CDSR", "data_path": folder, "runs_path": f"{folder}-runs"}
        seen.append([])
        for backbone in ("SASRec", MASKED):
            settings = load_settings("tiny", [], {**keys, "backbone": backbone})
            experiment = comparison.open_experiment(settings)
            own = recbole_config(settings, "LLM4CDSR", "tiny-edt", experiment.folder)
            loader, _, _, cls = loaders(experiment, own, "LLM4CDSR")
            torch.manual_seed(3)
            model = cls(own, loader._dataset)
            for batch in loader:
                seen[-1] += [*batch.interaction.values(), model._one_of_each_domain(batch)]
                torch.manual_seed(len(seen[-1]))
                seen[-1] += [loss.detach() for loss in model.calculate_loss(batch)]
            seen[-1] += model.state_dict().values()
        place = Path(folder) / "tiny-edt"
        files.append([(place / f"tiny-edt.hierarchical.{end}").read_bytes() for end in ("user", "uservec.safetensors")])
    assert files[0] == files[1] and len(seen[0]) == len(seen[1]) > 50
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
