"""The driver's side: one process per side, of which one works at a time."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Home:
    """Where a side runs.

    Attributes:
        python: of its environment.
        module: the worker.
        paths: what it may import besides its environment.
    """

    python: Path
    module: str
    paths: tuple[Path, ...]


def environment(paths: tuple[Path, ...], threads: int, scratch: Path) -> dict[str, str]:
    """What every worker's process gets, whichever side it is on.

    Freed memory is kept by the allocator (glibc's returns it, and the page faults that follow cost
    every side dearly).
    """
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths),
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "-1",
        "MALLOC_TOP_PAD_": "268435456",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A worker that is stopped leaves what it wrote: it goes with the driver's folder.
        "TMPDIR": str(scratch),
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
    }


class Worker:
    """A process of one side.

    Args:
        name: for messages.
        scratch: a folder of its own.
        job: see `job.Job`; its output folder is added.
    """

    def __init__(
        self, name: str, home: Home, job: Mapping[str, Any], threads: int, scratch: Path
    ) -> None:
        self.name, self.log = name, scratch / "log"
        scratch.mkdir(parents=True)
        told = {**job, "threads": threads, "out": str(scratch / "out")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [home.python, "-m", home.module, json.dumps(told)],
                cwd=BENCH,
                env=environment(home.paths, threads, scratch),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def hear(self) -> dict[str, Any]:
        """Wait for the next answer.

        Raises:
            SystemExit: the process has ended; with the end of its log.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            end = self.log.read_text()[-4000:]
            raise SystemExit(f"{self.name} ended (status {self.process.wait()}):\n{end}")
        return json.loads(line)

    def ask(self, order: str) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self.hear()

    def stop(self) -> None:
        """End the process: it ends by itself when it waits for an order and none can come."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
