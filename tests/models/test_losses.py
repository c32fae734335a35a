"""Losses against NumPy written from the formulas, and the cases where a formula has no value."""

import numpy as np
import pytest
import torch

from recbole_edt.models.parts.losses import alignment_loss, bce, bpr, sampled_softmax, softmax_cross_entropy


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def random_scores(n_positions=7, n_negatives=3):
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(n_positions, generator=generator, dtype=torch.float64)
    negative = torch.randn(n_positions, n_negatives, generator=generator, dtype=torch.float64)
    return positive, negative


def test_bpr_is_minus_log_sigmoid_of_the_difference_averaged():
    positive, negative = random_scores()
    expected = -np.log(sigmoid(positive.numpy()[:, None] - negative.numpy())).mean()
    assert bpr(positive, negative).item() == pytest.approx(expected, abs=1e-12)


def test_bpr_by_hand():
    loss = bpr(torch.tensor([0.0, np.log(3.0)]), torch.tensor([[0.0], [0.0]]))
    assert loss.item() == pytest.approx((np.log(2) + np.log(4 / 3)) / 2, abs=1e-6)


def test_bpr_stays_finite_for_a_hopeless_difference():
    assert bpr(torch.tensor([-500.0]), torch.tensor([[500.0]])).item() == pytest.approx(1000.0)


def test_bce_adds_the_means_of_positives_and_negatives():
    positive, negative = random_scores()
    expected = -np.log(sigmoid(positive.numpy())).mean() - np.log(1 - sigmoid(negative.numpy())).mean()
    assert bce(positive, negative).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("loss", [bpr, bce, lambda p, n: sampled_softmax(p, n, torch.zeros_like(n).bool())])
def test_a_loss_over_no_positions_is_zero_and_differentiable(loss):
    positive, negative = torch.zeros(0, requires_grad=True), torch.zeros(0, 2, requires_grad=True)
    value = loss(positive, negative)
    value.backward()
    assert value.item() == 0
    assert positive.grad is not None


@pytest.mark.parametrize("loss", [bpr, bce])
@pytest.mark.parametrize("shape", [(4,), (1, 2), (2, 4)])
def test_negatives_that_would_broadcast_are_refused(loss, shape):
    with pytest.raises(ValueError, match="expected positive scores"):
        loss(torch.zeros(4), torch.zeros(shape))


