"""Composition: arms on shared stages. The only place where both pipelines meet."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import settings
from experiments.study import Experiment, Run, Study
from pipelines.dpo.pipeline import dpo, reference_logprobs
from pipelines.evaluate.pipeline import evaluation, reference_samples
from pipelines.rlhf.pipeline import ppo, reward_model, sft
from pipelines.shared import pipeline as shared
from pipelines.shared.errors import UserError, unknown
from pipelines.shared.specs import Protocol

# The sections of the protocol that an arm's own stages read: only these tell its variants apart.
ARM_SECTIONS = {
    "sft": ("labels", "reward_model"),
    "ppo": ("labels", "reward_model", "ppo"),
    "dpo": ("labels", "dpo"),
}


def resolve(
    experiment: Experiment,
    scale: str,
    arms: Sequence[str] | None = None,
    seeds: int = 1,
    assignments: Sequence[str] = (),
) -> Study:
    """An experiment with the user's choices, as steps; nothing is run.

    Args:
        arms: names to run; None for all. The SFT model is always evaluated.
        seeds: how many; a seed draws labels, reward model and policy, the SFT model is one.
        assignments: `--set` arguments.

    Raises:
        UserError: an unknown scale, arm or setting, or a value that does not fit.
    """
    if scale not in experiment.scales:
        raise unknown("scale", scale, experiment.scales)
    for arm in arms or ():
        if arm not in experiment.arms:
            raise unknown("arm", arm, experiment.arms)
    chosen = [arm for arm in experiment.arms if arms is None or arm in arms or arm == "sft"]
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    given = settings.parse(assignments, experiment.scales[scale])
    coefficients = {name for name, _ in experiment.sweeps.values()}
    fixed = {
        name: values[0]
        for name, values in given.items()
        if len(values) == 1 and name not in coefficients
    }
    protocol = settings.apply(experiment.scales[scale], fixed)
    sweeps = {
        arm: (name, given.get(name, values)) for arm, (name, values) in experiment.sweeps.items()
    }
    axes = {name: values for name, values in experiment.axes.items() if name not in given}
    axes |= {
        name: values
        for name, values in given.items()
        if len(values) > 1 and name not in coefficients
    }

    corpus = shared.corpus(protocol)
    gold = shared.gold(protocol, corpus)
    start = sft(protocol, corpus)
    runs: dict[str, Run] = {}
    for values in settings.combinations(axes):
        variant = settings.apply(protocol, values)
        for seed in range(seeds):
            for run in _runs(variant, chosen, sweeps, seed, values, corpus, gold, start):
                # The SFT model is judged by every reward model; other policies by one.
                judged = run.evaluation if run.arm == "sft" else run.policy
                runs.setdefault(f"{judged.fingerprint}-{run.seed}", run)
    return Study(
        experiment=experiment,
        scale=scale,
        protocol=protocol,
        folder_name=folder_name(experiment, scale, chosen, seeds, given),
        runs=sorted(runs.values(), key=lambda run: (chosen.index(run.arm), run.variant, run.seed)),
        reference_samples=reference_samples(protocol, corpus, gold, start),
        gold=gold,
    )


def _runs(
    protocol: Protocol,
    arms: Sequence[str],
    sweeps: Mapping[str, tuple[str, tuple[float, ...]]],
    seed: int,
    values: Mapping[str, Any],
    corpus: Any,
    gold: Any,
    start: Any,
) -> list[Run]:
    """All arms at all their coefficients, for one seed and one combination of the other axes."""
    completions = shared.completions(protocol, corpus, gold, start)
    pairs = shared.pairs(protocol, completions, seed)
    proxy = reward_model(protocol, start, completions, pairs, seed)
    reference = reference_logprobs(protocol, start, completions)

    def policy(arm: str, at: Protocol) -> Any:
        if arm == "ppo":
            return ppo(at, corpus, start, proxy, seed)
        if arm == "dpo":
            return dpo(at, start, pairs, reference, seed)
        return start

    runs = []
    for arm in arms:
        name, coefficients = sweeps.get(arm, ("", (None,)))
        own = {
            key: value
            for key, value in values.items()
            if key.partition(".")[0] in ARM_SECTIONS[arm]
        }
        for coefficient in coefficients:
            at = settings.apply(protocol, {name: coefficient} if name else {})
            step = policy(arm, at)
            runs.append(
                Run(
                    arm=arm,
                    setting=coefficient,
                    seed=seed,
                    variant=settings.describe(own),
                    policy=step,
                    evaluation=evaluation(protocol, corpus, gold, start, proxy, step, seed),
                )
            )
    return runs


def folder_name(
    experiment: Experiment,
    scale: str,
    arms: Sequence[str],
    seeds: int,
    given: Mapping[str, Sequence[Any]],
) -> str:
    """`name-scale` and what differs from the default, so that no report overwrites another."""
    parts = [f"arms={','.join(arms)}"] if len(arms) < len(experiment.arms) else []
    parts += [f"seeds={seeds}"] if seeds != 1 else []
    parts += [
        f"{name}={','.join(settings.text_of(value) for value in values)}"
        for name, values in sorted(given.items())
    ]
    suffix = "".join(f"+{part}" for part in parts)
    if len(suffix) > 120:
        suffix = f"+{hashlib.sha256(suffix.encode()).hexdigest()[:12]}"
    return f"{experiment.name}-{scale}{suffix}"
