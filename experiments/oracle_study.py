"""Studies of the enumerable task, where every figure is exact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import settings
from experiments.study import Experiment, Study, Written
from pipelines.exact.pipeline import dpo, evaluation, ppo, reward_model, task
from pipelines.shared.errors import UserError
from pipelines.shared.specs import OracleProtocol
from pipelines.shared.steps import Step, closure


@dataclass(frozen=True)
class OracleRun:
    """One trained policy and the step that holds its exact distribution.

    Attributes:
        labels: exact or sampled; None where the arm learns from the true reward.
        detail, change, note: number of the PPO detail, what was changed, and what to bear in mind,
            in the study of details.
    """

    arm: str
    beta: float
    seed: int
    labels: str | None
    evaluation: Step
    detail: str = ""
    change: str = ""
    note: str = ""


@dataclass(frozen=True)
class OracleStudy(Study):
    """An experiment on the enumerable task, resolved into steps."""

    protocol: OracleProtocol
    runs: Sequence[OracleRun]
    bars: Mapping[str, float]

    def steps(self) -> list[Step]:
        return closure([run.evaluation for run in self.runs])

    def kept(self) -> list[tuple[Step, str]]:
        return [(run.evaluation, "policy.parquet") for run in self.runs]

    def manifest(self) -> dict[str, Any]:
        runs = [
            {
                "arm": run.arm,
                "beta": run.beta,
                "seed": run.seed,
                "labels": run.labels,
                "detail": run.detail,
                "change": run.change,
                "note": run.note,
                "evaluation": run.evaluation.fingerprint,
            }
            for run in self.runs
        ]
        labels = self.protocol.labels
        drawn = f"{labels.at_most:,} pairs drawn evenly" if labels.at_most else "all pairs"
        return {
            **super().manifest(),
            "arms": dict(self.experiment.arms),
            "runs": runs,
            "exact_labels": f"{drawn} with their exact probability",
            "sampled_labels": f"{labels.pairs:,} pairs of samples with labels drawn once",
            "bars": dict(self.bars),
        }

    def write_report(self, folder: Path) -> Written:
        from analysis.oracle_report import write_report

        made = write_report(folder)
        return Written(made["columns"], made["rows"], made["sentences"])


@dataclass(frozen=True)
class OracleExperiment(Experiment):
    """PPO and DPO against the exact optimum.

    Attributes:
        bars: the least share that each arm must close on exact labels, at scale `mini` as declared.
    """

    bars: Mapping[str, float] = field(default_factory=dict)

    def resolve(
        self,
        scale: str,
        arms: Sequence[str] | None = None,
        seeds: int = 1,
        assignments: Sequence[str] = (),
    ) -> OracleStudy:
        """See `Experiment.resolve`. A seed draws the labels and the training; the task is one.

        `--set ppo.kl_coef=...` and `--set dpo.beta=...` choose the coefficients; any other setting
        takes one value.
        """
        protocol, chosen, given = checked(self, scale, arms, seeds, assignments, UNUSED)
        start = task(protocol)
        runs = []
        for seed in range(seeds):
            for arm in chosen:
                swept, values = self.sweeps[arm]
                for beta in given.get(swept, values):
                    runs += self._runs(arm, settings.apply(protocol, {swept: beta}), start, seed)
        name = folder_name(self, scale, arms, seeds, given)
        declared = scale == "mini" and protocol == self.scales[scale]
        return OracleStudy(self, scale, name, protocol, runs, self.bars if declared else {})

    def _runs(self, arm: str, at: Any, start: Step, seed: int) -> list[OracleRun]:
        """An arm at one coefficient: once, or on both kinds of labels."""
        if arm == "ppo-gt":
            last = evaluation(start, ppo(at, start, None, seed))
            return [OracleRun(arm, at.ppo.kl_coef, seed, None, last)]
        found = []
        for kind in ("exact", "sampled"):
            own = settings.apply(at, {"labels.kind": kind})
            if arm == "dpo":
                policy, beta = dpo(own, start, seed), own.dpo.beta
            else:
                judge = reward_model(own, start, seed)
                policy, beta = ppo(own, start, judge, seed), own.ppo.kl_coef
            found.append(OracleRun(arm, beta, seed, kind, evaluation(start, policy)))
        return found


UNUSED = {
    "labels.kind": "runs every kind of labels",
    "labels.temperature": "states its bars for labels of temperature 1",
    "ablation": "changes nothing about PPO: that is what ppo_details is for",
}


def checked(
    experiment: Experiment,
    scale: str,
    arms: Sequence[str] | None,
    seeds: int,
    assignments: Sequence[str],
    unused: Mapping[str, str],
) -> tuple[Any, list[str], dict[str, tuple[Any, ...]]]:
    """The protocol with the user's settings, the arms, and what was given for the coefficients.

    Args:
        unused: settings, or whole sections, that this experiment decides itself, and why.

    Raises:
        UserError: see `Experiment.resolve`.
    """
    experiment.check(scale, arms, seeds)
    given = settings.parse(assignments, experiment.scales[scale])
    for name, values in given.items():
        for key in (name, name.partition(".")[0]):
            if key in unused:
                raise UserError(f"--set {name}: {experiment.name} {unused[key]}")
        if name in ("ppo.kl_coef", "dpo.beta") and min(values) <= 0:
            raise UserError(f"--set {name}: must be above 0, without a KL there is no optimum")
    swept = {name for name, _ in experiment.sweeps.values()}
    for name, values in given.items():
        if len(values) > 1 and name not in swept:
            raise UserError(f"--set {name}: this experiment takes one value of it")
    fixed = {name: values[0] for name, values in given.items() if name not in swept}
    protocol = settings.apply(experiment.scales[scale], fixed)
    return protocol, [arm for arm in experiment.arms if arms is None or arm in arms], given


def folder_name(
    experiment: Experiment,
    scale: str,
    arms: Sequence[str] | None,
    seeds: int,
    given: Mapping[str, Sequence[Any]],
) -> str:
    """`name-scale` and what differs from the default."""
    chosen = [arm for arm in experiment.arms if arms is None or arm in arms]
    return settings.folder_name(experiment.name, scale, chosen, len(experiment.arms), seeds, given)
