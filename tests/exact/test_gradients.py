"""PPOTrainer's own loss on every completion at once: its gradient is the exact gradient of J.

For a uniform policy the batch that holds each completion once is the expectation over samples, so
nothing is left to chance. With lambda = gamma = 1 and a critic of zeros, the gradient of the loss
must be -grad J / (tokens a sequence), whatever the detours through rewards, advantages and ratios.
"""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset

from pipelines.exact.enumeration import every_pair, objective, sequence_logprobs
from pipelines.rlhf import PPOConfig, PPOTrainer
from pipelines.rlhf.rollout import Rollout, Sampled
from pipelines.shared.logprobs import completion_logprobs

BETA = 0.3


def uniform(model):
    """The same model with equal logits for every symbol; its other weights do not matter then."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight[:4] = 0.0
    return model


def trainer_of(fixed, policy, tmp_path, **changes) -> PPOTrainer:
    args = PPOConfig(
        str(tmp_path),
        kl_coef=BETA,
        lam=1.0,
        updates=1,
        rollouts=256,
        num_ppo_epochs=1,
        num_mini_batches=1,
        max_completion_length=3,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **({"vf_coef": 0.0} | changes),
    )
    return PPOTrainer(
        policy,
        ref_model=copy.deepcopy(fixed.reference),
        args=args,
        train_dataset=Dataset.from_dict({"prompt_ids": fixed.task.prompts}),
        processing_class=fixed.tokenizer,
        reward_funcs=fixed.task.reward,
    )


def enumerated(fixed, policy) -> Sampled:
    """Every completion of every prompt, as if each had been drawn once."""
    task = fixed.task
    sequences = every_pair(task.prompts, task.completions, fixed.tokenizer.pad_token_id)
    with torch.no_grad():
        logprobs = completion_logprobs(policy, sequences)
        ref_logprobs = completion_logprobs(fixed.reference, sequences)
    count = len(sequences.input_ids)
    return Sampled(
        sequences,
        logprobs,
        ref_logprobs,
        torch.zeros(count, 4),
        torch.tensor(task.rewards, dtype=torch.float32).flatten(),
        torch.zeros(count, dtype=torch.bool),
    )


def to_come(sampled: Rollout) -> torch.Tensor:
    """The log-ratio of each token and all after it, (B, C)."""
    log_ratio = sampled.logprobs - sampled.ref_logprobs
    return log_ratio.flip(1).cumsum(1).flip(1)


def gradient(value, model) -> torch.Tensor:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(value, weights, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(weight) if part is None else part).flatten()
            for weight, part in zip(weights, found, strict=True)
        ]
    )


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
@pytest.mark.parametrize("whitened", [False, True])
def test_the_gradient_of_the_loss_is_that_of_the_objective(fixed, tmp_path, kl_in, whitened):
    policy = uniform(fixed.reference)
    trainer = trainer_of(fixed, policy, tmp_path, kl_in=kl_in, whiten_advantages=whitened)
    rollout = trainer._advantages(0, enumerated(fixed, policy))
    [batch] = trainer._split(rollout)
    ours = gradient(trainer.compute_loss(trainer.model, batch), policy)

    task = fixed.task
    pad_id = fixed.tokenizer.pad_token_id
    logp = sequence_logprobs(policy, task.prompts, task.completions, pad_id)
    exact = objective(logp, torch.tensor(task.ref_logp), torch.tensor(task.rewards), BETA)
    theirs = -gradient(exact, policy) / 3
    scale = 1.0
    if whitened:  # one factor for all of the gradient, that of the KL in the loss included
        raw = torch.where(batch.mask, batch.scores[:, None], 0.0)  # lambda 1: all of the score
        if kl_in == "reward":
            raw = raw - BETA * to_come(batch)
        scale = 1 / float(raw[batch.mask].std())
        assert scale == pytest.approx(float(ours @ theirs / (theirs @ theirs)), rel=1e-3)
    assert float(theirs.norm()) > 1e-3
    torch.testing.assert_close(ours, scale * theirs, atol=2e-6, rtol=1e-3)


def test_a_tokenwise_kl_in_the_loss_would_have_no_gradient(fixed):
    """Why the KL in the loss is of whole sequences: E[grad k1] = 0."""
    policy = uniform(fixed.reference)
    task = fixed.task
    sequences = every_pair(task.prompts, task.completions, fixed.tokenizer.pad_token_id)
    log_ratio = completion_logprobs(policy, sequences) - completion_logprobs(
        fixed.reference, sequences
    )
    assert float(gradient(log_ratio.sum(-1).mean(), policy).norm()) < 1e-5


@pytest.mark.parametrize("name", ["fixed", "ending"])
def test_each_kl_estimator_has_the_enumerated_mean_and_honest_intervals(request, name):
    """5,000 repeats of 256 samples, at a KL where k3 is not yet too skewed for any interval."""
    from analysis.oracle.shares import calibration, honest
    from pipelines.evaluate.kl import divergence
    from pipelines.exact.oracle import optimum
    from pipelines.shared.logprobs import target_logits

    made = request.getfixturevalue(name)
    task = made.task
    sequences = every_pair(task.prompts, task.completions, made.tokenizer.pad_token_id)
    with torch.no_grad():
        inputs, mask = sequences.model_inputs(), sequences.completion_mask
        ref_logits = target_logits(made.reference, inputs, sequences.targets).double()
    best = optimum(task.ref_logp, task.rewards, 1.0)
    logits = conditional_logits(best, task, ref_logits.shape[-1])
    meter = divergence(logits, ref_logits, sequences.completion_ids[mask], mask)
    p = np.exp(best).ravel() / len(task.prompts)
    truth = float((p * (best - task.ref_logp).ravel()).sum())
    for name in ("kl_k1", "kl_k3", "kl_rb"):
        values = getattr(meter, name).numpy()
        assert float((p * values).sum()) == pytest.approx(truth, abs=1e-6), name
        assert honest(calibration(values, p / p.sum(), truth, 256)), name
        assert not honest(calibration(values + 0.05, p / p.sum(), truth, 256)), name


def conditional_logits(best, task, vocabulary: int) -> torch.Tensor:
    """Next-token log-probabilities of a distribution over whole completions: (N, V)."""
    rows = []
    for x in range(len(task.prompts)):
        for ids in task.completions:
            for place in range(len(ids)):
                mass = np.full(vocabulary, 1e-300)
                for other, logp in zip(task.completions, best[x], strict=True):
                    if len(other) > place and other[:place] == ids[:place]:
                        mass[other[place]] += np.exp(logp)
                rows.append(np.log(mass / mass.sum()))
    return torch.tensor(np.array(rows))
