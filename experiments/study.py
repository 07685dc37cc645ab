"""What an experiment is made of: runs of arms, on shared stages, judged by one evaluation."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
class Experiment:
    """A protocol at several scales: what a file in experiments/ declares.

    Attributes:
        sweeps: for each arm with a coefficient, its setting ("ppo.kl_coef") and the values.
        axes: other settings swept by default, by name.
        reward_label: what the gold reward is, for the figures' axes.
        deviations: from a protocol, what its source says and what is done here, for the report.
        tuning: name of the experiment that chose the settings of `tuned_scales`, or "".
    """

    name: str
    title: str
    question: str
    scales: Mapping[str, Protocol]
    arms: Mapping[str, str]
    sweeps: Mapping[str, tuple[str, tuple[float, ...]]]
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reward_label: str = "gold reward"
    deviations: Callable[[Protocol], Sequence[Mapping[str, str]]] = lambda protocol: ()
    tuning: str = ""
    tuned_scales: Sequence[str] = ()


@dataclass(frozen=True)
class Study:
    """An experiment at one scale, resolved into steps.

    Attributes:
        folder_name: below results/experiments; plain for the defaults, else it names what differs.
    """

    experiment: Experiment
    scale: str
    protocol: Protocol
    folder_name: str
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
        """Everything to do, dependencies first."""
        return closure([self.reference_samples, *(run.evaluation for run in self.runs)])

    def folder(self, results: Path) -> Path:
        return results / "experiments" / self.folder_name

    def manifest(self) -> dict[str, Any]:
        """The exact fingerprints that the analysis loads, and nothing else."""
        assets = {name for step in self.steps() for name in step.assets}
        return {
            "experiment": self.experiment.name,
            "scale": self.scale,
            "title": self.experiment.title,
            "question": self.experiment.question,
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
            "steps": [step.fingerprint for step in self.steps()],
        }
