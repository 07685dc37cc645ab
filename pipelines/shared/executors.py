"""Run steps on this machine: each in a process of its own, side by side where threads are free.

A process per step gives honest peak memory and keeps a step's result independent of what ran before
it. On a CPU processes are forked from a server that has imported the libraries once.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from pipelines.shared.allocator import keep_freed_memory
from pipelines.shared.errors import StepFailed, UserError
from pipelines.shared.schedule import remaining, to_start
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import (
    Step,
    clean_interrupted,
    load_record,
    locked,
    partial_folder,
    run_step,
    seed_all,
    set_aside,
)

PRELOAD = [
    "pipelines.rlhf.sft",
    "pipelines.rlhf.reward_model",
    "pipelines.rlhf.ppo_stage",
    "pipelines.rlhf.group_stage",
    "pipelines.dpo.dpo",
    "pipelines.dpo.family",
    "pipelines.dpo.online",
    "pipelines.dpo.reference",
    "pipelines.evaluate.samples",
    "pipelines.exact.steps",
]
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


Prediction = Callable[[Step], Mapping[str, float] | None]


@dataclass(frozen=True)
class Event:
    """What the display is told: kind is reused, started, progress, done or failed."""

    kind: str
    step: Step
    done: int = 0
    total: int = 0
    unit: str = ""
    record: Mapping[str, Any] | None = None


def run_local(
    steps: Sequence[Step],
    runtime: Runtime,
    cores: int,
    tell: Callable[[Event], None] = lambda event: None,
    predict: Prediction = lambda step: None,
) -> dict[str, dict[str, Any]]:
    """Run steps, given dependencies first, and return their records by fingerprint.

    Steps whose dependencies are done run side by side as long as their threads fit into `cores` and
    their predicted memory into what this machine has to spare; the one that begins the longest
    chain goes first, and where it does not fit is waited for. On an accelerator they run one after
    another: its memory is not what is counted here. The order changes no result.

    Args:
        predict: `seconds` and `peak_memory_bytes` of a step, or None where nothing is known.

    Raises:
        UserError: a step's input is bad. StepFailed: a step broke. Running steps are stopped.
    """
    records, todo = stored(steps, runtime.results, tell)
    if not todo:
        return records
    clean_interrupted(runtime.results)
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    # An accelerator's libraries do not survive a fork: there each step imports everything anew.
    context: Any = multiprocessing.get_context("forkserver" if runtime.device == "cpu" else "spawn")
    context.set_forkserver_preload(PRELOAD)
    predicted = {step.fingerprint: predict(step) or {} for step in todo.values()}
    rank = remaining(list(todo.values()), lambda s: predicted[s.fingerprint].get("seconds"))
    spare = psutil.virtual_memory().available
    running: dict[Connection, tuple[Step, Any]] = {}

    def fits(step: Step) -> bool:
        beside = [other for other, _ in running.values()]
        threads = sum(other.threads for other in (*beside, step))
        memory = sum(
            predicted[other.fingerprint].get("peak_memory_bytes", 0) for other in (*beside, step)
        )
        alone = runtime.device != "cpu"
        return not beside or (not alone and threads <= cores and memory <= spare)

    try:
        while todo or running:
            left = {*todo, *(step.fingerprint for step, _ in running.values())}
            for step in to_start(todo.values(), left, rank, fits):
                parent, child = context.Pipe()
                process = context.Process(target=_child, args=(pickle.dumps(step), runtime, child))
                with bare_main():
                    process.start()
                child.close()
                running[parent] = (step, process)
                del todo[step.fingerprint]
                tell(Event("started", step))
            for connection in wait(list(running)):
                _receive(connection, running, records, runtime.results, tell)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
        if running:
            clean_interrupted(runtime.results)
    return records


def stored(
    steps: Sequence[Step], results: Path, tell: Callable[[Event], None]
) -> tuple[dict[str, dict[str, Any]], dict[str, Step]]:
    """The records of the steps that are done, which it tells of, and the steps that are not; both
    by fingerprint."""
    records: dict[str, dict[str, Any]] = {}
    todo: dict[str, Step] = {}
    for step in steps:
        record = load_record(step, results)
        if record is None:
            todo[step.fingerprint] = step
        else:
            records[step.fingerprint] = record
            tell(Event("reused", step, record=record))
    return records, todo


@contextlib.contextmanager
def bare_main() -> Iterator[None]:
    """Hide the program's main module, which a new process would otherwise import once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _receive(
    connection: Any,
    running: dict[Any, tuple[Step, Any]],
    records: dict[str, dict[str, Any]],
    results: Path,
    tell: Callable[[Event], None],
) -> None:
    """Handle one message of a child, or its death."""
    step, process = running[connection]
    try:
        kind, payload = connection.recv()
    except EOFError:
        process.join()
        kind, payload = "died", process.exitcode
    if kind == "progress":
        tell(Event("progress", step, *payload))
        return
    del running[connection]
    process.join()
    if kind == "done":
        records[step.fingerprint] = payload
        tell(Event("done", step, record=payload))
        return
    tell(Event("failed", step))
    name = f"{step.stage} {step.label}"
    if kind == "user":
        raise UserError(payload)
    if kind == "died":
        hint = " (killed: out of memory?)" if payload == -9 else ""
        raise StepFailed(
            f"step {name} died with exit status {payload}{hint}{_kept_output(step, results)}"
        )
    raise StepFailed(payload)


