"""How long the whole sentiment study takes here and by its peers, and what one more beta adds.

    .venv/bin/python bench/study.py --scale mini

Ours: `rlhf-vs-dpo run sentiment` with four PPO and four DPO runs into a fresh results folder, wall
clock from the command to its report. Theirs: study_peer.py, the same runs by TRL and Transformers,
which writes no report. One more beta: the same command on the same folder, one core, with one
and then with three more values of dpo.beta: what each of the last two added, held against the
training and evaluation seconds of these runs. What a command costs whatever it adds (its start, the
report) is printed beside it. Writes study.csv (quantity, value). Exit status 1 if a beta adds more
than 5% to its own seconds.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from peer.runs import ARMS, assignments, run_name, study

from pipelines.shared.files import replace
from pipelines.shared.steps import Step, load_record

ROOT = Path(__file__).resolve().parents[1]
CSV = Path(__file__).with_suffix(".csv")
MORE = (0.5, 0.2, 0.7)  # values of dpo.beta
OVERHEAD = "one more beta, overhead"
ALLOWED = 0.05  # of a run's own seconds, what adding it may take besides
METRICS = ["kl_rb", "reward_gold"]


@dataclass(frozen=True)
class Wall:
    """Wall clock of one command of ours, in seconds.

    Attributes:
        before: from the command to the beginning of its first step.
        steps: from there to the end of its last step.
        after: from there to its end: tables, figures, report.
    """

    before: float
    steps: float
    after: float

    @property
    def total(self) -> float:
        return self.before + self.steps + self.after


def run_ours(
    results: Path, scale: str, cores: int, more_betas: Sequence[float] = ()
) -> tuple[Wall, dict[str, dict[str, Any]]]:
    """Run the study as a user does; its wall clock, and the records of the steps that it ran, by
    fingerprint."""
    options = ["--scale", scale, "--results", str(results), "--cores", str(cores)]
    options += ["--arms", ",".join(ARMS)]
    for assignment in assignments(more_betas):
        options += ["--set", assignment]
    command = [sys.executable, "-m", "experiments.cli", "run", "sentiment", *options]
    began = time.time()
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    ended = time.time()
    if done.returncode:
        raise SystemExit(f"our study failed:\n{done.stdout[-4000:]}")
    steps = study(scale, more_betas).steps()
    records = {step.fingerprint: record_of(step, results) for step in steps}
    new = {name: record for name, record in records.items() if record["started"] >= began}
    first = min(record["started"] for record in new.values())
    last = max(end_of(record) for record in new.values())
    return Wall(first - began, last - first, ended - last), new


def record_of(step: Step, results: Path) -> dict[str, Any]:
    record = load_record(step, results)
    assert record is not None, f"{step.stage} {step.label} has no record"
    return record


def looking(record: dict[str, Any]) -> float:
    """Seconds of a step that are not in its cost: those of looking at its loss from outside."""
    return record["phases"].get("look", {}).get("seconds", 0.0)


def end_of(record: dict[str, Any]) -> float:
    """When a step ended, seconds since the epoch."""
    return record["started"] + record["cost"]["seconds"] + looking(record)


def one_more_beta(results: Path, scale: str) -> dict[str, float]:
    """What a further dpo.beta adds to a study, and what a command costs whatever it adds.

    On one core nothing runs beside anything else, so that seconds add up.
    """
    first, _ = run_ours(results, scale, 1, MORE[:1])
    rest, new = run_ours(results, scale, 1, MORE)
    added = len(MORE) - 1
    stages = sorted(record["stage"] for record in new.values())
    if stages != sorted(["dpo", "evaluation"] * added):
        raise SystemExit(f"{added} more betas ran {stages}, not their training and evaluation")
    own = sum(record["cost"]["seconds"] + looking(record) for record in new.values()) / added
    each = (rest.total - first.total) / (added - 1)
    found = {
        "one more beta, added wall clock (s)": each,
        "one more beta, own seconds (s)": own,
        OVERHEAD: each / own - 1,
        "a command's start (s)": rest.before,
        "a command's report (s)": rest.after,
    }
    verdict = "PASS" if found[OVERHEAD] <= ALLOWED else "FAIL"
    print(
        f"one more beta adds {each:.1f} s, {own:.1f} s of it its own training and evaluation: "
        f"{found[OVERHEAD]:+.1%} (at most {ALLOWED:+.0%}): {verdict}\n"
        f"whatever it adds, a command takes {rest.before:.1f} s to its first step and "
        f"{rest.after:.1f} s for its report"
    )
    return found


def run_peer(workdir: Path, scale: str, cores: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The peer's seconds by stage (the last row is the total), and what its runs came to."""
    script = Path(__file__).with_name("study_peer.py")
    options = ["--scale", scale, "--cores", str(cores), "--workdir", str(workdir)]
    done = subprocess.run([sys.executable, script, *options])
    if done.returncode:
        raise SystemExit("the peer's study failed")
    return pd.read_csv(workdir / "study_peer.csv"), pd.read_csv(workdir / "summary.csv")


