"""Equations 4 to 15 of the paper, each against NumPy written from the print, to 1e-6; and what must hold always.

The reference below knows nothing of the library but its weights: a SASRec in NumPy, its scores and its losses.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from scipy.special import erf
from toy import dataset, table_of

from recbole_edt.augment import augment
from recbole_edt.augment.cooccurrence import OfflineGenerator
from recbole_edt.augment.filter import best_match, keep_relevant
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.config import settings as config
from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.data.split import training_rows
from recbole_edt.experiments import compare
from recbole_edt.models.llmedt import LLMEDT
from recbole_edt.models.parts.batch_fields import LAST_WINDOW, TARGET_SEQ
from recbole_edt.models.parts.item_encoder import Adapter
from recbole_edt.models.parts.losses import alignment_loss
from recbole_edt.train import comparison, run

ITEMS = [f"{domain}{i}" for domain in "fk" for i in range(6)]

# ---- section 3.2: augmentation, equations 4 to 6 -----------------------------------------------------------------


def test_equation_4_the_generator_of_items_of_b_reads_the_representatives_of_a_and_the_other_way_round(monkeypatch):
    data = dataset(["f1 k1 f2 f3 k2 f4 k3 f5 k4", "f3 f2 k2 f1 k1"])
    # Two clusters in each domain: three items about one axis, f2 and k1 in their middle, and the rest on another.
    angles = {"f1": 10, "f2": 0, "f3": -10, "f4": 90, "f5": 91, "k1": 0, "k2": 10, "k3": 90, "k4": -10}
    radians = np.deg2rad([angles[token] for token in data.items])
    table = table_of(data, np.stack([np.cos(radians), np.sin(radians)], axis=1))
    read = {}

    def propose(self, train, representatives, vectors, source_domain, n):
        read[source_domain] = [
            (train.users[train.user[row]], train.items[train.item[row]]) for row in representatives.tolist()
        ]
        return own(self, train, representatives, vectors, source_domain, n)

    own = OfflineGenerator.propose
    monkeypatch.setattr(OfflineGenerator, "propose", propose)
    augment.augment(data, table, AugmentConfig(n_clusters=2))
    # u0 trains on f1 k1 f2 f3 k2 f4 k3 (f5 and k4 are held out), u1 on f3 f2 k2.
    assert read[0] == [("u0", "f2"), ("u0", "f4"), ("u1", "f2")]
    assert read[1] == [("u0", "k1"), ("u0", "k3"), ("u1", "k2")]


def similar(generated: np.ndarray, representatives: np.ndarray) -> np.ndarray:
    cosines = [
        [g @ r / np.linalg.norm(g) / np.linalg.norm(r) for r in representatives] for g in generated.astype(np.float64)
    ]
    return np.array(cosines)


@pytest.fixture
def generated():
    """Vectors of 7 generated items, and of the 4 and 3 representatives of one user in domain A and B."""
    rng = np.random.default_rng(4)
    return rng.normal(size=(7, 5)), rng.normal(size=(4, 5)), rng.normal(size=(3, 5))


def test_equation_5_each_generated_item_takes_the_most_similar_representative_and_its_cosine(generated):
    items, of_a, of_b = generated
    vectors = np.concatenate([items, of_a, of_b]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nobody = np.zeros(7, np.int64)
    for representatives, first in ((of_a, 7), (of_b, 11)):
        spoken = np.arange(first, first + len(representatives))
        place, score = best_match(vectors, np.arange(7), nobody, spoken, np.zeros(len(spoken), np.int64))
        cosines = similar(items, representatives)
        assert place.tolist() == cosines.argmax(1).tolist()
        np.testing.assert_allclose(score, cosines.max(1), atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("tau", [-1.0, 0.0, 0.3])
def test_equation_6_an_item_passes_with_one_of_the_k_best_ranks_in_a_and_at_least_tau_in_b(generated, k, tau):
    items, of_a, of_b = generated
    score_a, score_b = similar(items, of_a).max(1), similar(items, of_b).max(1)
    rank = [1 + sum(other > own for other in score_a) for own in score_a]
    expected = [rank[i] <= k and score_b[i] >= tau for i in range(7)]
    kept = keep_relevant(np.zeros(7, np.int64), score_a, score_b, k, tau)
    assert kept.tolist() == expected


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(1, 5),
    st.integers(0, 2**16),
)
def test_representatives_are_at_most_one_per_cluster_and_all_from_training(histories, n_clusters, seed):
    data = dataset([" ".join(history) for history in histories], ITEMS)
    vectors = np.random.default_rng(seed).normal(size=(12, 4))
    train = training_rows(data)
    chosen = AugmentConfig(n_clusters=n_clusters)
    for domain, rows in enumerate(augment._representatives(data, train, vectors, chosen)):
        user = train.user[rows]
        assert len(rows) == 0 or np.bincount(user).max() <= n_clusters
        for u, token in zip(user.tolist(), train.items[train.item[rows]].tolist(), strict=True):
            assert token[0] == "fk"[domain]
            assert len(histories[u]) >= 3 and token in histories[u][:-2]


# ---- section 3.3: a SASRec in NumPy ------------------------------------------------------------------------------


def adapted(adapter: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """W_out (W_in x + b_in) + b_out, row by row."""
    weights = {key: value.numpy() for key, value in adapter.state_dict().items()}
    return np.stack(
        [
            weights["outer.weight"] @ (weights["inner.weight"] @ row + weights["inner.bias"]) + weights["outer.bias"]
            for row in x
        ]
    )


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * weight + bias


class Reference:
    """The model's equations in NumPy, on the weights of a model in double precision."""

    def __init__(self, model: LLMEDT) -> None:
        self.model = model
        self.weights = {key: value.numpy() for key, value in model.backbone.state_dict().items()}
        text = model.item_embedding.text_vectors.numpy()
        self.items = adapted(model.item_embedding.adapter, text)  # eq. 7
        self.items[0] = 0  # the padding
        self.domain = model.item_domain.numpy()

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def states(self, items: list[int]) -> np.ndarray:
        """[L, H] states of one sequence, each from the items up to it."""
        x = self.norm(self.items[items] + self.weights["position_embedding.weight"][: len(items)], "LayerNorm")
        for n in range(self.model.backbone.n_layers):
            x = self.layer(x, f"trm_encoder.layer.{n}")
        return x

    def layer(self, x: np.ndarray, name: str) -> np.ndarray:
        attention = f"{name}.multi_head_attention"
        query, key, value = (self.linear(x, f"{attention}.{part}") for part in ("query", "key", "value"))
        heads = self.model.backbone.n_heads
        width = x.shape[1] // heads
        out = np.zeros_like(x)
        for t in range(len(x)):
            for part in (slice(h * width, (h + 1) * width) for h in range(heads)):
                logits = key[: t + 1, part] @ query[t, part] / np.sqrt(width)
                share = np.exp(logits - logits.max())
                out[t, part] = share / share.sum() @ value[: t + 1, part]
        x = self.norm(x + self.linear(out, f"{attention}.dense"), f"{attention}.LayerNorm")
        inner = self.linear(x, f"{name}.feed_forward.dense_1")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        return self.norm(x + self.linear(inner, f"{name}.feed_forward.dense_2"), f"{name}.feed_forward.LayerNorm")

    def user(self, items: list[int]) -> np.ndarray:
        """u~, eq. 8."""
        return self.states(items)[-1]

    def own_user(self, items: list[int], d: int) -> np.ndarray:
        """u^A or u^B, eq. 10; zero for a user without items of the domain."""
        own = [i for i in items if self.domain[i] == d + 1]
        if not own:
            return np.zeros(self.items.shape[1])
        return adapted(self.model.user_adapters[d], self.states(own)[-1:])[0]


