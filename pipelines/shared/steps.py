"""Steps: run once, keyed by everything that determines the result. The project's only framework.

A `Step` is inert: a stage name, a fully resolved recipe, a seed, the steps it depends on, and the
dotted name of the function that does the work. Its fingerprint is the sha256 of canonical JSON of
all that (the function's `VERSION` stands for its code). `run_step` builds the result in a temporary
sibling folder, writes record.json last and renames; so a folder with a record is whole, and
anything else never counts as done.
"""

import contextlib
import dataclasses
import errno
import fcntl
import gc
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.shared.errors import StepFailed, UserError
from pipelines.shared.files import replace
from pipelines.shared.ledger import Ledger, accelerators
from pipelines.shared.provenance import provenance
from pipelines.shared.specs import Runtime, Spec

RECORD = "record.json"


def canonical(value: Any) -> Any:
    """`value` as plain JSON data, or `TypeError` where it has no one canonical form.

    Specs become dicts of all their fields, defaults included. Callables, paths, NaN and objects
    that only have a default repr are refused: they would make an identity that means nothing.
    """
    if isinstance(value, Spec):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"identity needs string keys, got {list(value)!r}")
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise TypeError(f"identity cannot hold {value}")
        return value
    raise TypeError(f"identity cannot hold a {type(value).__name__}: {value!r}")


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Step:
    """One unit of work and its identity.

    Attributes:
        stage: kind of work; the folder below results/runs, and the `stage` of compute.csv.
        label: short human name of this instance; not hashed.
        function: "package.module:function", imported only when the step runs, called with a
            `Context`.
        version: bumped when the meaning of the function changes.
        recipe: the resolved settings.
        seed: of everything random in the step.
        threads: CPU threads; hashed, because 1 and 2 threads give different weights.
        upstream: the steps whose folders it reads, by the name it knows them by.
        assets: sha256 of each pinned asset it reads, by name.
    """

    stage: str
    label: str
    function: str
    version: int
    recipe: Mapping[str, Spec]
    seed: int = 0
    threads: int = 1
    upstream: Mapping[str, "Step"] = field(default_factory=dict)
    assets: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", self.label):
            raise ValueError(f"label {self.label!r} cannot be a folder name")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, as plain JSON data."""
        return {
            "stage": self.stage,
            "version": self.version,
            "recipe": canonical(dict(self.recipe)),
            "seed": self.seed,
            "threads": self.threads,
            "upstream": {name: step.fingerprint for name, step in self.upstream.items()},
            "assets": dict(self.assets),
        }

    @cached_property
    def fingerprint(self) -> str:
        return digest(self.identity)

    def folder(self, results: Path) -> Path:
        return results / "runs" / self.stage / f"{self.label}-{self.fingerprint[:8]}"


def closure(steps: Sequence[Step]) -> list[Step]:
    """The steps and all they stand on, each once, dependencies first."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.fingerprint not in ordered:
            for upstream in step.upstream.values():
                visit(upstream)
            ordered[step.fingerprint] = step

    for step in steps:
        visit(step)
    return list(ordered.values())


@dataclass
class Context:
    """What a step's function is given: its inputs, where to write, and how to tell of progress.

    Attributes:
        micro_batches: in how many parts a trainer is to take each batch, at least, for want of
            memory.
        parts: the most that it took a batch in, as batches are divisible.
        divisible: whether some batch could have been taken in more.
    """

    step: Step
    path: Path
    inputs: Mapping[str, Path]
    runtime: Runtime
    ledger: Ledger
    progress: Callable[[int, int, str], None]
    log: Callable[[Mapping[str, Any]], None]
    micro_batches: int = 1
    parts: int = 1
    divisible: bool = False

    @property
    def seed(self) -> int:
        return self.step.seed

    def spec(self, name: str) -> Any:
        """The part of the recipe called `name`."""
        return self.step.recipe[name]