def same_work(results: Path, scale: str, theirs: pd.DataFrame) -> pd.DataFrame:
    """KL (nats) and gold reward of every last policy, ours beside theirs."""
    rows = []
    for run in study(scale).runs:
        scores = pd.read_parquet(run.evaluation.folder(results) / "scores.parquet")
        means = scores.loc[scores["step"] == scores["step"].max(), METRICS].mean()
        rows.append({"run": run_name(run), **means})
    return pd.DataFrame(rows).merge(theirs[["run", *METRICS]], on="run", suffixes=("", " (peer)"))


def validation_loss(results: Path, scale: str) -> float:
    """Of our SFT model, nats per token."""
    [step] = [step for step in study(scale).steps() if step.stage == "sft"]
    log = pd.read_json(step.folder(results) / "metrics.jsonl", lines=True)
    return float(log["eval_loss"].dropna().iloc[-1])


def write(path: Path, found: dict[str, float]) -> None:
    def write_table(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("quantity", "value"))
            table.writerows((name, f"{value:.4g}") for name, value in found.items())

    replace(path, write_table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--scale", default="mini", help="default: %(default)s")
    parser.add_argument("--workdir", type=Path, help="of the peer, kept; default: a temporary one")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-peer", action="store_true", help="our side and one more beta only")
    return parser.parse_args()


def main() -> int:
    """Run both sides, print the ratio; 1 if one more beta costs too much."""
    arguments = parse()
    scale, cores = arguments.scale, arguments.cores
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results"
        wall, _ = run_ours(results, scale, cores)
        print(
            f"ours: {wall.total:.1f} s ({wall.before:.1f} s until the first step, {wall.steps:.1f} "
            f"s of steps, {wall.after:.1f} s for tables, figures and report)",
            flush=True,
        )
        found = {"ours (s)": wall.total, "ours without the report (s)": wall.before + wall.steps}
        found |= one_more_beta(results, scale)
        if not arguments.no_peer:
            print("\nthe peer:", flush=True)
            workdir = (arguments.workdir or Path(scratch) / "peer").absolute()
            seconds, theirs = run_peer(workdir, scale, cores)
            total = float(seconds["seconds"].iloc[-1])
            found |= {"peer (s)": total, "peer over ours": total / wall.total}
            print("\nthe same work: means over evaluation's samples at the end of training")
            table = same_work(results, scale, theirs)
            print(table.to_string(index=False, float_format="{:.3f}".format))
            losses = validation_loss(results, scale), float(theirs["validation_loss"].iloc[0])
            print("SFT validation loss: {:.4f}, the peer's {:.4f} nats per token".format(*losses))
            print(f"\nours {wall.total:.1f} s, peer {total:.1f} s: {total / wall.total:.2f} times")
    if scale == "mini" and not arguments.no_peer:
        write(CSV, found)
    return 0 if found[OVERHEAD] <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
