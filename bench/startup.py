"""How fast the commands answer that run nothing: --help, plan and status, with 500 stored runs.

    .venv/bin/python bench/startup.py

The results folder is a temporary one with the records of the published studies (so that `plan
sentiment` finds its steps done) and copies of them under other names, 500 in all. Each command is a
fresh process; the seconds are the median of five. Whether torch, pandas and transformers were
imported is asked of one more process when it ends. Exit status 1 if --help takes more than 0.5 s,
or plan or status more than 2 s.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import registry
from pipelines.shared.steps import RECORD, write_json

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "results" / "experiments"
RUNS, TIMES = 500, 5
HEAVY = ("torch", "pandas", "transformers")
REPORT = (  # what a process says when it ends, on the last line of stderr
    "import atexit, sys; atexit.register(lambda: print("
    f"*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)); "
    "from experiments.cli import main; sys.exit(main())"
)


@dataclass(frozen=True)
class Command:
    """Arguments of a command and the seconds that it may take."""

    arguments: Sequence[str]
    allowed: float
    reads_results: bool = True


COMMANDS = (
    Command(["--help"], 0.5, reads_results=False),
    Command(["plan", "sentiment"], 2.0),
    Command(["status"], 2.0),
)


def published_records() -> list[dict[str, Any]]:
    """Those of `plan sentiment` first, then those of all other published studies."""
    known: dict[str, dict[str, Any]] = {}
    for path in sorted(PUBLISHED.glob("*/runs/*.json")):
        record = json.loads(path.read_text())
        known.setdefault(record["fingerprint"], record)
    wanted = [step.fingerprint for step in registry.find("sentiment").resolve("mini").steps()]
    first = [known.pop(fingerprint) for fingerprint in wanted if fingerprint in known]
    return first + list(known.values())


def altered(record: dict[str, Any], number: int) -> dict[str, Any]:
    """A copy of a record as if it were another run's."""
    fingerprint = hashlib.sha256(f"{number} {record['fingerprint']}".encode()).hexdigest()
    return {**record, "fingerprint": fingerprint, "label": f"{record['label']}-copy{number}"}


def all_records(count: int) -> Iterator[dict[str, Any]]:
    """As many records: the published ones, then copies of them."""
    originals = published_records()
    if not originals:
        raise SystemExit(f"no published study in {PUBLISHED} to take records from")
    for number in range(count):
        copy, place = divmod(number, len(originals))
        yield altered(originals[place], copy) if copy else originals[place]


def store(record: dict[str, Any], results: Path) -> None:
    """A finished run's folder: the record, and files of the sizes that it names (with holes)."""
    name = f"{record['label']}-{record['fingerprint'][:8]}"
    folder = results / "runs" / record["stage"] / name
    for file, size in record["files"].items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as opened:
            opened.truncate(size)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, record)


def seconds(arguments: Sequence[str]) -> float:
    """Wall clock of one fresh process."""
    command = [sys.executable, "-m", "experiments.cli", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return taken


def imported(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Which of `HEAVY` a command imports, and the last line that it prints."""
    command = [sys.executable, "-c", REPORT, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stderr.splitlines()[-1].split(), (done.stdout.splitlines() or [""])[-1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS, help="stored; default: %(default)s")
    parser.add_argument("--times", type=int, default=TIMES, help="default: %(default)s")
    return parser.parse_args()


def main() -> int:
    """Print the table; 1 if a command is too slow."""
    arguments, fine = parse(), True
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch)
        for record in all_records(arguments.runs):
            store(record, results)
        print(f"{arguments.runs} stored runs, median of {arguments.times}\n")
        print(f"{'command':<16} {'seconds':>8} {'allowed':>8} {'':<5} imported")
        for command in COMMANDS:
            given = list(command.arguments)
            if command.reads_results:
                given += ["--results", str(results)]
            heavy, last = imported(given)
            taken = statistics.median(seconds(given) for _ in range(arguments.times))
            passed = taken <= command.allowed
            fine = fine and passed
            print(
                f"{' '.join(command.arguments):<16} {taken:8.2f} {command.allowed:8.1f} "
                f"{'PASS' if passed else 'FAIL':<5} {', '.join(heavy) or 'none of ' + str(HEAVY)}"
            )
            if command.reads_results:
                print(f"  {last.replace(str(results), 'the results folder')}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