def load_record(step: Step, results: Path) -> dict[str, Any] | None:
    """The record of a finished step, or None where it has not been done.

    Raises:
        UserError: the folder holds another identity, or files that the record names are gone.
    """
    folder = step.folder(results)
    try:
        record = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{folder / RECORD} is not JSON ({error}): delete {folder} to redo it"
        ) from None
    if record.get("fingerprint") != step.fingerprint or record.get("identity") != step.identity:
        apart = difference(record.get("identity"), step.identity)
        raise UserError(f"{folder} was made by another recipe: {apart}")
    for name, size in record["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise UserError(
                f"{folder / name} is missing or was changed: delete {folder} to redo it"
            )
    return record


def difference(stored: Any, wanted: Any, at: str = "") -> str:
    """The fields in which two identities differ, as `a.b: stored 1, wanted 2; ...`."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        parts = [
            difference(stored.get(key), wanted.get(key), f"{at}.{key}" if at else key)
            for key in sorted(stored.keys() | wanted.keys())
        ]
        return "; ".join(part for part in parts if part)
    return (
        "" if stored == wanted else f"{at or 'fingerprint'}: stored {stored!r}, wanted {wanted!r}"
    )


def run_step(
    step: Step,
    runtime: Runtime,
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None,
    mirror: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
    capture: bool = False,
) -> dict[str, Any]:
    """Do one step in this process, unless it is done, and return its record.

    Args:
        progress: called with (done, total, unit) as the work goes on.
        mirror: called with every metrics row that the step logs, beside metrics.jsonl.
        capture: send what this process prints to output.log in the step's folder.

    Raises:
        UserError: an input is bad or the results folder cannot be written; the partial folder is
            removed.
        StepFailed: anything else; the partial folder is set aside as `failed-*` with the traceback.
    """
    try:
        with locked(step.fingerprint, runtime.results):
            done = load_record(step, runtime.results)
            return done or _run_afresh(step, runtime, progress, mirror, capture)
    except OSError as error:
        if not is_storage_failure(error, runtime.results):
            raise
        raise _cannot_write(step, runtime.results, error) from error


def _run_afresh(
    step: Step,
    runtime: Runtime,
    progress: Callable[[int, int, str], None],
    mirror: Callable[[Mapping[str, Any]], None],
    capture: bool,
) -> dict[str, Any]:
    """Build in a temporary sibling and rename."""
    folder, partial = step.folder(runtime.results), partial_folder(step, runtime.results)
    if folder.exists():
        raise UserError(
            f"{folder} has no {RECORD}: something removed it; delete the folder to redo"
        )
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir(parents=True)
        if capture:
            redirect_output(partial / "output.log")
        record = _build(step, partial, runtime, progress, mirror)
        write_json(partial / RECORD, record)
        partial.rename(folder)
        return record
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except Exception as error:
        if is_storage_failure(error, runtime.results):
            shutil.rmtree(partial, ignore_errors=True)
            raise _cannot_write(step, runtime.results, error) from error
        (partial / "error.txt").write_text(traceback.format_exc())
        aside = set_aside(partial)
        reason = (str(error).splitlines() or [""])[0]
        raise StepFailed(
            f"step {step.stage} {step.label} failed: {type(error).__name__}: {reason} "
            f"(details in {aside / 'error.txt'})"
        ) from error


def _cannot_write(step: Step, results: Path, error: Exception) -> UserError:
    return UserError(
        f"cannot write to {results} ({error}) in step {step.stage} {step.label}: "
        "free some space or make it writable, and run again; finished steps are kept"
    )


def set_aside(partial: Path) -> Path:
    """Rename the folder of a step that broke, so that it never counts; return its new path."""
    stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    return partial.rename(
        partial.with_name(f"failed-{partial.name.removeprefix('.partial-')}-{stamp}")
    )


def partial_folder(step: Step, results: Path) -> Path:
    """Where a step is built before it is renamed to its own folder."""
    folder = step.folder(results)
    return folder.with_name(f".partial-{folder.name}")


@contextlib.contextmanager
def locked(name: str, results: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of that name below `results`; it goes when the process ends, however it ends.

    Two processes that want the same step thus do it once: the second waits, then reuses.

    Raises:
        BlockingIOError: another process holds it and `wait` is False.
    """
    folder = results / "runs" / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name[:8]).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def partial_folders(results: Path) -> Iterator[tuple[Path, bool]]:
    """(folder, whether a process is at work on it) of each step that is begun and not done."""
    for folder in sorted((results / "runs").glob("*/.partial-*")):
        try:
            with locked(folder.name[-8:], results, wait=False):
                if folder.is_dir():  # else it was finished since it was listed
                    yield folder, False
        except BlockingIOError:
            yield folder, True