def softmax_example(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    user = torch.randn(13, 5, generator=generator, dtype=dtype)
    table = torch.randn(11, 5, generator=generator, dtype=dtype)
    bias = torch.randn(11, generator=generator, dtype=dtype)
    target = torch.randint(11, (13,), generator=generator)
    return user, table, bias, target


def test_softmax_cross_entropy_is_the_formula():
    user, table, bias, target = softmax_example()
    scores = user.numpy() @ table.numpy().T + bias.numpy()
    expected = (np.log(np.exp(scores).sum(1)) - scores[np.arange(13), target.numpy()]).mean()
    assert softmax_cross_entropy(user, table, target, bias).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("max_elements", [1, 11, 11 * 4, 11 * 12, 11 * 13])
def test_chunks_change_neither_the_loss_nor_a_gradient(max_elements):
    user, table, bias, target = softmax_example(torch.float32)
    plain = [x.clone().requires_grad_() for x in (user, table, bias)]
    chunked = [x.clone().requires_grad_() for x in (user, table, bias)]
    expected = torch.nn.functional.cross_entropy(plain[0] @ plain[1].T + plain[2], target)
    expected.backward()
    loss = softmax_cross_entropy(chunked[0], chunked[1], target, chunked[2], max_elements=max_elements)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for a, b in zip(chunked, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=0)


def test_no_more_scores_than_allowed_are_computed_at_once(monkeypatch):
    user, table, bias, target = softmax_example()
    sizes = []
    linear = torch.nn.functional.linear

    def watched(*arguments):
        sizes.append(linear(*arguments).numel())
        return linear(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    softmax_cross_entropy(user.requires_grad_(), table, target, max_elements=50).backward()
    assert len(sizes) > 1
    assert max(sizes) <= 50


def test_an_item_with_bias_minus_infinity_is_not_in_the_softmax():
    user, table, _, target = softmax_example()
    target = target.clamp(min=1)
    bias = torch.zeros(11, dtype=torch.float64)
    bias[0] = -torch.inf
    without = softmax_cross_entropy(user, table[1:], target - 1)
    table = table.clone().requires_grad_()
    loss = softmax_cross_entropy(user, table, target, bias, max_elements=33)
    loss.backward()
    assert loss.item() == pytest.approx(without.item(), abs=1e-6)
    assert table.grad[0].abs().max() == 0
    assert table.grad.isfinite().all()


def test_softmax_over_no_positions_is_zero():
    assert softmax_cross_entropy(torch.zeros(0, 5), torch.zeros(3, 5), torch.zeros(0).long()).item() == 0


def test_sampled_softmax_is_the_formula_and_leaves_hits_out():
    positive, negative = random_scores()
    hit = torch.zeros(7, 3, dtype=torch.bool)
    hit[2, 1] = hit[5] = True
    exponentials = np.where(hit.numpy(), 0, np.exp(negative.numpy()))
    p = np.exp(positive.numpy())
    expected = -np.log(p / (p + exponentials.sum(1))).mean()
    assert sampled_softmax(positive, negative, hit).item() == pytest.approx(expected, abs=1e-12)


def test_sampled_softmax_gives_no_gradient_to_a_hit():
    positive, negative = random_scores()
    negative = negative.requires_grad_()
    hit = torch.zeros(7, 3, dtype=torch.bool)
    hit[5] = True
    sampled_softmax(positive, negative, hit).backward()
    assert negative.grad[5].abs().max() == 0
    assert negative.grad[4].abs().min() > 0


def alignment_by_hand(user, profile, temperature, keep_positive):
    """Eq. 13 in loops."""
    u = user / np.linalg.norm(user, axis=1, keepdims=True)
    p = profile / np.linalg.norm(profile, axis=1, keepdims=True)
    total = 0.0
    for first, second in ((u, p), (p, u)):
        for i in range(len(u)):
            others = [j for j in range(len(u)) if keep_positive or j != i]
            below = sum(np.exp(first[i] @ second[j] / temperature) for j in others)
            total -= np.log(np.exp(first[i] @ second[i] / temperature) / below) / len(u)
    return total


@pytest.mark.parametrize("denominator", ["paper", "infonce"])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_alignment_is_equation_13_in_both_directions(denominator, temperature):
    generator = torch.Generator().manual_seed(2)
    user = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    profile = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    expected = alignment_by_hand(user.numpy(), profile.numpy(), temperature, denominator == "infonce")
    loss = alignment_loss(user, profile, temperature, denominator)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_alignment_of_two_orthogonal_users_by_hand():
    vectors = torch.eye(2, dtype=torch.float64)
    # Own cosine 1, other cosine 0: -log(e / 1) = -1 in each direction; with the positive, log(e + 1) - 1.
    assert alignment_loss(vectors, 3 * vectors, 1.0).item() == pytest.approx(-2)
    assert alignment_loss(vectors, vectors, 1.0, "infonce").item() == pytest.approx(2 * (np.log(np.e + 1) - 1))


def test_alignment_has_finite_gradients_for_a_zero_profile():
    user, profile = torch.randn(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    alignment_loss(user, profile, 0.2).backward()
    assert user.grad.isfinite().all()
    assert profile.grad.isfinite().all()


@pytest.mark.parametrize(
    ("n_users", "temperature", "denominator", "message"),
    [(1, 0.2, "paper", "at least 2 users"), (2, 0.0, "paper", "above 0"), (2, 0.2, "softmax", "'softmax'")],
)
def test_alignment_refuses_what_has_no_meaning(n_users, temperature, denominator, message):
    with pytest.raises(ValueError, match=message):
        alignment_loss(torch.ones(n_users, 3), torch.ones(n_users, 3), temperature, denominator)