def log_sigmoid(x: float) -> float:
    return -np.log1p(np.exp(-x))


@pytest.fixture
def opened(workplace):
    """Model in double precision with adapters that say something, its NumPy reference, and a training batch."""
    quick = {**QUICK, "attn_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "alpha": 0.3, "align_temperature": 0.5}
    quick["MAX_ITEM_LIST_LENGTH"] = 30  # nothing is cut
    chosen = config.load_settings("tiny", [], quick)
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](chosen, lambda line: None)
    experiment = comparison.open_experiment(chosen)
    view = recbole_config(chosen, "LLMEDT", "tiny-edt", workplace / "saved")
    train_data, _, test_data, cls = run.loaders(experiment, view, "LLMEDT")
    torch.manual_seed(7)
    model = cls(view, train_data._dataset).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    # The first item of each domain is everybody's negative.
    model.sampler.draw = lambda user, domain, n=1: torch.stack([model.pools[d][:n] for d in domain.tolist()])
    return model, Reference(model), next(iter(train_data)), next(iter(test_data))[0]


def rows(batch) -> list[tuple[int, list[int], list[int]]]:
    """User, items and targets of each row, without padding."""
    fields = zip(batch["user_id"].tolist(), batch["item_id_list"], batch[TARGET_SEQ], batch["item_length"], strict=True)
    return [(user, items[:n].tolist(), targets[:n].tolist()) for user, items, targets, n in fields]


