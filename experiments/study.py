"""What an experiment is, and what it becomes once the user has chosen: inert steps and a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.forecast import Forecast
from pipelines.shared.errors import UserError, unknown
from pipelines.shared.steps import Step

ALL = "all"  # `--arms all`


@dataclass(frozen=True)
class Written:
    """What a report says at a glance: a table (headings, whether a column is numeric; rows of
    text) and sentences."""

    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[str]]
    sentences: Sequence[str]


@dataclass(frozen=True)
class Choice:
    """An arm as the user sees it before anything runs.

    Attributes:
        sweep: its swept setting ("ppo.kl_coef") and the values; None for an arm that has none.
        default: whether it is run unless arms are named.
        always: whether it is there whatever is named.
    """

    summary: str
    sweep: tuple[str, tuple[float, ...]] | None = None
    default: bool = True
    always: bool = False


@dataclass(frozen=True)
class Experiment:
    """A question, and a protocol at several scales to answer it by.

    Attributes:
        scales: a protocol (a dataclass of `Spec` sections) by name.
    """

    name: str
    title: str
    question: str
    scales: Mapping[str, Any]

    def choices(self) -> Mapping[str, Choice]:
        """The arms that there are to choose from, by name, in the order of tables and lists."""
        raise NotImplementedError

    def chosen(self, arms: Sequence[str] | None) -> tuple[list[str], str]:
        """The arms that are run, in order, and how a folder's name tells of it ("" by default)."""
        choices = self.choices()
        always = [name for name, choice in choices.items() if choice.always]
        default = [name for name, choice in choices.items() if choice.default or choice.always]
        wanted = {*default} if arms is None else {*choices} if ALL in arms else {*arms, *always}
        names = [name for name in choices if name in wanted]
        if names == default:
            return names, ""
        named = [name for name in names if name not in always]
        return names, ALL if len(names) == len(choices) else ",".join(named)

    def check(self, scale: str, arms: Sequence[str] | None, seeds: int) -> None:
        """Raise `UserError` for a scale, an arm or a number of seeds that there is not."""
        if scale not in self.scales:
            raise unknown("scale", scale, self.scales)
        for arm in arms or ():
            if arm != ALL and arm not in self.choices():
                raise unknown("arm", arm, [*self.choices(), ALL])
        if seeds < 1:
            raise UserError(f"--seeds {seeds}: must be at least 1")

    def given(self, own: Mapping[str, str]) -> "Experiment":
        """This experiment on what the user brings.

        Args:
            own: values of the options of `OWN` that were given, by name.

        Raises:
            UserError: it takes nothing, needs something else, or what is brought is refused.
        """
        if own:
            raise UserError(
                f"experiment {self.name} has a model and data of its own: "
                f"{', '.join(f'--{name}' for name in own)} is for `custom`"
            )
        return self

    def importing(self, imports: Mapping[str, str]) -> "Experiment":
        """This experiment with checkpoints from elsewhere (`--import`) as arms, by their names.

        Raises:
            UserError: it compares no such policies, or what is named is refused.
        """
        if imports:
            raise UserError(f"experiment {self.name} compares no language models: no --import")
        return self

    def resolve(
        self,
        scale: str,
        arms: Sequence[str] | None = None,
        seeds: int = 1,
        assignments: Sequence[str] = (),
    ) -> "Study":
        """This experiment with the user's choices, as steps; nothing is run.

        Args:
            arms: names to run; None for those that are run by default.
            seeds: how many.
            assignments: `--set` arguments.

        Raises:
            UserError: an unknown scale, arm or setting, or a value that does not fit.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Study:
    """An experiment at one scale, resolved into steps.

    Attributes:
        folder_name: below results/experiments; plain for the defaults, else it names what differs.
    """

    experiment: Experiment
    scale: str
    folder_name: str

    def folder(self, results: Path) -> Path:
        return results / "experiments" / self.folder_name

    def steps(self) -> list[Step]:
        """Everything to do, dependencies first."""
        raise NotImplementedError

    def manifest(self) -> dict[str, Any]:
        """The exact fingerprints that the analysis loads, and nothing else."""
        return {
            "experiment": self.experiment.name,
            "scale": self.scale,
            "title": self.experiment.title,
            "question": self.experiment.question,
            "steps": [step.fingerprint for step in self.steps()],
        }

    @property
    def brought(self) -> Mapping[str, Path]:
        """Where the user's own files lie, by their digest."""
        return {}

    def forecast(self) -> Forecast | None:
        """What its steps will cost by arithmetic; None where their sizes are not known."""
        return None

    def kept(self) -> list[tuple[Step, str]]:
        """The tables that the analysis is made from: (step, file in its folder)."""
        raise NotImplementedError

    def collect_text(self, results: Path, folder: Path) -> None:
        """Write what else the analysis reads (generated text) into the study's folder."""

    def write_report(self, folder: Path) -> Written:
        """Remake tables, figures and report.html from what is in the study's folder."""
        raise NotImplementedError
