"""What an experiment is made of: runs of arms, on shared stages, judged by one evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        deviations: what the source protocol says and what is done here, for the report.
        tuning: name of the experiment whose published table chose the settings, or "".
    """

    name: str
    title: str
    question: str
    scales: Mapping[str, Protocol]
    arms: Mapping[str, str]
    sweeps: Mapping[str, tuple[str, tuple[float, ...]]]
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    deviations: Sequence[Mapping[str, str]] = ()
    tuning: str = ""


@dataclass(frozen=True)
class Study:
    """An experiment at one scale, resolved into steps.

    Attributes:
        folder_name: below results/experiments; plain for the defaults, else it names what differs.
    """

    experiment: Experiment
    scale: str
    folder_name: str
    runs: Sequence[Run]
    reference_samples: Step
    gold: Step

    def steps(self) -> list[Step]:
        """Everything to do, dependencies first."""
        return closure([self.reference_samples, *(run.evaluation for run in self.runs)])

    def folder(self, results: Path) -> Path:
        return results / "experiments" / self.folder_name

    def manifest(self) -> dict[str, Any]:
        """The exact fingerprints that the analysis loads, and nothing else."""
        return {
            "experiment": self.experiment.name,
            "scale": self.scale,
            "title": self.experiment.title,
            "question": self.experiment.question,
            "deviations": [dict(row) for row in self.experiment.deviations],
            "tuning": self.experiment.tuning,
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
