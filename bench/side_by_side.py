"""Two runs side by side with one thread each, or one after another with two: which is faster here?

    .venv/bin/python bench/side_by_side.py

What `compute.arm_threads` is set by: seconds until both DPO runs, and both PPO runs, of models of
scale mini are done either way, by the executor that studies run on. The ways take turns. Writes
side_by_side.csv (arm, way, seconds: medians).
"""

import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pandas as pd
from scaling import BASE

from experiments.sentiment import SENTIMENT
from pipelines.shared.assets import default_cache
from pipelines.shared.executors import run_local
from pipelines.shared.files import replace
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step, closure

CSV = Path(__file__).with_suffix(".csv")
CORES = 2
WAYS = {"side by side, 1 thread each": 1, "one after another, 2 threads": 2}  # compute.arm_threads
SETTINGS = {**BASE, "dpo.beta": "0.1,0.3", "ppo.kl_coef": "0.1,0.3", "ppo.updates": 6}
SETTINGS |= {"sampling.prompts": 200}
TURNS = 3


def runs_of(arm: str, threads: int, turn: int) -> list[Step]:
    """Both runs of an arm; a turn's are not another's, whose results would be reused."""
    learning_rate = f"{arm}.learning_rate={1e-4 * (1 + turn / 100):g}"
    given = [f"{name}={value}" for name, value in SETTINGS.items()]
    threads_given = f"compute.arm_threads={threads}"
    study = SENTIMENT.resolve("mini", [arm], assignments=[*given, threads_given, learning_rate])
    return [run.policy for run in study.runs if run.arm == arm]


def main() -> None:
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        runtime = Runtime(results=Path(scratch), cache=default_cache())
        for turn in range(TURNS):
            for arm in ("dpo", "ppo"):
                for way, threads in WAYS.items():
                    runs = runs_of(arm, threads, turn)
                    before = closure([up for run in runs for up in run.upstream.values()])
                    run_local(before, runtime, CORES)
                    started = time.perf_counter()
                    run_local(runs, runtime, CORES)
                    seconds[arm, way].append(time.perf_counter() - started)
                    print(
                        f"turn {turn + 1} of {TURNS}: {arm}, {way}: {seconds[arm, way][-1]:.1f} s"
                    )
    table = pd.DataFrame(
        [(arm, way, statistics.median(each)) for (arm, way), each in seconds.items()],
        columns=["arm", "way", "seconds"],
    )
    replace(CSV, lambda path: table.to_csv(path, index=False, float_format="%.1f"))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
