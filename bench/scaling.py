"""Do time and memory grow as they should, from 1x to 8x? In pairs, prompts and updates.

    .venv/bin/python bench/scaling.py

Seconds of DPO's training and of the reference's log-probs in the number of pairs, of an evaluation
in the number of prompts, of PPO in the number of updates; peak memory in all of them. The steps are
the project's own, with models of scale mini, each in a process of its own, one at a time; seconds
and memory are those of their records. A line a + b n is fitted to the seconds by least squares of
the relative deviations. Writes scaling.csv. Exit status 1 if a time is further than 15% from the
line, if 8x takes more than 15% above 8 times 1x, or if the peak memory grows in the number of pairs
by more than 10% and what the rows themselves take.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.sentiment import SENTIMENT
from pipelines.shared.assets import default_cache
from pipelines.shared.executors import Event, run_local
from pipelines.shared.files import replace
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step, closure, load_record

CSV = Path(__file__).with_suffix(".csv")
TIMES = (1, 2, 4, 8)
OFF_LINE = 0.15
MORE_MEMORY = 0.10
# Models of scale mini, hardly trained; enough prompts in the splits that grow here.
BASE = {
    "sft.epochs": 1,
    "corpus.share_sft": 0.2,
    "corpus.share_preference": 0.4,
    "dpo.beta": 0.1,
    "ppo.kl_coef": 0.1,
    "ppo.updates": 2,
    "sampling.prompts": 100,
    "evaluation.prompts": 32,
}


@dataclass(frozen=True)
class Quantity:
    """Something that is made 1, 2, 4 and 8 times as large.

    Attributes:
        setting: "section.field" that is multiplied; other: settings that differ from `BASE`.
        size: its value at 1x.
        unit: what is counted, and units the number of them for a value of the setting.
        step: of a resolved study, the step that is measured.
        rows: bytes of the data that the step loads and that grow with it; None where its memory is
            not held against anything (what a policy samples has no fixed length).
    """

    name: str
    setting: str
    size: int
    unit: str
    step: Callable[[Any], Step]
    units: Callable[[int], int] = lambda value: value
    other: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[Step, Path], int] | None = None


def policy_of(study: Any, arm: str) -> Step:
    """The step that trains the one run of an arm."""
    [run] = [run for run in study.runs if run.arm == arm]
    return run.policy


def evaluation_of(study: Any, arm: str) -> Step:
    [run] = [run for run in study.runs if run.arm == arm]
    return run.evaluation


def table_bytes(step: Step, results: Path, upstream: str, name: str) -> int:
    """What a table that the step reads takes in memory, in bytes."""
    table = pd.read_parquet(step.upstream[upstream].folder(results) / name)
    views = sum(
        cell.nbytes
        for column in table
        for cell in table[column]
        if isinstance(cell, np.ndarray) and cell.base is not None  # not in what pandas counts
    )
    return int(table.memory_usage(deep=True).sum()) + views


QUANTITIES = (
    Quantity(
        name="DPO training",
        setting="sampling.prompts",
        size=250,
        unit="pairs",
        units=lambda prompts: 6 * prompts,  # of 4 completions
        step=lambda study: policy_of(study, "dpo"),
        rows=lambda step, results: table_bytes(step, results, "pairs", "pairs.parquet"),
    ),
    Quantity(
        name="reference log-probs",
        setting="sampling.prompts",
        size=400,
        other={"sampling.completions": 32},
        unit="pairs",
        units=lambda prompts: 496 * prompts,  # of 32 completions
        step=lambda study: policy_of(study, "dpo").upstream["reference_logprobs"],
        rows=lambda step, results: table_bytes(step, results, "completions", "completions.parquet"),
    ),
    Quantity(
        name="evaluation",
        setting="evaluation.prompts",
        size=250,
        other={"evaluation.samples": 8},
        unit="prompts",
        step=lambda study: evaluation_of(study, "dpo"),
    ),
    Quantity(
        name="PPO training",
        setting="ppo.updates",
        size=6,
        unit="updates",
        step=lambda study: policy_of(study, "ppo"),
    ),
)


@dataclass(frozen=True)
class Measured:
    """A quantity at 1x, 2x, 4x and 8x.

    Attributes:
        units: how many of what is counted.
        seconds, memory: of the step's record; bytes at most resident.
        rows: bytes of the data that grow with it.
    """

    name: str
    unit: str
    units: Sequence[int]
    seconds: Sequence[float]
    memory: Sequence[int]
    rows: Sequence[int] | None

    @property
    def line(self) -> tuple[float, float]:
        """Fixed seconds a and seconds a unit b of the fitted line."""
        return fitted_line(self.units, self.seconds)

    @property
    def over_line(self) -> list[float]:
        """Each time over the line's, less 1."""
        fixed, each = self.line
        pairs = zip(self.units, self.seconds, strict=True)
        return [seconds / (fixed + each * units) - 1 for units, seconds in pairs]

    @property
    def over_proportional(self) -> float:
        """The last time over what it would be in proportion to the first, less 1: a line can hide
        what grows faster only with a fixed cost below 0, and then this is above 0."""
        return self.seconds[-1] / self.seconds[0] * self.units[0] / self.units[-1] - 1

    @property
    def more_memory(self) -> float:
        """The growth of the peak memory that is not the rows', over the smallest; 0 where it is
        not asked for."""
        if self.rows is None:
            return 0.0
        without = [memory - rows for memory, rows in zip(self.memory, self.rows, strict=True)]
        return (max(without) - without[0]) / self.memory[0]

    @property
    def fine(self) -> bool:
        """Linear in time and flat in memory."""
        linear = max(map(abs, self.over_line)) <= OFF_LINE and self.over_proportional <= OFF_LINE
        return linear and self.more_memory <= MORE_MEMORY