def _kept_output(step: Step, results: Path) -> str:
    """Set a dead step's folder aside; tell where its output is, "" if another took over."""
    partial = partial_folder(step, results)
    with contextlib.suppress(BlockingIOError), locked(step.fingerprint, results, wait=False):
        if partial.is_dir():
            return f"; see {set_aside(partial) / 'output.log'}"
    return ""


def _child(pickled: bytes, runtime: Runtime, connection: Any) -> None:
    """Body of a step's process."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()
    step: Step = pickle.loads(pickled)
    runtime = on_one_device(runtime)
    prepare_process(step)
    last = 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.1 or done == total:
            last = now
            try:
                connection.send(("progress", (done, total, unit)))
            except BrokenPipeError:
                os._exit(1)  # nobody waits for this step any more

    message: tuple[str, Any]
    try:
        with mirror_to_wandb(step, runtime) as mirror:
            message = ("done", run_step(step, runtime, progress, mirror, capture=True))
    except UserError as error:
        message = ("user", str(error))
    except StepFailed as error:
        message = ("failed", str(error))
    connection.send(message)


def on_one_device(runtime: Runtime) -> Runtime:
    """Let this process see one GPU where it is to use one: a Trainer takes all that it sees, and
    with them batches that many times as large. To be called before CUDA begins.

    Returns:
        the runtime, whose device is now the one that is seen.
    """
    kind, _, number = runtime.device.partition(":")
    if kind != "cuda":
        return runtime
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    place = int(number or 0)
    os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[place] if seen else str(place)
    return dataclasses.replace(runtime, device="cuda")


def prepare_process(step: Step) -> None:
    """Allocator, threads and random state as the step states them, whatever ran before."""
    keep_freed_memory()
    import scipy.linalg  # noqa: F401  their BLAS and OpenMP must be there to be limited
    import sklearn.linear_model  # noqa: F401
    import threadpoolctl
    import torch

    torch.set_num_threads(step.threads)
    # BLAS below NumPy and SciPy takes all cores otherwise: a fit would differ between machines.
    threadpoolctl.threadpool_limits(step.threads)
    seed_all(step.seed)


@contextlib.contextmanager
def mirror_to_wandb(step: Step, runtime: Runtime) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What to call with the step's metrics: logs them to a wandb run where asked for, else nothing.

    The run's id is the step's fingerprint and its group the experiment, so that a reader finds the
    record. It is a mirror: analysis never reads it. Offline mode works (WANDB_MODE=offline).
    """
    if not runtime.wandb or load_record(step, runtime.results) is not None:
        yield lambda row: None
        return
    import wandb

    with wandb.init(
        project="rlhf-vs-dpo",
        id=step.fingerprint,
        group=runtime.experiment,
        job_type=step.stage,
        name=f"{step.stage}-{step.label}",
        config=step.identity,
        dir=runtime.results,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    ) as run:
        yield lambda row: run.log(dict(row))
