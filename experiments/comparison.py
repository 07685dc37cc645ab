"""Comparisons: arms on shared stages. The only place where both pipelines meet."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import settings
from experiments.study import Experiment, Study, Written
from pipelines.dpo.pipeline import dpo, reference_logprobs
from pipelines.evaluate.pipeline import evaluation, reference_samples
from pipelines.evaluate.schema import conform
from pipelines.rlhf.pipeline import ppo, reward_model, sft
from pipelines.shared import pipeline as shared
from pipelines.shared.assets import ASSETS
from pipelines.shared.specs import Protocol
from pipelines.shared.steps import Step, closure


@dataclass(frozen=True)
class Run:
    """One trained policy and its evaluation.

    Attributes:
        setting: the arm's swept coefficient (kl_coef, beta); None for an arm that has none.
        variant: other settings that were swept, as on the command line; "" for none.
    """

    arm: str
    setting: float | None
    seed: int
    variant: str
    policy: Step
    evaluation: Step


@dataclass(frozen=True)
class Comparison(Experiment):
    """Arms that share data, models, prompts, sampling and evaluation.

    Attributes:
        axes: other settings swept by default, by name.
        reward_label: what the gold reward is, for the figures' axes.
        deviations: from a protocol, what its source says and what is done here, for the report.
        tuning: name of the experiment that chose the settings of `tuned_scales`, or "".
    """

    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reward_label: str = "gold reward"
    deviations: Callable[[Protocol], Sequence[Mapping[str, str]]] = lambda protocol: ()
    tuning: str = ""
    tuned_scales: Sequence[str] = ()

    def resolve(
        self,
        scale: str,
        arms: Sequence[str] | None = None,
        seeds: int = 1,
        assignments: Sequence[str] = (),
    ) -> "ComparisonStudy":
        """See `Experiment.resolve`. The SFT model is always evaluated; a seed draws labels, reward
        model and policy."""
        return resolve(self, scale, arms, seeds, assignments)


@dataclass(frozen=True)
class ComparisonStudy(Study):
    """A comparison at one scale, resolved into steps."""

    experiment: Comparison
    protocol: Protocol
    runs: Sequence[Run]
    reference_samples: Step
    gold: Step

    @property
    def tuned(self) -> bool:
        """True where the settings are those that the tuning experiment chose."""
        declared = self.experiment.scales[self.scale]
        swept = any(run.variant for run in self.runs)
        tuned = self.scale in self.experiment.tuned_scales
        return tuned and self.protocol == declared and not swept

    def steps(self) -> list[Step]:
        return closure([self.reference_samples, *(run.evaluation for run in self.runs)])

    def kept(self) -> list[tuple[Step, str]]:
        scored = (self.reference_samples, *(run.evaluation for run in self.runs))
        return [(step, "scores.parquet") for step in scored]

    def collect_text(self, results: Path, folder: Path) -> None:
        """tables/samples.parquet: the text that every final policy wrote."""

        def of(run: Run) -> pd.DataFrame:
            table = pd.read_parquet(run.evaluation.folder(results) / "samples.parquet")
            return table.assign(run=run.evaluation.fingerprint[:8])

        table = conform(pd.concat([of(run) for run in self.runs], ignore_index=True), "samples")
        (folder / "tables").mkdir(exist_ok=True)
        table.to_parquet(folder / "tables" / "samples.parquet")

    def manifest(self) -> dict[str, Any]:
        assets = {name for step in self.steps() for name in step.assets}
        return {
            **super().manifest(),
            "reward_label": self.experiment.reward_label,
            "deviations": [dict(row) for row in self.experiment.deviations(self.protocol)],
            "tuning": self.experiment.tuning if self.tuned else "",
            "assets": [dataclasses.asdict(ASSETS[name]) for name in sorted(assets)],
            "arms": [
                {
                    "arm": run.arm,
                    "setting": run.setting,
                    "seed": run.seed,
                    "variant": run.variant,
                    "policy": run.policy.fingerprint,
                    "evaluation": run.evaluation.fingerprint,
                }
                for run in self.runs
            ],
            "reference_samples": self.reference_samples.fingerprint,
            "gold": self.gold.fingerprint,
        }

    def write_report(self, folder: Path) -> Written:
        from analysis.report import write_report
        from analysis.views import headline_grid

        made = write_report(folder)
        headline = headline_grid(made["headline"])
        return Written(headline["columns"], headline["rows"], made["sentences"])


# The sections of the protocol that an arm's own stages read: only these tell its variants apart.
ARM_SECTIONS = {
    "sft": ("labels", "reward_model"),
    "ppo": ("labels", "reward_model", "ppo"),
    "dpo": ("labels", "dpo"),
}


def resolve(
    experiment: Comparison,
    scale: str,
    arms: Sequence[str] | None = None,
    seeds: int = 1,
    assignments: Sequence[str] = (),
) -> ComparisonStudy:
    """An experiment with the user's choices, as steps; nothing is run.

    Args:
        arms: names to run; None for all. The SFT model is always evaluated.
        seeds: how many; a seed draws labels, reward model and policy, the SFT model is one.
        assignments: `--set` arguments.

    Raises:
        UserError: an unknown scale, arm or setting, or a value that does not fit.
    """
    experiment.check(scale, arms, seeds)
    chosen = [arm for arm in experiment.arms if arms is None or arm in arms or arm == "sft"]
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
    return ComparisonStudy(
        experiment=experiment,
        scale=scale,
        protocol=protocol,
        folder_name=settings.folder_name(
            experiment.name, scale, chosen, len(experiment.arms), seeds, given
        ),
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
