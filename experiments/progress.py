"""What a waiting person sees: which step of how many, its rate, and the time left."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from experiments.estimates import Estimator
from pipelines.shared.executors import Event
from pipelines.shared.schedule import makespan
from pipelines.shared.steps import Step

NOTED_EVERY = 1.0  # seconds


def duration(seconds: float) -> str:
    """4s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Rate(ProgressColumn):
    """Units a second of a running step, and its time left."""

    def render(self, task: Task) -> Text:
        if not task.speed or task.fields.get("overall"):
            return Text(task.fields.get("note", ""))
        left = "" if task.time_remaining is None else f", {duration(task.time_remaining)} left"
        return Text(f"{task.speed:.1f} {task.fields['unit']}/s{left}")


class Display:
    """Shows the events of an executor: live bars on a terminal, a line per event elsewhere.

    Use as a context manager and pass `tell` to the executor.
    """

    def __init__(
        self, steps: Sequence[Step], estimator: Estimator, cores: int, console: Console
    ) -> None:
        self.steps, self.estimator, self.cores, self.console = steps, estimator, cores, console
        self.finished: set[str] = set()
        self.reused = 0
        self.shares: dict[str, float] = {}
        self.tasks: dict[str, Any] = {}
        self.started = self.noted = time.monotonic()
        self.live = console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            Rate(),
            console=console,
            disable=not self.live,
            transient=True,
        )
        self.overall = self.bars.add_task("all steps", total=len(steps), overall=True, note="")

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bars.stop()

    def tell(self, event: Event) -> None:
        """Show one event."""
        key, name = event.step.fingerprint, f"{event.step.stage} {event.step.label}"
        if event.kind == "reused":
            self.finished.add(key)
            self.reused += 1
        elif event.kind == "started":
            self._line(f"[dim]start[/]  {name}")
            self.tasks[key] = self.bars.add_task(name, total=None, unit="", note="")
        elif event.kind == "progress":
            self.shares[key] = event.done / event.total
            self.bars.update(
                self.tasks[key], completed=event.done, total=event.total, unit=event.unit
            )
        elif event.kind == "done":
            self.finished.add(key)
            assert event.record is not None
            self.estimator.add(event.record)
            self.bars.remove_task(self.tasks.pop(key))
            cost = event.record["cost"]
            self._line(f"[green]done[/]   {name} in {duration(cost['seconds'])}")
        elif event.kind == "failed":
            self._line(f"[red]failed[/] {name}")
        # A message may come ten times a second from each step: what is left is worked out for a
        # reader, not for a file, and not more often than it can be read. The steps need the cores.
        now = time.monotonic()
        if event.kind == "progress" and (not self.live or now - self.noted < NOTED_EVERY):
            return
        self.noted = now
        note = f"{len(self.finished)} of {len(self.steps)} steps"
        left = self.seconds_left()
        if left is not None and len(self.finished) < len(self.steps):
            note += f", about {duration(left)} left"
        self.bars.update(self.overall, completed=len(self.finished), note=note)

    def _line(self, text: str) -> None:
        count = f"[{len(self.finished):>2}/{len(self.steps)}]"
        elapsed = duration(time.monotonic() - self.started)
        left = self.seconds_left()
        rest = f", about {duration(left)} left" if left else ""
        self.console.print(
            f"{count} {text} [dim]({elapsed} so far{rest})[/]", highlight=False, soft_wrap=True
        )

    def seconds_left(self) -> float | None:
        """Time left, with the work spread over the cores; None while a step cannot be predicted."""
        return seconds_left(
            [s for s in self.steps if s.fingerprint not in self.finished],
            self.estimator,
            self.cores,
            self.shares,
        )


def seconds_left(
    steps: Sequence[Step], estimator: Estimator, cores: int, shares: dict[str, float] | None = None
) -> float | None:
    """Predicted seconds until all of the steps are done, or None where one cannot be predicted.

    Args:
        shares: how much of a running step is done, by fingerprint.
    """
    spent = shares or {}
    costs = {step.fingerprint: estimator.cost(step) for step in steps}
    if None in costs.values():
        return None

    def seconds(step: Step) -> float:
        cost = costs[step.fingerprint]
        assert cost is not None
        return cost["seconds"] * (1 - spent.get(step.fingerprint, 0.0))

    return makespan(steps, seconds, cores)
