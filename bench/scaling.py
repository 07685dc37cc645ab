"""Do time and memory grow as they should, from 1x to 8x? In pairs, prompts and updates.

    .venv/bin/python bench/scaling.py

Seconds of DPO's training and of the reference's log-probs in the number of pairs, of an evaluation
in the number of prompts, of PPO in the number of updates. The steps are the project's own, with
models of scale mini, each in a process of its own, one at a time; seconds and peak memory are those
of their records. A line a + b n is fitted to the seconds by least squares of the relative
deviations.

Whether memory grows with the number of pairs is asked of more runs, at 1x and 8x, in which freed
memory goes back to the system: the project keeps it, which is faster, but makes the peak differ by
a tenth from one run to the next; given back, it is the same within 1%.

Writes scaling.csv. Exit status 1 if a time is further than 15% from the line, if 8x takes more than
15% above 8 times 1x, or if the peak memory grows in the number of pairs by more than 10% and what
the rows themselves take.
"""

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.sentiment import SENTIMENT
from pipelines.dpo.reference import READ
from pipelines.shared.assets import default_cache
from pipelines.shared.executors import Event, run_local
from pipelines.shared.files import replace
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step, closure

CSV = Path(__file__).with_suffix(".csv")
TIMES = (1, 2, 4, 8)
OFF_LINE = 0.15
MORE_MEMORY = 0.10
# What glibc does by itself, instead of what run_local asks of it unless it is told.
GIVE_BACK = {
    "MALLOC_MMAP_MAX_": "65536",
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**10),
    "MALLOC_TOP_PAD_": str(128 * 2**10),
}
# Models of scale mini, hardly trained; enough prompts in the splits that grow here.
BASE = {
    "compute.shared_threads": 1,  # steady beside other work
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
        rows: bytes of the data that the step loads and that grow with it; None where memory is not
            measured once more.
        shorter: settings of the runs that measure memory, which need not train as long.
    """

    name: str
    setting: str
    size: int
    unit: str
    step: Callable[[Any], Step]
    units: Callable[[int], int] = lambda value: value
    other: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[Step, Path], int] | None = None
    shorter: Mapping[str, Any] = field(default_factory=dict)


def policy_of(study: Any, arm: str) -> Step:
    """The step that trains the one run of an arm."""
    [run] = [run for run in study.runs if run.arm == arm]
    return run.policy


def evaluation_of(study: Any, arm: str) -> Step:
    [run] = [run for run in study.runs if run.arm == arm]
    return run.evaluation


def table_bytes(
    step: Step, results: Path, upstream: str, name: str, columns: list[str] | None = None
) -> int:
    """What the columns that the step reads of a table take in memory, in bytes."""
    table = pd.read_parquet(step.upstream[upstream].folder(results) / name, columns=columns)
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
        size=200,
        shorter={"dpo.epochs": 1},
        unit="pairs",
        units=lambda prompts: 6 * prompts,  # of 4 completions
        step=lambda study: policy_of(study, "dpo"),
        rows=lambda step, results: table_bytes(step, results, "pairs", "pairs.parquet"),
    ),
    Quantity(
        name="reference log-probs",
        setting="sampling.prompts",
        size=300,
        other={"sampling.completions": 32},
        unit="pairs",
        units=lambda prompts: 496 * prompts,  # of 32 completions
        step=lambda study: policy_of(study, "dpo").upstream["reference_logprobs"],
        rows=lambda step, results: table_bytes(
            step, results, "completions", "completions.parquet", READ
        ),
    ),
    Quantity(
        name="evaluation",
        setting="evaluation.prompts",
        size=140,
        other={"evaluation.samples": 8},
        unit="prompts",
        step=lambda study: evaluation_of(study, "dpo"),
    ),
    Quantity(
        name="PPO training",
        setting="ppo.updates",
        size=5,
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
        flat: bytes at most resident at 1x and 8x where freed memory is given back, and the bytes of
            the rows that they hold; None where that is not asked for.
    """

    name: str
    unit: str
    units: Sequence[int]
    seconds: Sequence[float]
    memory: Sequence[int]
    flat: tuple[Sequence[int], Sequence[int]] | None = None

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
        """The growth of the peak memory from 1x to 8x that is not the rows', as a share; 0 where it
        is not asked for."""
        if self.flat is None:
            return 0.0
        (first, last), (few, many) = self.flat
        return (last - first - (many - few)) / first

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


def steps_of(
    quantity: Quantity, size: float, more: Mapping[str, Any] | None = None
) -> dict[int, Step]:
    """The step at 1x, 2x, 4x and 8x, by the number of units.

    Args:
        size: of the usual sizes.
        more: settings.
    """
    steps = {}
    for times in TIMES:
        value = times * max(1, round(quantity.size * size))
        settings = {**BASE, **quantity.other, **(more or {}), quantity.setting: value}
        study = SENTIMENT.resolve(
            "mini",
            ["ppo", "dpo"],
            assignments=[f"{name}={value}" for name, value in settings.items()],
        )
        steps[quantity.units(value)] = quantity.step(study)
    return steps


def run(steps: Sequence[Step], runtime: Runtime) -> list[dict[str, Any]]:
    """Run steps, and what they stand on, one after another; their records."""
    records = run_local(closure(steps), runtime, cores=1, tell=tell)
    return [dict(records[step.fingerprint]) for step in steps]


def measure(quantity: Quantity, runtime: Runtime, size: float) -> Measured:
    """A quantity's seconds, and its memory where that is asked for."""
    steps = steps_of(quantity, size)
    records = run(list(steps.values()), runtime)
    return Measured(
        name=quantity.name,
        unit=quantity.unit,
        units=list(steps),
        seconds=[record["cost"]["seconds"] for record in records],
        memory=[record["cost"]["peak_memory_bytes"] for record in records],
        flat=measure_memory(quantity, runtime, size) if quantity.rows else None,
    )


def measure_memory(
    quantity: Quantity, runtime: Runtime, size: float
) -> tuple[list[int], list[int]]:
    """Peak memory at 1x and 8x and the bytes of the rows, in a process that gives memory back:
    the C library reads what it is to do when a process starts."""
    with tempfile.NamedTemporaryFile(mode="r") as out:
        command = [sys.executable, __file__, "--only", quantity.name, "--size", str(size)]
        command += ["--results", str(runtime.results), "--memory-to", out.name]
        subprocess.run(command, env={**os.environ, **GIVE_BACK}, check=True)
        found = json.load(out)
    return found["memory"], found["rows"]


def memory_side(quantity: Quantity, runtime: Runtime, size: float) -> dict[str, list[int]]:
    """What that process answers. The steps have another seed, for they are other runs."""
    assert quantity.rows is not None
    same = list(steps_of(quantity, size, quantity.shorter).values())
    steps = [dataclasses.replace(step, seed=step.seed + 1) for step in (same[0], same[-1])]
    records = run(steps, runtime)
    return {
        "memory": [record["cost"]["peak_memory_bytes"] for record in records],
        "rows": [quantity.rows(step, runtime.results) for step in steps],
    }


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
    print(" " * 18 + "".join(f"{times:>10}x" for times in TIMES))
    for name, cells in rows.items():
        print(f"  {name:<16}" + "".join(f"{cell:>11}" for cell in cells))
    print(
        f"  line: {fixed:.2f} s + {1000 * each:.3f} ms x {found.unit}; 8x against 8 times 1x: "
        f"{found.over_proportional:+.1%}"
    )
    if found.flat is not None:
        memory, held = ([f"{number / 1e6:.1f}" for number in part] for part in found.flat)
        print(
            f"  where freed memory is given back: {memory[0]} MB at 1x, {memory[1]} MB at 8x (rows "
            f"{held[0]} and {held[1]} MB); without the rows {found.more_memory:+.1%}"
        )
    print("  PASS" if found.fine else "  FAIL", flush=True)


def write(path: Path, all_found: Sequence[Measured]) -> None:
    """A CSV file with one row a measurement."""

    def write_table(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(
                (
                    "quantity",
                    "unit",
                    "units",
                    "seconds",
                    "over_line",
                    "peak_memory_mb",
                    "peak_memory_given_back_mb",
                )
            )
            for found in all_found:
                first, last = found.flat[0] if found.flat else (None, None)
                measured = zip(
                    found.units,
                    [f"{seconds:.3f}" for seconds in found.seconds],
                    [f"{share:.4f}" for share in found.over_line],
                    [f"{memory / 1e6:.1f}" for memory in found.memory],
                    [f"{end / 1e6:.1f}" if end else "" for end in (first, None, None, last)],
                    strict=True,
                )
                table.writerows((found.name, found.unit, *row) for row in measured)

    replace(path, write_table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--results", type=Path, help="kept; default: a temporary folder")
    parser.add_argument("--size", type=float, default=1.0, help="of the usual: to try it out")
    parser.add_argument(
        "--only", choices=[quantity.name for quantity in QUANTITIES], help="one quantity"
    )
    parser.add_argument("--memory-to", type=Path, help=argparse.SUPPRESS)  # see memory_side
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; 1 if something grows as it should not."""
    arguments = parse()
    chosen = [q for q in QUANTITIES if arguments.only in (None, q.name)]
    with tempfile.TemporaryDirectory() as scratch:
        results = (arguments.results or Path(scratch)).absolute()
        runtime = Runtime(results=results, cache=default_cache())
        if arguments.memory_to:
            answer = memory_side(*chosen, runtime, arguments.size)
            arguments.memory_to.write_text(json.dumps(answer))
            return 0
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
