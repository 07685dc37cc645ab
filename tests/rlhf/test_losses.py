"""PPO's arithmetic, worked by hand."""

import math

import pytest
import torch

from pipelines.rlhf.losses import (
    adapted_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_penalised_rewards,
    masked_mean,
    masked_var,
    scores_without_eos,
    sequence_kl_loss,
    whiten,
)
from pipelines.shared.losses import bradley_terry_loss

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_masked_mean_and_variance_ignore_padding():
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    assert masked_mean(values, MASK) == 3.0
    assert masked_var(values, MASK) == pytest.approx((4 + 1 + 0 + 9) / 3)


def test_whitening_gives_mean_0_and_variance_1_or_keeps_the_mean():
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    whitened = whiten(values, MASK)
    assert masked_mean(whitened, MASK) == pytest.approx(0, abs=1e-6)
    assert masked_var(whitened, MASK) == pytest.approx(1, abs=1e-6)
    assert whitened[1, 1:].tolist() == [0, 0]
    kept = whiten(values, MASK, shift_mean=False)
    assert masked_mean(kept, MASK) == pytest.approx(3.0)
    assert masked_var(kept, MASK) == pytest.approx(1, abs=1e-6)


def test_the_score_lands_on_the_last_real_token_and_kl_on_every_one():
    logprobs = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -7.0, -7.0]])
    ref = torch.tensor([[-1.5, -1.0, -0.5], [-1.0, -9.0, -9.0]])
    rewards = kl_penalised_rewards(torch.tensor([10.0, 20.0]), logprobs, ref, MASK, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.0, 10.05], [20.1, 0.0, 0.0]]))


def test_gae_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 2.0], [3.0, 9.0, 9.0]])  # 9: at padding, must not count
    values = torch.tensor([[0.5, 0.25, 1.0], [1.0, 8.0, 8.0]])
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, lam=0.5)
    third = 2.0 - 1.0
    second = 1.0 + 0.9 * 1.0 - 0.25 + 0.45 * third
    first = 0.0 + 0.9 * 0.25 - 0.5 + 0.45 * second
    torch.testing.assert_close(advantages, torch.tensor([[first, second, third], [2.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns[0], advantages[0] + values[0])
    assert returns[1].tolist() == [3.0, 0.0, 0.0]


def test_gae_with_lambda_1_is_the_return_less_the_value():
    torch.manual_seed(0)
    rewards, values = torch.randn(5, 7), torch.randn(5, 7)
    mask = torch.ones(5, 7, dtype=torch.bool)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))


def test_the_surrogate_is_clipped_on_the_pessimistic_side_only():
    old = torch.zeros(1, 4)
    logprobs = torch.tensor([[2.0, 2.0, 0.5, 0.5]]).log()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, ratio = clipped_policy_loss(
        logprobs, old, advantages, torch.ones(1, 4, dtype=torch.bool), 0.2
    )
    # +A, rho 2 -> 1.2; -A, rho 2 -> unclipped 2; +A, rho .5 -> unclipped .5; -A, rho .5 -> .8
    assert float(loss) == pytest.approx((-1.2 + 2.0 - 0.5 + 0.8) / 4)
    torch.testing.assert_close(ratio, torch.tensor([[2.0, 2.0, 0.5, 0.5]]))


def test_where_the_ratio_is_1_the_gradient_is_the_policy_gradient():
    logprobs = torch.tensor(
        [[-1.0, -2.0, -3.0], [-1.0, -5.0, -5.0]], dtype=torch.double, requires_grad=True
    )
    advantages = torch.tensor([[1.0, -2.0, 0.5], [3.0, 7.0, 7.0]], dtype=torch.double)
    loss, ratio = clipped_policy_loss(logprobs, logprobs.detach(), advantages, MASK, 0.2)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages * MASK / 4)
    assert (ratio == 1).all()


def test_padding_does_not_reach_the_loss():
    logprobs = torch.tensor([[0.0, 0.0, 0.0], [0.0, 50.0, math.inf]])
    loss, _ = clipped_policy_loss(
        logprobs[:, :2], torch.zeros(2, 2), torch.ones(2, 2), MASK[:, :2], 0.2
    )
    assert float(loss) == -1.0


def test_the_value_loss_takes_the_worse_of_clipped_and_not():
    values, old = torch.tensor([[1.0, 0.1]]), torch.tensor([[0.0, 0.0]])
    returns = torch.tensor([[1.0, 1.0]])
    loss = clipped_value_loss(values, old, returns, torch.ones(1, 2, dtype=torch.bool), 0.2)
    assert float(loss) == pytest.approx(0.5 * ((0.2 - 1) ** 2 + (0.1 - 1) ** 2) / 2)


def test_without_a_clip_range_the_value_loss_is_half_the_squared_error():
    values, returns = torch.tensor([[1.0, 0.1]]), torch.tensor([[1.0, 1.0]])
    every = torch.ones(1, 2, dtype=torch.bool)
    loss = clipped_value_loss(values, torch.zeros(1, 2), returns, every, None)
    assert float(loss) == pytest.approx(0.5 * 0.81 / 2)