def histories(batch) -> list[list[int]]:
    return [items[:n].tolist() for items, n in zip(batch["item_id_list"], batch["item_length"], strict=True)]


def test_equation_7_items_are_text_through_two_linear_maps_with_a_bottleneck_of_half_its_width(opened):
    model, reference, *_ = opened
    width = model.item_embedding.text_vectors.shape[1]
    assert model.item_embedding.adapter.inner.weight.shape == (width // 2, width)
    np.testing.assert_allclose(model.item_embedding.weight.detach(), reference.items, atol=1e-6)
    ids = torch.tensor([[1, 5], [0, 1]])
    np.testing.assert_allclose(model.item_embedding(ids).detach(), reference.items[ids], atol=1e-6)


def test_equation_8_the_global_score_is_the_item_times_the_last_state_of_the_mixed_sequence(opened):
    model, reference, _, batch = opened
    with torch.no_grad():
        scores = model.eval().full_sort_predict(batch).numpy()
    expected = np.stack([reference.items @ reference.user(items) for items in histories(batch)])
    np.testing.assert_allclose(scores[:, 1:], expected[:, 1:], atol=1e-6)


def bpr_of_pretraining(reference: Reference, batch) -> float:
    total = []
    for _, items, targets in rows(batch):
        states = reference.states(items)
        for u, target in zip(states, targets, strict=True):
            negative = int(reference.model.pools[reference.domain[target] - 1][0])
            total.append(-log_sigmoid(u @ reference.items[target] - u @ reference.items[negative]))
    return float(np.mean(total))


def test_equation_9_pretraining_is_bpr_over_every_position_of_the_mixed_sequence(opened):
    model, reference, batch, _ = opened
    assert model.calculate_loss(batch)[0].item() == pytest.approx(bpr_of_pretraining(reference, batch), abs=1e-6)


def with_states(model: LLMEDT, batch):
    """The batch as ready for fine-tuning: frozen states of every target."""
    model.start(model.method.phases[1])
    return model.train().frozen_states(batch)


def test_equation_10_a_domains_user_vector_is_two_linear_maps_of_the_frozen_state_of_its_own_sequence(opened):
    model, reference, _, batch = opened
    model.start(model.method.phases[1])
    with torch.no_grad():
        vectors = model.eval().user_vectors(batch).numpy()
    for b, items in enumerate(histories(batch)):
        for d in (0, 1):
            own = vectors[d, b] - reference.user(items)
            np.testing.assert_allclose(own, reference.own_user(items, d), atol=1e-6)


def test_equation_11_the_score_is_the_domains_part_plus_the_global_part(opened):
    model, reference, _, batch = opened
    model.start(model.method.phases[1])
    with torch.no_grad():
        scores = model.eval().full_sort_predict(batch).numpy()
    for b, items in enumerate(histories(batch)):
        for d in (0, 1):
            table = reference.items[model.scored[d]]
            expected = table @ reference.own_user(items, d) + table @ reference.user(items)
            np.testing.assert_allclose(scores[b, model.scored[d]], expected, atol=1e-6)


def bpr_of_finetuning(reference: Reference, batch) -> list[float]:
    """L_A and L_B."""
    total: tuple[list, list] = ([], [])
    for _, items, targets in rows(batch):
        for t, target in enumerate(targets):
            d = reference.domain[target] - 1
            u = reference.user(items[: t + 1]) + reference.own_user(items[: t + 1], d)
            negative = int(reference.model.pools[d][0])
            total[d].append(-log_sigmoid(u @ reference.items[target] - u @ reference.items[negative]))
    return [float(np.mean(part)) for part in total]


def test_equation_12_finetuning_is_bpr_of_the_full_score_in_each_domain(opened):
    model, reference, batch, _ = opened
    losses = model.calculate_loss(with_states(model, batch))
    np.testing.assert_allclose([loss.item() for loss in losses], bpr_of_finetuning(reference, batch), atol=1e-6)


def alignment(reference: Reference, batch, temperature: float) -> float:
    """L_align^1 + L_align^2 of the users of the batch, in loops."""
    users, profiles = [], []
    for (user, items, _), last in zip(rows(batch), batch[LAST_WINDOW].tolist(), strict=True):
        if last and reference.model.has_profile[user]:
            users.append(reference.user(items))
            profiles.append(reference.model.profiles[user].numpy())
    profiles = list(adapted(reference.model.profile_adapter, np.stack(profiles)))
    total = 0.0
    for one, other in ((users, profiles), (profiles, users)):
        for i, x in enumerate(one):
            cos = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in other]
            below = sum(np.exp(c / temperature) for j, c in enumerate(cos) if j != i)
            total -= np.log(np.exp(cos[i] / temperature) / below) / len(one)
    return total


