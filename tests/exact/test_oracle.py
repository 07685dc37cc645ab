"""The oracle by hand, and against what it must satisfy."""

import numpy as np
import pytest
import torch

from pipelines.exact.enumeration import objective as differentiable
from pipelines.exact.enumeration import sequence_logprobs
from pipelines.exact.oracle import closed_share, completions, evaluate, optimum, standardised


def test_every_completion_is_listed_once():
    assert completions([0, 1], 2, None) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with_end = completions([0, 1], 2, 9)
    assert with_end == [(9,), (0, 9), (1, 9), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(completions(range(8), 4, 8)) == 8**4 + 1 + 8 + 64 + 512


REF = np.log([[0.5, 0.25, 0.25]])
REWARDS = np.array([[0.0, 1.0, 2.0]])


def test_the_optimum_by_hand():
    best = np.exp(optimum(REF, REWARDS, 1.0))[0]
    weights = np.array([0.5, 0.25 * np.e, 0.25 * np.e**2])
    np.testing.assert_allclose(best, weights / weights.sum())
    point = evaluate(optimum(REF, REWARDS, 1.0), REF, REWARDS, 1.0)
    assert point.objective == pytest.approx(np.log(weights.sum()))  # beta log Z
    uniform = evaluate(np.log(np.full((1, 3), 1 / 3)), REF, REWARDS, 0.5)
    kl = (np.log(2 / 3) + 2 * np.log(4 / 3)) / 3
    assert uniform.reward == pytest.approx(1.0) and uniform.kl == pytest.approx(kl)
    assert uniform.entropy == pytest.approx(np.log(3))
    assert uniform.objective == pytest.approx(1.0 - 0.5 * kl)


def test_nothing_beats_the_optimum_and_shares_run_from_0_to_1():
    generator = np.random.default_rng(0)
    best = optimum(REF, REWARDS, 0.3)
    assert closed_share(REF, REF, REWARDS, 0.3) == 0
    assert closed_share(best, REF, REWARDS, 0.3) == 1
    for _ in range(200):
        other = np.log(generator.dirichlet(np.ones(3)))[None]
        assert closed_share(other, REF, REWARDS, 0.3) < 1


def test_a_loss_in_the_objective_is_the_kl_to_the_optimum():
    """J(pi*) - J(pi) = beta KL(pi || pi*)."""
    other, best = np.log([[0.2, 0.3, 0.5]]), optimum(REF, REWARDS, 0.7)
    lost = (
        evaluate(best, REF, REWARDS, 0.7).objective - evaluate(other, REF, REWARDS, 0.7).objective
    )
    assert lost == pytest.approx(0.7 * (np.exp(other) * (other - best)).sum())


def test_rewards_are_standardised_under_the_reference():
    rewards = standardised(np.random.default_rng(0).normal(size=(1, 3)), REF)
    p = np.exp(REF)
    assert float((p * rewards).sum()) == pytest.approx(0, abs=1e-12)
    assert float((p * rewards**2).sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["fixed", "ending"])
def test_the_made_task_is_what_it_says(request, name):
    made = request.getfixturevalue(name)
    task, p = made.task, np.exp(made.task.ref_logp)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose((p * task.rewards).sum(-1), 0, atol=1e-6)
    np.testing.assert_allclose((p * task.rewards**2).sum(-1), 1, atol=1e-6)
    assert p.max() > 3 / p.shape[1]  # far from uniform
    assert {len(prompt) for prompt in task.prompts} == {1, 2}  # so some are padded on the left
    lengths = {len(ids) for ids in task.completions}
    assert lengths == ({3} if name == "fixed" else {1, 2, 3})


def test_a_missing_completion_is_noticed(fixed):
    with pytest.raises(ValueError, match="not 1"):
        sequence_logprobs(fixed.reference, fixed.task.prompts, fixed.task.completions[1:], 5)


def test_the_differentiable_objective_is_the_oracles(fixed):
    task = fixed.task
    with torch.no_grad():
        logp = sequence_logprobs(fixed.reference, task.prompts, task.completions, 5)
    shifted = (logp + 0.1 * torch.randn(logp.shape)).log_softmax(-1)
    ours = differentiable(shifted, logp, torch.tensor(task.rewards), 0.3)
    theirs = evaluate(shifted.numpy(), logp.numpy(), task.rewards, 0.3).objective
    assert float(ours) == pytest.approx(theirs)
