"""This project's speed against TRL's and Transformers', measured in turns in one run.

    .venv/bin/python bench/speed.py [--only dpo,ppo,reward,decode] [--models a,b] [--threads 1,2]

Every side is a process of its own, in its own environment and with the same allocator settings;
they take turns (A B C A B C ...) while the others sleep, and medians over ticks are compared. The
first tick of each is a warm-up. Models: (a) GPT-2, 4 layers x width 256, vocabulary 8,000; (b)
SmolLM2-135M's shape. Random weights, fp32, 16 prompt tokens, 32 completion tokens, no padding.

- dpo: one optimiser step with data loading, loss, backward pass, clipping and AdamW. Ours finds the
  reference log-probs in the file that all runs on the same pairs share; making it is not in the
  tick. TRL 1.16.0's DPOTrainer computes them in each step, or before training
  (precompute_ref_log_probs).
- ppo: one update, rollout and 4 epochs, with a critic of its own and with one on the policy's
  trunk, against TRL 1.12.0's PPOTrainer, the last that TRL released. It does not clip gradients:
  neither does ours here.
- reward: one optimiser step of the reward model.
- decode: sampling 32 tokens a prompt, in tokens per second, against Transformers' `generate`.

The share of the GEMM peak is the seconds that the matrix products of our tick take alone, in the
same process and by the library that the tick used, over those of the tick. Fused attention is not
among the products, which makes the share a lower bound. (`timing/gemms.py`)

Then DPO is trained for 20 steps on both sides from the same weights, on the same pairs in the same
order: exit status 1 if a loss differs by more than 1e-5.

Results go to results.csv at the very end; rows of comparisons that were not run stay. All of it
is about 40 minutes on two idle cores; PPO on (b) holds three processes of about 6 GB each.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from environments import CURRENT, LAST_PPO, ROOT, build_environment
from rich.console import Console
from rich.table import Table
from timing.cases import CASES, LOSS_STEPS, OURS, QUICK, ROUGH, SIDES, TASKS, Case
from timing.results import Row, compared, markdown, write
from timing.workers import BENCH, Home, Worker, environment

TOLERANCE = 1e-5  # of losses
BUSY = 0.5  # load average of a machine that has something else to do
PROJECT_HOME = Home(Path(sys.executable), "timing.ours", (BENCH, ROOT))
PEERS = {
    ("dpo", "trl"): f"TRL {CURRENT.trl} DPOTrainer",
    ("dpo", "trl-precomputed"): f"TRL {CURRENT.trl} DPOTrainer, precomputed reference",
    ("ppo", "trl"): f"TRL {LAST_PPO.trl} PPOTrainer",
    ("reward", "trl"): f"TRL {CURRENT.trl} RewardTrainer",
    ("decode", "generate"): "Transformers generate",
}


@dataclass
class Turns:
    """What the sides of one measurement answered.

    Attributes:
        seconds: of each tick, by side.
        phases: of each tick, by side.
        floors: seconds of our products alone, once a round, by side of ours.
        peaks: FLOP/s of a square product, once a round and side of ours.
        products: summary of what was recorded, by side of ours.
        versions: of the libraries, by side.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    phases: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    floors: dict[str, list[float]] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)
    products: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """A task on a model with a number of threads."""

    task: str
    model: str
    case: Case
    threads: int
    rounds: int

    @property
    def title(self) -> str:
        return f"{self.task} ({self.model}), {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def rough(self) -> float:
        """About how long it takes, the start of its processes included; in no real unit."""
        slow = 2 / min(self.threads, 2)
        return (self.rounds + 1) * ROUGH[self.task, self.model] * slow + 15


