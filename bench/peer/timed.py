"""Timed stages that leave a folder each, and are not repeated where it is there."""

import csv
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.shared.files import replace

SECONDS = "seconds.json"
COLUMNS = ("stage", "label", "seconds")


@dataclass
class Stages:
    """The stages of one run of a benchmark, in the order in which they are asked for.

    Attributes:
        workdir: a finished stage is the folder <stage>/<label> below it, with its seconds.
        rows: (stage, label, seconds) so far.
    """

    workdir: Path
    rows: list[tuple[str, str, float]] = field(default_factory=list)

    def folder(self, stage: str, label: str) -> Path:
        return self.workdir / stage / label

    def done(self, stage: str, label: str) -> bool:
        return (self.folder(stage, label) / SECONDS).is_file()

    def run(self, stage: str, label: str, work: Callable[[Path], None]) -> Path:
        """The folder of a stage, which `work` fills unless it is there; its seconds are noted."""
        folder, reused = self.folder(stage, label), self.done(stage, label)
        if not reused:
            print(f"{stage} {label} ...", flush=True)
            partial = begin(folder)
            started = time.perf_counter()
            work(partial)
            finish(partial, folder, time.perf_counter() - started)
        self.note(stage, label, reused)
        return folder

    def book(self, stage: str, label: str, seconds: float) -> None:
        """Note seconds that were measured elsewhere; those of an earlier time are kept."""
        folder, reused = self.folder(stage, label), self.done(stage, label)
        if not reused:
            finish(begin(folder), folder, seconds)
        self.note(stage, label, reused)

    def note(self, stage: str, label: str, reused: bool = False) -> None:
        """Take a finished stage into the rows, and say so."""
        seconds = json.loads((self.folder(stage, label) / SECONDS).read_text())["seconds"]
        self.rows.append((stage, label, seconds))
        print(
            f"{stage} {label}: {seconds:.1f} s, {self.total:.1f} s so far"
            + (" (done before)" if reused else ""),
            flush=True,
        )

    @property
    def total(self) -> float:
        """Seconds of all rows."""
        return sum(seconds for *_, seconds in self.rows)

    def write(self, path: Path) -> None:
        """A CSV file of the rows, with their total."""

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(COLUMNS)
                for stage, label, seconds in [*self.rows, ("total", "", self.total)]:
                    table.writerow((stage, label, f"{seconds:.2f}"))

        replace(path, write)


def begin(folder: Path) -> Path:
    """An empty folder in which a stage is built, so that a stage that was killed never counts."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish(partial: Path, folder: Path, seconds: float) -> None:
    """Make it the stage's own."""
    (partial / SECONDS).write_text(json.dumps({"seconds": seconds}))
    partial.rename(folder)
