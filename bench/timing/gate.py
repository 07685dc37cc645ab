"""A worker's side of the turns: work when told, say how long it took, and wait again.

Orders are lines on stdin, answers are JSON lines on what was stdout when the worker started; all
that libraries print goes to stderr. `go N` runs N ticks; `record` runs one whose matrix products
are noted, `floor` times these alone; `stop` ends the process. A worker that waits is asleep.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from transformers import TrainerCallback


class Line:
    """The line to the driver."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self._out, flush=True)

    def order(self) -> list[str]:
        """The words of the next order. Does not come back from `stop`, nor if the driver is gone:
        the trainer is in the middle of its loop, and has nothing to tidy up."""
        words = sys.stdin.readline().split()
        if not words or words == ["stop"]:
            os._exit(0)
        return words


class Gate(TrainerCallback):
    """Lets a trainer do as many ticks as were ordered, and times each in seconds.

    A tick is from its release, or the end of the one before, to the end of its last optimiser step:
    data loading, and what the trainer did after the step before (logging), are in it.

    Args:
        steps: calls of `on_step_end` in a tick.
        recorder: a context manager that notes matrix products, with `products` (a summary) and
            `floor` (their timing) to be answered.
        counters: seconds of phases up to now; what a tick adds to them is answered with it.
    """

    def __init__(
        self,
        line: Line,
        steps: int = 1,
        recorder: Any = None,
        counters: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.line, self.steps, self.recorder, self.counters = line, steps, recorder, counters
        self.left = self.done = 0
        self.recording = False
        self.seconds: list[float] = []
        self.phases: list[dict[str, float]] = []

    def begin(self) -> None:
        """Report for work and wait for the first order."""
        self.line.answer(ready=True, versions=versions())
        self._wait()

    def end_step(self) -> None:
        """Count an optimiser step; after the last tick that was ordered, answer and wait."""
        self.done += 1
        if self.done % self.steps:
            return
        now, counted = time.perf_counter(), self.counters()
        self.seconds.append(now - self.start)
        self.phases.append({name: counted[name] - self.before.get(name, 0.0) for name in counted})
        self.start, self.before = now, counted
        self.left -= 1
        if self.left:
            return
        more = {}
        if self.recording:
            self.recorder.__exit__(None, None, None)
            self.recording, more = False, self.recorder.products()
        self.line.answer(seconds=self.seconds, phases=self.phases, **more)
        self._wait()

    def _wait(self) -> None:
        name, *values = self.line.order()
        while name == "floor":
            self.line.answer(**self.recorder.floor())
            name, *values = self.line.order()
        self.left = int(values[0]) if values else 1
        self.seconds, self.phases = [], []
        if name == "record":
            self.recording = True
            self.recorder.__enter__()
        self.before, self.start = self.counters(), time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end_step()


def repeat(gate: Gate, tick: Callable[[], Any]) -> NoReturn:
    """Work that is no trainer's, under a gate, until the process is stopped."""
    gate.begin()
    while True:
        tick()
        gate.end_step()


class Losses(TrainerCallback):
    """Keeps the loss of every step (logging_steps = 1)."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.values.append(float(logs["loss"]))


def versions() -> dict[str, str]:
    """Of the libraries that this process has loaded."""
    names = ("torch", "transformers", "trl")
    return {name: sys.modules[name].__version__ for name in names if name in sys.modules}