def test_the_score_can_be_put_elsewhere_and_the_kl_clamped():
    logprobs, ref = torch.tensor([[-1.0, -1.0, 0.0]]), torch.tensor([[-1.5, -0.5, 0.0]])
    mask, end = torch.tensor([[True, True, False]]), torch.tensor([2])
    score = torch.tensor([10.0])
    after = kl_penalised_rewards(score, logprobs, ref, mask, 0.1, end=end)
    torch.testing.assert_close(after, torch.tensor([[-0.05, 0.05, 10.0]]))
    clamped = kl_penalised_rewards(score, logprobs, ref, mask, 0.1, clamp=True)
    torch.testing.assert_close(clamped, torch.tensor([[-0.05, 10.0, 0.0]]))


def test_scores_of_completions_that_never_ended():
    scores, finished = torch.tensor([2.0, 3.0]), torch.tensor([True, False])
    assert scores_without_eos(scores, finished).tolist() == [2, 3]
    assert scores_without_eos(scores, finished, replacement=-1.0).tolist() == [2, -1]
    assert scores_without_eos(scores, finished, penalty=0.5).tolist() == [2, 2.5]


def test_the_adaptive_coefficient_by_hand():
    """Ziegler et al.: target 6, horizon 10,000; the error is clipped to 0.2 on both sides."""
    assert adapted_kl_coef(0.15, 6.6, 6.0, 10_000, 512) == pytest.approx(
        0.15 * (1 + 0.1 * 512 / 10_000)
    )
    assert adapted_kl_coef(0.15, 60, 6.0, 10_000, 512) == pytest.approx(0.15 * (1 + 0.2 * 0.0512))
    assert adapted_kl_coef(0.15, 0, 6.0, 10_000, 512) == pytest.approx(0.15 * (1 - 0.2 * 0.0512))
    assert adapted_kl_coef(0.15, 6.0, 6.0, 10_000, 512) == 0.15


def test_the_sequence_kl_loss_squares_the_sum_and_not_the_terms():
    logprobs, ref = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-2.0, -2.5, 0.0]])
    mask = torch.tensor([[True, True, False]])
    assert float(sequence_kl_loss(logprobs, ref, mask)) == 0.5 * 1.5**2
    assert float(sequence_kl_loss(logprobs, ref, mask, count=2)) == 0.25 * 1.5**2


def test_bradley_terry_by_hand():
    assert float(bradley_terry_loss(torch.tensor(0.0))) == pytest.approx(math.log(2))
    hard = bradley_terry_loss(torch.tensor([math.log(3.0)]))  # sigmoid = 3/4
    assert float(hard) == pytest.approx(-math.log(0.75))
    soft = bradley_terry_loss(torch.tensor([math.log(3.0)]), torch.tensor([0.9]))
    assert float(soft) == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))


def test_bradley_terry_has_its_minimum_where_the_model_states_the_probability():
    margin = torch.tensor([math.log(0.7 / 0.3)], dtype=torch.double, requires_grad=True)
    bradley_terry_loss(margin, 0.7).sum().backward()
    assert abs(float(margin.grad)) < 1e-12


def parts(function, *tensors, mask, whole):
    """The loss of two halves with the whole's count, added up."""
    return sum(
        function(*(t[rows] for t in tensors), mask[rows], whole)
        for rows in (slice(0, 1), slice(1, 3))
    )


def test_parts_of_a_minibatch_add_up_to_the_whole():
    torch.manual_seed(0)
    a, b, c, d = (torch.randn(3, 4, dtype=torch.double) for _ in range(4))
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    count = int(mask.sum())

    def policy(x, y, z, m, n=None):
        return clipped_policy_loss(x, y, z, m, 0.2, n)[0]

    def value(x, y, z, m, n=None):
        return clipped_value_loss(x, y, z, m, 0.2, n)

    for function, tensors in ((policy, (a, b, c)), (value, (a, b, d)), (sequence_kl_loss, (a, b))):
        whole = function(*tensors, mask, count)
        torch.testing.assert_close(parts(function, *tensors, mask=mask, whole=count), whole)


@pytest.mark.parametrize("name", ["policy", "value", "kl", "bradley-terry", "whiten"])
def test_gradients_against_finite_differences_in_float64(name):
    """torch.autograd.gradcheck, away from the kinks of the clips."""
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    x = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    old = (x + 0.1 * torch.randn(2, 3, dtype=torch.double)).detach()
    other = torch.randn(2, 3, dtype=torch.double)
    functions = {
        "policy": lambda v: clipped_policy_loss(v, old, other, mask, 0.2)[0],
        "value": lambda v: clipped_value_loss(v, old, other, mask, 0.2),
        "kl": lambda v: sequence_kl_loss(v, other, mask),
        "bradley-terry": lambda v: bradley_terry_loss(v.flatten(), 0.3).mean(),
        "whiten": lambda v: (whiten(v, mask) * other).sum(),
    }
    assert torch.autograd.gradcheck(functions[name], (x,))
