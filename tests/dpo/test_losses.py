"""DPO's arithmetic by hand, and against the exact optimum that it must have as its minimum."""

import math

import numpy as np
import pytest
import torch

from pipelines.dpo.losses import dpo_loss, implicit_reward
from pipelines.exact.oracle import optimum


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
