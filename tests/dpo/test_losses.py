"""The family's arithmetic: by hand, against the published equations in NumPy, against finite
differences, and DPO's against the exact optimum that it must have as its minimum."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from pipelines.dpo.losses import (
    dpo_loss,
    hinge_loss,
    implicit_reward,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    log_one_minus,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
    unlikelihood_loss,
)
from pipelines.exact.oracle import optimum

PAIRS, TOKENS = 50, 6
LN_2 = math.log(2)


def numbers(low: float, high: float, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.tensor(generator.uniform(low, high, size=shape or PAIRS))


def two(low: float, high: float, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return numbers(low, high, *shape, seed=1), numbers(low, high, *shape, seed=2)


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.shape == (PAIRS,)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_at_no_margin_the_loss_is_ln_2():
    reward = implicit_reward(torch.tensor([-3.0]), torch.tensor([-3.0]), beta=0.1)
    assert float(dpo_loss(reward, reward)) == pytest.approx(math.log(2))


def test_the_loss_by_hand():
    chosen = implicit_reward(torch.tensor([-2.0]), torch.tensor([-4.0]), beta=0.5)
    rejected = implicit_reward(torch.tensor([-3.0]), torch.tensor([-2.0]), beta=0.5)
    assert float(chosen) == 1.0 and float(rejected) == -0.5
    right = -math.log(1 / (1 + math.exp(-1.5)))
    wrong = -math.log(1 / (1 + math.exp(1.5)))
    assert float(dpo_loss(chosen, rejected)) == pytest.approx(right)
    soft = dpo_loss(chosen, rejected, torch.tensor([0.8]))
    assert float(soft) == pytest.approx(0.8 * right + 0.2 * wrong)


def test_on_exact_preferences_the_gradient_is_0_at_the_optimum():
    """pi* proportional to ref exp(r / beta) is where DPO's loss on all pairs has its minimum."""
    generator = np.random.default_rng(0)
    ref = np.log(generator.dirichlet(np.ones(6)))[None]
    rewards, beta = generator.normal(size=(1, 6)), 0.3
    logits = torch.tensor(optimum(ref, rewards, beta)[0], requires_grad=True)
    logp = logits.log_softmax(-1)
    first, second = np.triu_indices(6, 1)
    reference, reward = torch.tensor(ref[0]), torch.tensor(rewards[0])
    implicit = implicit_reward(logp, reference, beta)
    preference = torch.sigmoid(reward[first] - reward[second])
    loss = dpo_loss(implicit[first], implicit[second], preference).mean()
    [gradient] = torch.autograd.grad(loss, logits)
    assert float(gradient.abs().max()) < 1e-12
    elsewhere = implicit_reward(reference, reference, beta)
    assert float(dpo_loss(elsewhere[first], elsewhere[second], preference).mean()) > float(loss)


def test_conservative_dpo_is_the_papers_equation():
    chosen, rejected = two(-3, 3)
    h = (chosen - rejected).numpy()
    expected = -0.9 * np.log(expit(h)) - 0.1 * np.log(expit(-h))
    close(dpo_loss(chosen, rejected, preference=1 - 0.1), expected)


def test_robust_dpo_is_the_papers_equation():
    chosen, rejected = two(-3, 3)
    h = (chosen - rejected).numpy()
    expected = (-0.8 * np.log(expit(h)) + 0.2 * np.log(expit(-h))) / (1 - 2 * 0.2)
    close(robust_dpo_loss(chosen, rejected, 0.2), expected)


def test_robust_dpo_on_flipped_labels_is_on_average_dpo_on_true_ones():
    chosen, rejected = two(-3, 3)
    noisy = 0.7 * robust_dpo_loss(chosen, rejected, 0.3)
    noisy += 0.3 * robust_dpo_loss(rejected, chosen, 0.3)
    torch.testing.assert_close(noisy, dpo_loss(chosen, rejected))
    torch.testing.assert_close(
        robust_dpo_loss(chosen, rejected, 0.0), dpo_loss(chosen, rejected), rtol=0, atol=0
    )


def test_the_hinge_is_the_papers_equation():
    chosen, rejected = two(-3, 3)
    close(hinge_loss(chosen, rejected), np.maximum(0, 1 - (chosen - rejected).numpy()))


def test_the_hinge_bends_at_a_margin_of_1():
    margin = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0], requires_grad=True)
    loss = hinge_loss(margin, torch.zeros(5))
    assert loss.tolist() == [2.0, 1.0, 0.5, 0.0, 0.0]
    [gradient] = torch.autograd.grad(loss.sum(), margin)
    assert gradient.tolist() == [-1.0, -1.0, -1.0, 0.0, 0.0]


def test_ipo_is_the_papers_equation():
    chosen, rejected = two(-9, 9)
    expected = ((chosen - rejected).numpy() - 1 / (2 * 0.3)) ** 2
    close(ipo_loss(chosen, rejected, 0.3), expected)


def test_ipo_by_hand():
    at_target = ipo_loss(torch.tensor([6.0]), torch.tensor([1.0]), beta=0.1)
    assert float(at_target) == 0
    beyond = ipo_loss(torch.tensor([9.0]), torch.tensor([1.0]), beta=0.1)
    assert float(beyond) == 9, "unlike DPO's, the loss rises again beyond its target"


def test_kto_is_the_papers_equation():
    chosen, rejected = two(-5, 5)
    mismatched = numbers(-1, 3, 2 * PAIRS, seed=3)
    z0 = max(0.0, float(np.mean(mismatched.numpy())))
    desirable = 1.5 - 1.5 * expit(0.4 * (chosen.numpy() - z0))
    undesirable = 0.8 - 0.8 * expit(0.4 * (z0 - rejected.numpy()))
    found = kto_loss(chosen, rejected, kto_reference_point(mismatched), 0.4, 1.5, 0.8)
    close(found, (desirable + undesirable) / 2)
    over_completions = np.mean(np.concatenate([desirable, undesirable]))
    assert float(found.mean()) == pytest.approx(over_completions)


