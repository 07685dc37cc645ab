"""Run steps on a Ray cluster: each as a task that says what it needs, in a worker of its own.

All nodes must see the results and cache folders, and what is the user's own, under the same paths
(a shared file system), and have this project installed. A task takes the step's threads as CPUs,
the memory that it is predicted to need, and one GPU where the device is one. A node that is lost
takes its tasks with it: Ray starts them again on another, where `run_step` throws away what was
half-written. So results are those of the local executor, wherever and in whichever order the steps
ran.

Ray is an extra: pip install 'rlhf-vs-dpo[ray]'.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipelines.shared.errors import StepFailed, UserError, first_line
from pipelines.shared.executors import (
    QUIET,
    Event,
    Prediction,
    mirror_to_wandb,
    on_one_device,
    prepare_process,
    stored,
)
from pipelines.shared.schedule import remaining
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step, clean_interrupted, run_step

RETRIES = 5  # of a step whose node was lost
POLL = 0.5  # seconds between two looks at the progress


def run_ray(
    steps: Sequence[Step],
    runtime: Runtime,
    address: str | None = None,
    tell: Callable[[Event], None] = lambda event: None,
    predict: Prediction = lambda step: None,
) -> dict[str, dict[str, Any]]:
    """Run steps, given dependencies first, and return their records by fingerprint.

    Args:
        address: of the cluster, as `ray.init` takes it: "auto" for the one that this machine is a
            node of; None: the same if there is one, else one is started on this machine alone.
        predict: `seconds` and `peak_memory_bytes` of a step, or None where nothing is known.

    Raises:
        UserError: Ray is not installed, there is no such cluster, no node is large enough, or a
            step's input is bad. StepFailed: a step broke. Running steps are stopped.
    """
    records, todo = stored(steps, runtime.results, tell)
    if not todo:
        return records
    clean_interrupted(runtime.results)
    with cluster(address) as ray:
        return {**records, **_Run(ray, runtime, tell, predict, todo).finish()}


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """The module ray, connected; what was connected here is disconnected at the end."""
    try:
        import ray
    except ImportError:
        raise UserError(
            "--executor ray needs Ray: install it with `pip install 'rlhf-vs-dpo[ray]'` on every "
            "node"
        ) from None
    own = not ray.is_initialized()
    try:
        if own:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"--executor ray: no cluster at {address or 'auto'} ({reason})") from None
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise `OSError` where nothing listens at HOST:PORT, on which Ray would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


class _Run:
    """One call of `run_ray`: what is to do, what is running, what is done."""

    def __init__(
        self,
        ray: Any,
        runtime: Runtime,
        tell: Callable[[Event], None],
        predict: Prediction,
        todo: dict[str, Step],
    ) -> None:
        self.ray, self.runtime, self.tell, self.todo = ray, runtime, tell, todo
        self.predicted = {key: predict(step) or {} for key, step in todo.items()}
        self.rank = remaining(
            list(todo.values()), lambda step: self.predicted[step.fingerprint].get("seconds")
        )
        self.left = set(todo)
        self.running: dict[Any, Step] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, tuple[int, int, str]] = {}
        board = ray.remote(Board)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )  # what the driver reads must not be lost with another node
        self.board = board.options(num_cpus=0, scheduling_strategy=here).remote()
        self.task = ray.remote(max_calls=1)(run_here)  # a fresh process for every step

    def finish(self) -> dict[str, dict[str, Any]]:
        """Run everything."""
        try:
            while self.todo or self.running:
                self._start()
                done, _ = self.ray.wait(list(self.running), timeout=POLL)
                self._show_progress()
                for reference in done:
                    self._receive(reference)
        finally:
            for reference in self.running:
                self.ray.cancel(reference, force=True)
            self.ray.kill(self.board)
        return self.records

    def _start(self) -> None:
        """Hand Ray every step whose dependencies are done; the longest chain goes first."""
        ready = [
            step
            for step in self.todo.values()
            if not any(up.fingerprint in self.left for up in step.upstream.values())
        ]
        for step in sorted(ready, key=lambda step: -self.rank[step.fingerprint]):
            needs = self._needs(step)
            name = f"{step.stage} {step.label}"
            reference = self.task.options(
                **needs, max_retries=RETRIES, name=name, retry_exceptions=False
            ).remote(step, self.runtime, self.board)
            self.running[reference] = step
            del self.todo[step.fingerprint]

    def _needs(self, step: Step) -> dict[str, float]:
        """Resources of a step's task.

        Raises:
            UserError: no node has as many CPUs or GPUs.
        """
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        needs = {"num_cpus": float(step.threads)}
        if self.runtime.device != "cpu":
            needs["num_gpus"] = 1.0
        for name, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            most = max((node.get(resource, 0.0) for node in nodes), default=0.0)
            if needs.get(name, 0.0) > most:
                raise UserError(
                    f"step {step.stage} {step.label} takes {needs[name]:g} {resource}, and no node "
                    f"of the cluster has more than {most:g}: add a larger node, or lower compute.*"
                )
        memory = self.predicted[step.fingerprint].get("peak_memory_bytes", 0.0)
        largest = max((node.get("memory", 0.0) for node in nodes), default=0.0)
        if memory:  # a prediction is none to wait for ever on
            needs["memory"] = float(min(memory, largest))
        return needs

    def _show_progress(self) -> None:
        """Tell the display what the steps have told the board."""
        known = {step.fingerprint: step for step in self.running.values()}
        for fingerprint, state in self.ray.get(self.board.read.remote()).items():
            step = known.get(fingerprint)
            if step is None or self.seen.get(fingerprint) == state:
                continue
            if fingerprint not in self.seen:
                self.tell(Event("started", step))
            self.seen[fingerprint] = state
            if state[1]:
                self.tell(Event("progress", step, *state))

    def _receive(self, reference: Any) -> None:
        """A step is done, or broke."""
        step = self.running.pop(reference)
        if step.fingerprint not in self.seen:
            self.tell(Event("started", step))
        try:
            record = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            self.tell(Event("failed", step))
            cause = error.cause
            if isinstance(cause, UserError | StepFailed):
                raise type(cause)(str(cause)) from None
            raise StepFailed(f"step {step.stage} {step.label} failed: {cause}") from error
        except self.ray.exceptions.RayError as error:
            self.tell(Event("failed", step))
            reason = first_line(error)
            raise StepFailed(
                f"step {step.stage} {step.label} was lost with its node {RETRIES + 1} times "
                f"({reason})"
            ) from error
        self.left.discard(step.fingerprint)
        self.records[step.fingerprint] = record
        self.tell(Event("done", step, record=record))


class Board:
    """An actor that running steps write their progress on."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, int, str]] = {}

    def write(self, fingerprint: str, done: int, total: int, unit: str) -> None:
        self.states[fingerprint] = done, total, unit

    def read(self) -> dict[str, tuple[int, int, str]]:
        return self.states


def run_here(step: Step, runtime: Runtime, board: Any) -> dict[str, Any]:
    """Body of a step's task, in a worker that ends with it."""
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    runtime = on_one_device(runtime)
    prepare_process(step)
    board.write.remote(step.fingerprint, 0, 0, "")
    last = 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > POLL or done == total:
            last = now
            board.write.remote(step.fingerprint, done, total, unit)

    with mirror_to_wandb(step, runtime) as mirror:
        return run_step(step, runtime, progress, mirror, capture=True)