class Progress:
    """One line for each round: what, which, and the time left, as far as the past tells it."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self.total = sum(each.rough for each in measurements)
        self.done, self.start = 0.0, time.monotonic()

    def say(self, text: str, work: float) -> None:
        """Report; `work` more of the total is done."""
        self.done += work
        elapsed = time.monotonic() - self.start
        left = elapsed * max(self.total - self.done, 0.0) / self.done if self.done else 0.0
        shown = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        print(f"{text}; about {shown} left", flush=True)


class Bench:
    """Environments and models of a run, each made when first asked for.

    Args:
        folder: for everything that the run writes but its results.
    """

    def __init__(self, folder: Path, cases: dict[str, Case]) -> None:
        self.folder, self.cases = folder, cases
        self.pythons: dict[str, Path] = {}
        self.started = 0

    def home(self, task: str, side: str) -> Home:
        """Where a side runs."""
        if side in OURS:
            return PROJECT_HOME
        peer = LAST_PPO if task == "ppo" else CURRENT
        if peer.trl not in self.pythons:
            self.pythons[peer.trl] = build_environment(peer.folder, peer.requirements)
        module = "timing.trl_ppo" if task == "ppo" else "timing.trl_current"
        return Home(self.pythons[peer.trl], module, (BENCH,))

    def models(self, name: str) -> Path:
        """The folder of a model's networks and data."""
        folder = self.folder / name
        if not folder.exists():
            case = json.dumps(asdict(self.cases[name]))
            made = subprocess.run(
                [sys.executable, "-m", "timing.models", folder, case],
                cwd=BENCH,
                env=environment(PROJECT_HOME.paths, 1, self.folder),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if made.returncode:
                raise SystemExit(
                    f"the models of ({name}) could not be made:\n{made.stdout[-4000:]}"
                )
        return folder

    def worker(self, task: str, side: str, model: str, threads: int, losses: bool) -> Worker:
        """Start a process; it answers when it is ready."""
        self.started += 1
        job = {
            "task": task,
            "side": side,
            "folder": str(self.models(model)),
            "case": asdict(self.cases[model]),
            "losses": losses,
        }
        scratch = self.folder / f"worker-{self.started}"
        return Worker(f"{task}, {side}", self.home(task, side), job, threads, scratch)

    def measure(self, what: Measurement, progress: Progress) -> Turns:
        """Let all sides of a task take turns."""
        turns, sides = Turns(), SIDES[what.task]
        share = what.rough / (what.rounds + 1)
        ticks = what.case.ticks if what.task in ("dpo", "reward") else 1
        with ExitStack() as stack:
            workers = {}
            for side in sides:
                worker = self.worker(what.task, side, what.model, what.threads, losses=False)
                stack.callback(worker.stop)
                workers[side] = worker
            for side, worker in workers.items():
                turns.versions[side] = worker.hear()["versions"]
                check_versions(what.task, side, turns.versions[side])
            for side, worker in workers.items():
                warm = worker.ask("record" if side in OURS else "go 1")
                if side in OURS:
                    turns.products[side] = warm
            progress.say(f"{what.title}: warmed up", share)
            for number in range(1, what.rounds + 1):
                for side, worker in workers.items():
                    answer = worker.ask(f"go {ticks}")
                    turns.seconds.setdefault(side, []).extend(answer["seconds"])
                    turns.phases.setdefault(side, []).extend(answer["phases"])
                for side in OURS:
                    if side in workers:
                        alone = workers[side].ask("floor")
                        turns.floors.setdefault(side, []).append(alone["floor"])
                        turns.peaks.append(alone["peak"])
                progress.say(f"{what.title}: round {number} of {what.rounds}", share)
        return turns

    def losses(self, model: str, threads: int) -> dict[str, list[float]]:
        """DPO's loss at each of the first steps, by side; one side after the other."""
        found = {}
        for side in ("ours", "trl"):
            print(f"losses of dpo ({model}), {LOSS_STEPS} steps: {side}", flush=True)
            worker = self.worker("dpo", side, model, threads, losses=True)
            try:
                found[side] = worker.hear()["losses"]
            finally:
                worker.stop()
        return found


def check_versions(task: str, side: str, found: dict[str, str]) -> None:
    """Raises SystemExit unless a peer has the version that it is shown under."""
    wanted = LAST_PPO.trl if task == "ppo" else CURRENT.trl
    if side not in OURS and found["trl"] != wanted:
        raise SystemExit(f"the environment of {side} has trl {found['trl']}, not {wanted}")


def versions(ours: dict[str, str], peer: dict[str, str]) -> str:
    """Both sides' libraries in one string; where they differ, ours first."""
    shown = []
    for name in ("torch", "transformers", "trl"):
        found = dict.fromkeys(side[name] for side in (ours, peer) if name in side)
        shown.append(f"{name} {' / '.join(found)}")
    return "; ".join(shown)


def rows_of(what: Measurement, turns: Turns) -> list[Row]:
    """The comparisons of a measurement: each side of ours with each peer."""
    tokens = what.case.rows * what.case.completion if what.task == "decode" else 0
    return [
        compared(
            what.task + ("-shared" if mine == "ours-shared" else ""),
            what.model,
            what.threads,
            turns.seconds[mine],
            turns.seconds[peer],
            PEERS[what.task, peer],
            turns.floors[mine],
            versions(turns.versions[mine], turns.versions[peer]),
            tokens,
        )
        for mine in turns.floors
        for peer in turns.seconds
        if peer not in OURS
    ]


def describe(what: Measurement, turns: Turns) -> None:
    """How far the ticks of a side are apart, our phases, and the floor in FLOP/s."""
    for side, seconds in turns.seconds.items():
        print(
            f"  {side}: {median(seconds):.3g} s, median of {len(seconds)}, "
            f"from {min(seconds):.3g} to {max(seconds):.3g} s"
        )
    peak = median(turns.peaks) / 1e9
    for side, floor in turns.floors.items():
        work, alone = turns.products[side], median(floor)
        print(
            f"  {side}: {work['forward']} forward and {work['backward']} backward products of "
            f"{work['distinct']} kinds, {work['flops'] / 1e9:.4g} GFLOP; alone {alone:.3g} s, "
            f"{work['flops'] / alone / 1e9:.0f} GFLOP/s (2048 x 2048 x 2048: {peak:.0f})"
        )
        if work["overlooked"]:
            print(f"  {side}: not in the floor: {work['overlooked']}")
        ticks = list(zip(turns.seconds[side], turns.phases[side], strict=True))
        if ticks[0][1]:
            rollout = median(phases["rollout"] for _, phases in ticks)
            update = median(seconds - phases["rollout"] for seconds, phases in ticks)
            print(f"  {side}: rollout {rollout:.3g} s, update {update:.3g} s")


def show(rows: Sequence[Row]) -> None:
    """The comparisons as a table."""
    table = Table()
    numbers = ("threads", "ours", "peer", "ratio", "of GEMM peak")
    for name in ("what", "threads", "ours", "peer", "ratio", "of GEMM peak", "against"):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.what} ({row.model})",
            str(row.threads),
            f"{shown(row.ours)} {row.unit}",
            f"{shown(row.peer)} {row.unit}",
            f"{row.ratio:.2f}x",
            f"{row.share_of_gemm_peak:.0%}",
            row.peer_name,
        )
    # A file or a pipe has no width: lines are not to be cut there.
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def shown(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def agree(losses: dict[str, list[float]]) -> bool:
    """Print by how much the losses differ; True if by no more than the tolerance."""
    ours, theirs = losses["ours"], losses["trl"]
    if not len(ours) == len(theirs) == LOSS_STEPS:
        print(f"FAIL: {len(ours)} and {len(theirs)} losses instead of {LOSS_STEPS}")
        return False
    differences = [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
    apart = max(differences)
    fine = all(each <= TOLERANCE for each in differences)  # not so of NaN, which max may pass over
    print(
        f"DPO, {LOSS_STEPS} steps of both sides: losses from {ours[0]:.4f} to {ours[-1]:.4f}, "
        f"largest difference {apart:.1e} (at most {TOLERANCE:.0e}): {'PASS' if fine else 'FAIL'}"
    )
    return fine


def listed(choices: Sequence[str]) -> Any:
    """A parser of comma-separated choices."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(choices)}")
        return chosen

    return parse


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", type=listed(TASKS), default=list(TASKS), help="tasks")
    parser.add_argument("--models", type=listed(tuple(CASES)), default=list(CASES), help="a,b")
    parser.add_argument("--threads", type=listed(("1", "2")), default=["1", "2"], help="1,2")
    parser.add_argument(
        "--rounds", type=int, help="turns of each side (default: 5 on a, 3 on b; ppo 3 and 2)"
    )
    parser.add_argument(
        "--losses",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the losses of DPO as well (on model a, where dpo is among the tasks)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, one round; no file unless --out is given"
    )
    parser.add_argument("--out", type=Path, help="where results go (default: bench/results.csv)")
    chosen = parser.parse_args(arguments)
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error("--rounds must be at least 1")
    return chosen


def main() -> int:
    """Measure, print the table, write the file; 1 if losses differ."""
    chosen = parse()
    cases = QUICK if chosen.quick else CASES
    out = chosen.out or (None if chosen.quick else BENCH / "results.csv")
    measurements = [
        Measurement(
            task,
            model,
            cases[model],
            int(threads),
            chosen.rounds or (cases[model].updates if task == "ppo" else cases[model].rounds),
        )
        for model in chosen.models
        for task in chosen.only
        for threads in chosen.threads
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without tidying up
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"the machine is busy (load {load:.1f}): what is measured now is worth little")
    rows: list[Row] = []
    fine = True
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), cases)
        progress = Progress(measurements)
        for what in measurements:
            turns = bench.measure(what, progress)
            describe(what, turns)
            rows += rows_of(what, turns)
        if chosen.losses and "dpo" in chosen.only and "a" in chosen.models:
            fine = agree(bench.losses("a", threads=2))
    show(rows)
    if out is not None:
        write(out, rows)
        out.with_suffix(".md").write_text(markdown(out))
        print(f"written: {os.path.relpath(out)}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
