"""Evaluation as steps: the same for every arm, whatever trained it."""

import dataclasses
from typing import Any

from pipelines.shared.errors import UserError
from pipelines.shared.specs import Protocol, TemperaturesSpec
from pipelines.shared.steps import Step


def evaluation(
    protocol: Protocol,
    corpus: Step,
    gold: Step,
    sft: Step,
    reward_model: Step,
    policy: Step,
    seed: int,
) -> Step:
    """Samples, KL and rewards of every policy of a run; the proxy is its seed's reward model."""
    return Step(
        stage="evaluation",
        label=f"{policy.stage}-{policy.label}",
        function="pipelines.evaluate.samples:evaluate",
        version=1,
        recipe={"evaluation": protocol.evaluation, "sampling": protocol.sampling},
        seed=seed,
        threads=protocol.compute.arm_threads,
        upstream={
            "corpus": corpus,
            "gold": gold,
            "sft": sft,
            "reward_model": reward_model,
            "policy": policy,
        },
    )


def temperature_sweep(evaluation: Step, temperatures: TemperaturesSpec) -> Step:
    """The policy of an evaluation, sampled as it was there but at several temperatures.

    Raises:
        UserError: evaluation.samples = 1; analysis/judging/temperatures.py tells what takes two.
    """
    spec: Any = evaluation.recipe["evaluation"]
    if spec.samples < 2:
        raise UserError(
            "evaluation.samples = 1: a sweep of temperatures needs at least 2, or no sample of a "
            "policy has another noise than the SFT model's that it is compared with"
        )
    return dataclasses.replace(
        evaluation,
        stage="temperatures",
        function="pipelines.evaluate.temperatures:sweep",
        version=1,
        recipe={**evaluation.recipe, temperatures.section: temperatures},
    )


def held_out(evaluation: Step) -> tuple[Step, Step]:
    """What an evaluation's policy, and what its reward model and gold reward, think of the pairs
    that people compared and that nothing is trained on."""
    recipe = {"evaluation": evaluation.recipe["evaluation"]}

    def step(stage: str, label: str, function: str, seed: int, *reads: str) -> Step:
        return Step(
            stage=stage,
            label=label,
            function=f"pipelines.evaluate.held_out:{function}",
            version=1,
            recipe=recipe,
            seed=seed,
            threads=evaluation.threads,
            upstream={name: evaluation.upstream[name] for name in ("corpus", "sft", *reads)},
        )

    learnt = evaluation.upstream["reward_model"].label
    return (
        step("held-out-logprobs", evaluation.label, "log_probs", evaluation.seed, "policy"),
        step("held-out-rewards", learnt, "rewards", 0, "reward_model", "gold"),
    )


def reference_samples(protocol: Protocol, corpus: Step, gold: Step, sft: Step) -> Step:
    """Many samples of the SFT model: the optimum and best-of-n are estimated from them."""
    return Step(
        stage="reference-samples",
        label=f"{protocol.evaluation.split}-{protocol.evaluation.reference_samples}",
        function="pipelines.evaluate.samples:sample_reference",
        version=2,
        recipe={"evaluation": protocol.evaluation, "sampling": protocol.sampling},
        threads=protocol.compute.arm_threads,
        upstream={"corpus": corpus, "gold": gold, "sft": sft},
    )


def proxy_scores(
    protocol: Protocol, sft: Step, reward_model: Step, reference_samples: Step, seed: int
) -> Step:
    """The reference samples' scores by a reward model: best-of-n by proxy."""
    return Step(
        stage="proxy-scores",
        label=f"reference-s{seed}",
        function="pipelines.evaluate.samples:score_reference",
        version=2,
        recipe={},
        threads=protocol.compute.arm_threads,
        upstream={
            "sft": sft,
            "reward_model": reward_model,
            "reference_samples": reference_samples,
        },
    )