def clean_interrupted(results: Path) -> None:
    """Delete what killed processes left half-done."""
    for folder, alive in partial_folders(results):
        if not alive:
            shutil.rmtree(folder, ignore_errors=True)


def _build(
    step: Step,
    partial: Path,
    runtime: Runtime,
    progress: Callable[[int, int, str], None],
    mirror: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Call the step's function in `partial` and return the record of what it did.

    Where there is not enough memory it is called again, from its beginning, with batches in twice
    as many parts, as long as there are batches that this makes smaller. What the calls before took
    is in no cost; the record says how many there were.
    """
    module, _, name = step.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    origin, parts, attempts = provenance(), 1, 0
    while True:
        ledger, started, attempts = Ledger(), time.time(), attempts + 1
        with (partial / "metrics.jsonl").open("w") as metrics:

            def log(row: Mapping[str, Any], metrics: Any = metrics) -> None:
                metrics.write(json.dumps(row, allow_nan=False) + "\n")
                metrics.flush()
                mirror(row)

            context = Context(
                step=step,
                path=partial,
                inputs={key: up.folder(runtime.results) for key, up in step.upstream.items()},
                runtime=runtime,
                ledger=ledger,
                progress=progress,
                log=log,
                micro_batches=parts,
            )
            try:
                function(context)
                break
            except Exception as error:
                if not (is_out_of_memory(error) and context.divisible):
                    raise
        _start_again(step, partial)
        parts = 2 * context.parts
    return {
        "stage": step.stage,
        "label": step.label,
        "fingerprint": step.fingerprint,
        "identity": step.identity,
        "started": started,
        "cost": ledger.totals(seconds=time.time() - started),
        "phases": ledger.phases(),
        "networks": ledger.networks(),
        "accelerators": accelerators(runtime.device),
        "micro_batches": context.parts,
        "out_of_memory": attempts - 1,
        "gradient_checkpointing": runtime.gradient_checkpointing,
        "files": {
            str(path.relative_to(partial)): path.stat().st_size
            for path in sorted(partial.rglob("*"))
            if path.is_file() and path.name != "output.log"  # still being written
        },
        "tables": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(partial.glob("*.parquet"))
        },
        **origin,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """True where PyTorch could not allocate what it needed, on an accelerator or not."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    said = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(name in str(error) for name in said)


def _start_again(step: Step, partial: Path) -> None:
    """Nothing of a call that ran out of memory goes into the next: files, memory, random state."""
    for left in partial.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != "output.log":
            left.unlink()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    seed_all(step.seed)


def seed_all(seed: int) -> None:
    """Seed the global generators, which libraries use; our own code takes one as an argument."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def redirect_output(path: Path) -> None:
    """Send this process's stdout and stderr to a file, what libraries print from C included."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a half."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    replace(path, lambda temporary: temporary.write_text(text))


def is_storage_failure(error: BaseException, results: Path) -> bool:
    """True where `results` cannot be written, also where a library wrapped the reason."""
    full = {errno.ENOSPC, errno.EDQUOT}
    barred = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
    if isinstance(error, OSError):
        inside = str(error.filename or "").startswith(str(results))
        return error.errno in full or (error.errno in barred and inside)
    return "No space left on device" in str(error) or "os error 28" in str(error)
