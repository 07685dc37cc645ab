"""PPO's arithmetic, worked by hand."""

import math

import pytest
import torch

from pipelines.rlhf.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_penalised_rewards,
    masked_mean,
    masked_var,
    whiten,
)

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