def test_equation_13_alignment_contrasts_each_users_state_with_the_profiles_of_the_batch_both_ways(opened):
    model, reference, batch, _ = opened
    align = model.calculate_loss(batch)[1].item() / 0.3
    assert align == pytest.approx(alignment(reference, batch, 0.5), abs=1e-6)


def test_equation_14_pretraining_minimises_the_sum_of_both_losses_over_backbone_and_item_adapter(opened):
    model, reference, batch, _ = opened
    loss = sum(model.calculate_loss(batch))
    loss.backward()
    expected = bpr_of_pretraining(reference, batch) + 0.3 * alignment(reference, batch, 0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    learnt = {key.partition(".")[0] for key, weight in model.named_parameters() if weight.grad is not None}
    assert learnt == {"backbone", "profile_adapter"}
    for weight in (model.item_embedding.adapter.outer.weight, model.profile_adapter.inner.weight):
        slope = numeric_slope(weight, lambda: sum(model.calculate_loss(batch)).item())
        assert weight.grad[0, 0].item() == pytest.approx(slope, abs=1e-6)


def numeric_slope(weight: torch.Tensor, loss, step: float = 1e-4) -> float:
    """Central difference along the first entry."""
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * step
            values.append(loss())
            weight[0, 0] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def test_equation_15_finetuning_minimises_the_sum_of_both_domains_losses_over_the_two_adapters_alone(opened):
    model, reference, batch, _ = opened
    states = with_states(model, batch)
    sum(model.calculate_loss(states)).backward()
    learnt = {key for key, weight in model.named_parameters() if weight.grad is not None}
    assert learnt == {key for key, _ in model.named_parameters() if key.startswith("user_adapters")}
    for adapter in model.user_adapters:
        slope = numeric_slope(adapter.outer.weight, lambda: sum(bpr_of_finetuning(reference, batch)))
        assert adapter.outer.weight.grad[0, 0].item() == pytest.approx(slope, abs=1e-6)


def test_padding_changes_no_score_and_no_loss(opened):
    model, _, batch, test_batch = opened
    losses = [loss.item() for loss in model.calculate_loss(batch)]
    padded = [{key: wider(value) for key, value in one.interaction.items()} for one in (batch, test_batch)]
    assert losses == pytest.approx([loss.item() for loss in model.calculate_loss(Interaction(padded[0]))], abs=1e-9)
    model.start(model.method.phases[1])
    with torch.no_grad():
        scores, again = (model.eval().full_sort_predict(one) for one in (test_batch, Interaction(padded[1])))
    torch.testing.assert_close(scores, again, atol=1e-9, rtol=0)


def wider(value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(value, (0, 3)) if value.dim() == 2 else value


# ---- what holds for any input ------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**16), st.floats(0.1, 2.0))


@given(sizes)
def test_alignment_is_symmetric_in_users_and_profiles(size):
    n, width, seed, temperature = size
    u, p = torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for denominator in ("paper", "infonce"):
        one, other = alignment_loss(u, p, temperature, denominator), alignment_loss(p, u, temperature, denominator)
        assert one.item() == pytest.approx(other.item(), abs=1e-9)


@given(sizes)
def test_alignment_leaves_exactly_the_users_own_pair_out_of_the_denominator(size):
    n, width, seed, temperature = size
    u, p = torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cos = torch.nn.functional.cosine_similarity(u[:, None], p[None], dim=-1).numpy() / temperature
    own, others = np.exp(np.diag(cos)), np.exp(cos) * (1 - np.eye(n))
    # With the pair kept, each denominator is larger by exp(own cosine), and by nothing else.
    gap = [np.mean(np.log(1 + own / others.sum(axis))) for axis in (0, 1)]
    found = alignment_loss(u, p, temperature, "infonce") - alignment_loss(u, p, temperature, "paper")
    assert found.item() == pytest.approx(sum(gap), abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16))
def test_multiplying_an_adapters_maps_first_changes_nothing(n_in, bottleneck, n_out, seed):
    torch.manual_seed(seed)
    adapter, x = Adapter(n_in, bottleneck, n_out).double(), torch.randn(3, n_in, dtype=torch.float64)
    np.testing.assert_allclose(adapter(x).detach(), adapted(adapter, x.numpy()), atol=1e-12)