def test_kto_at_its_reference_point_is_half_the_weights():
    ratio = torch.tensor([0.7])
    assert float(kto_loss(ratio, ratio, 0.7, beta=3.0)) == pytest.approx(0.5)
    assert float(kto_loss(ratio, ratio, 0.7, 3.0, 2.0, 1.0)) == pytest.approx(0.75)


def test_ktos_reference_point_is_not_negative_and_has_no_gradient():
    ratios = torch.tensor([1.0, 2.0], requires_grad=True)
    point = kto_reference_point(ratios)
    assert float(point) == 1.5 and not point.requires_grad
    assert float(kto_reference_point(-ratios)) == 0
    assert float(kto_reference_point(torch.empty(0))) == 0


def test_simpo_is_the_papers_equation():
    chosen, rejected = two(-6, -0.1, PAIRS, TOKENS)
    lengths = np.arange(PAIRS) % TOKENS + 1
    kept = np.arange(TOKENS) < lengths[:, None]
    means = [(side.numpy() * kept).sum(-1) / lengths for side in (chosen, rejected)]
    expected = -np.log(expit(2.5 * means[0] - 2.5 * means[1] - 0.7))
    close(simpo_loss(*(torch.tensor(mean) for mean in means), beta=2.5, gamma=0.7), expected)


def test_simpo_at_its_target_margin_is_ln_2():
    loss = simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.5]), beta=2.0, gamma=1.0)
    assert float(loss) == pytest.approx(LN_2)


def test_orpo_is_the_papers_equation():
    chosen, rejected = two(-6, -0.1)
    odds = [np.exp(side.numpy()) / (1 - np.exp(side.numpy())) for side in (chosen, rejected)]
    expected = -chosen.numpy() - 0.3 * np.log(expit(np.log(odds[0] / odds[1])))
    close(orpo_loss(chosen, rejected, 0.3), expected)


def test_orpo_at_equal_odds_is_the_likelihood_and_lambda_ln_2():
    both = torch.tensor([-1.2])
    assert float(orpo_loss(both, both, 0.3)) == pytest.approx(1.2 + 0.3 * LN_2)


def test_unlikelihood_is_the_papers_equation():
    chosen, rejected = two(-6, -0.01, PAIRS, TOKENS)
    lengths = torch.arange(PAIRS) % TOKENS + 1
    mask = torch.arange(TOKENS) < lengths[:, None]
    chosen, rejected = chosen * mask, rejected * mask  # padding is 0, as from the trainer
    expected = np.zeros(PAIRS)
    for pair in range(PAIRS):
        length = int(lengths[pair])
        expected[pair] -= chosen[pair, :length].numpy().sum()
        expected[pair] -= 0.4 * np.log(1 - np.exp(rejected[pair, :length].numpy())).sum()
    close(unlikelihood_loss(chosen, rejected, mask, 0.4), expected)


def test_unlikelihood_of_even_tokens_by_hand():
    tokens = torch.full((1, 3), -LN_2)
    mask = torch.tensor([[True, True, False]])
    loss = unlikelihood_loss(tokens, tokens, mask, alpha=0.5)
    assert float(loss) == pytest.approx(3 * LN_2 + 0.5 * 2 * LN_2)


def test_log_one_minus_is_accurate_at_both_ends_and_finite_at_certainty():
    logp = [math.log(1e-12), math.log(1e-5), math.log(0.3), math.log(0.7), -1e-5]
    expected = [-1e-12, math.log(1 - 1e-5), math.log(0.7), math.log(0.3), math.log(1e-5) - 5e-6]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        found = log_one_minus(torch.tensor(logp, dtype=dtype)).double().numpy()
        np.testing.assert_allclose(found, expected, rtol=tolerance)
    sure = torch.tensor([0.0, 1e-8, -1e-9, -math.inf], requires_grad=True)
    loss = log_one_minus(sure)
    assert loss.tolist() == pytest.approx([math.log(2**-23)] * 3 + [0.0])
    [gradient] = torch.autograd.grad(loss.sum(), sure)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(
    ("loss", "low", "high"),
    [
        (lambda c, r: dpo_loss(c, r, 0.9), -3, 3),
        (lambda c, r: robust_dpo_loss(c, r, 0.2), -3, 3),
        (lambda c, r: hinge_loss(c, r), -3, 3),  # no margin here is within 1e-3 of the kink
        (lambda c, r: ipo_loss(c, r, 0.3), -9, 9),
        (lambda c, r: kto_loss(c, r, 0.3, 0.4, 1.5, 0.8), -5, 5),
        (lambda c, r: simpo_loss(c, r, 2.5, 0.7), -6, -0.1),
        (lambda c, r: orpo_loss(c, r, 0.3), -6, -0.1),
        (
            lambda c, r: unlikelihood_loss(c[:, None], r[:, None], r[:, None] < -2, 0.4),
            -6,
            -0.1,
        ),
    ],
    ids=["conservative", "robust", "hinge", "ipo", "kto", "simpo", "orpo", "unlikelihood"],
)
def test_gradients_are_the_finite_differences(loss, low, high):
    chosen, rejected = (side.requires_grad_() for side in two(low, high))
    margin = (chosen - rejected).detach()
    assert float((margin - 1).abs().min()) > 1e-3
    assert torch.autograd.gradcheck(loss, (chosen, rejected), eps=1e-6, atol=1e-6)