def fitted_line(units: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(a, b) of a + b n, by least squares of the deviations relative to the seconds: the shortest
    time counts as much as the longest."""
    weights = 1 / np.asarray(seconds, dtype=float)
    design = np.stack([weights, np.asarray(units, dtype=float) * weights], axis=1)
    (fixed, each), *_ = np.linalg.lstsq(design, np.ones(len(seconds)), rcond=None)
    return float(fixed), float(each)


def steps_of(quantity: Quantity, size: float) -> dict[int, Step]:
    """The step at 1x, 2x, 4x and 8x, by the number of units."""
    steps = {}
    for times in TIMES:
        value = times * max(1, round(quantity.size * size))
        settings = {**BASE, **quantity.other, quantity.setting: value}
        study = SENTIMENT.resolve(
            "mini",
            ["ppo", "dpo"],
            assignments=[f"{name}={value}" for name, value in settings.items()],
        )
        steps[quantity.units(value)] = quantity.step(study)
    return steps


def measure(quantity: Quantity, runtime: Runtime, size: float) -> Measured:
    """Run a quantity's steps, and what they stand on, one after another."""
    steps = steps_of(quantity, size)
    run_local(closure(list(steps.values())), runtime, cores=1, tell=tell)
    records: list[dict[str, Any]] = []
    for step in steps.values():
        record = load_record(step, runtime.results)
        assert record is not None
        records.append(record)
    return Measured(
        name=quantity.name,
        unit=quantity.unit,
        units=list(steps),
        seconds=[record["cost"]["seconds"] for record in records],
        memory=[record["cost"]["peak_memory_bytes"] for record in records],
        rows=quantity.rows and [quantity.rows(step, runtime.results) for step in steps.values()],
    )


def tell(event: Event) -> None:
    if event.kind == "done" and event.record:
        seconds = event.record["cost"]["seconds"]
        print(f"  {event.step.stage} {event.step.label}: {seconds:.1f} s", flush=True)


def show(found: Measured) -> None:
    """Print a quantity's table and what is said of it."""
    fixed, each = found.line
    print(f"\n{found.name}, in {found.unit}")
    rows = {
        found.unit: [f"{units:,}" for units in found.units],
        "seconds": [f"{seconds:.2f}" for seconds in found.seconds],
        "over the line": [f"{share:+.1%}" for share in found.over_line],
        "peak memory, MB": [f"{memory / 1e6:.0f}" for memory in found.memory],
    }
    if found.rows is not None:
        rows["of it rows, MB"] = [f"{rows / 1e6:.1f}" for rows in found.rows]
    print(" " * 18 + "".join(f"{times:>10}x" for times in TIMES))
    for name, cells in rows.items():
        print(f"  {name:<16}" + "".join(f"{cell:>11}" for cell in cells))
    print(
        f"  line: {fixed:.2f} s + {1000 * each:.3f} ms x {found.unit}; 8x against 8 times 1x: "
        f"{found.over_proportional:+.1%}"
        + (f"; memory without rows: {found.more_memory:+.1%}" if found.rows is not None else "")
        + (": PASS" if found.fine else ": FAIL"),
        flush=True,
    )


def write(path: Path, all_found: Sequence[Measured]) -> None:
    """A CSV file with one row a measurement."""

    def write_table(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(
                ("quantity", "unit", "units", "seconds", "over_line", "peak_memory_mb", "rows_mb")
            )
            for found in all_found:
                measured = zip(
                    found.units,
                    [f"{seconds:.3f}" for seconds in found.seconds],
                    [f"{share:.4f}" for share in found.over_line],
                    [f"{memory / 1e6:.1f}" for memory in found.memory],
                    [f"{rows / 1e6:.1f}" for rows in found.rows or []] or [""] * len(TIMES),
                    strict=True,
                )
                table.writerows((found.name, found.unit, *row) for row in measured)

    replace(path, write_table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--size", type=float, default=1.0, help="of the usual: to try it out")
    parser.add_argument(
        "--only", choices=[quantity.name for quantity in QUANTITIES], help="one quantity"
    )
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; 1 if something grows as it should not."""
    arguments = parse()
    chosen = [q for q in QUANTITIES if arguments.only in (None, q.name)]
    with tempfile.TemporaryDirectory() as scratch:
        runtime = Runtime(results=Path(scratch), cache=default_cache())
        found = []
        for quantity in chosen:
            print(f"\nmeasuring {quantity.name} ...", flush=True)
            found.append(measure(quantity, runtime, arguments.size))
            show(found[-1])
    if arguments.size == 1 and len(chosen) == len(QUANTITIES):
        write(CSV, found)
    return 0 if all(one.fine for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
