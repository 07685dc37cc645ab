"""The local executor: order, reuse, and what happens when a step or its process breaks."""

import dataclasses
import os
import subprocess
import sys

import psutil
import pytest

from pipelines.dpo.specs import DPOSpec
from pipelines.shared.errors import StepFailed, UserError
from pipelines.shared.executors import on_one_device, run_local
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step


def write(context):
    for name, folder in context.inputs.items():
        assert (folder / "out.txt").read_text(), name
    context.progress(1, 1, "things")
    (context.path / "out.txt").write_text(f"{os.getpid()}")
    print("said by a step")


def bad_input(context):
    raise UserError("the corpus is empty: fill it")


def broken(context):
    raise RuntimeError("boom")


def killed(context):
    print("about to die", flush=True)
    os.kill(os.getpid(), 9)


def make(label: str, function: str = "write", threads: int = 1, **upstream: Step) -> Step:
    return Step(
        stage="test",
        label=label,
        function=f"test_executors:{function}",
        version=1,
        recipe={"dpo": DPOSpec(beta=1 + sum(map(ord, label)))},
        threads=threads,
        upstream=upstream,
    )


@pytest.fixture
def runtime(tmp_path, monkeypatch) -> Runtime:
    monkeypatch.setattr("pipelines.shared.executors.PRELOAD", [])
    # A step's process imports this file by its name.
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    return Runtime(results=tmp_path, cache=tmp_path)


def test_dependencies_run_first_in_processes_of_their_own(runtime):
    base = make("base")
    left, right = make("left", base=base), make("right", base=base)
    events = []
    records = run_local([base, left, right], runtime, 2, events.append)
    assert len(records) == 3
    kinds = [(event.kind, event.step.label) for event in events]
    assert kinds[0] == ("started", "base")
    assert kinds.index(("done", "base")) < kinds.index(("started", "left"))
    assert kinds.index(("started", "right")) < kinds.index(("done", "left")), "side by side"
    pids = {(step.folder(runtime.results) / "out.txt").read_text() for step in (base, left, right)}
    assert len(pids) == 3 and str(os.getpid()) not in pids
    log = (base.folder(runtime.results) / "output.log").read_text()
    assert "said by a step" in log
    events.clear()
    assert run_local([base, left, right], runtime, 2, events.append) == records
    assert {event.kind for event in events} == {"reused"}


def test_a_step_that_needs_all_cores_runs_alone(runtime):
    steps = [make("wide", threads=2), make("narrow")]
    events = []
    run_local(steps, runtime, 2, events.append)
    kinds = [event.kind for event in events if event.kind in ("started", "done")]
    assert kinds == ["started", "done", "started", "done"]


def test_on_an_accelerator_steps_run_one_after_another(runtime):
    steps, events = [make("one"), make("other")], []
    run_local(steps, dataclasses.replace(runtime, device="mps"), 8, events.append)
    kinds = [event.kind for event in events if event.kind in ("started", "done")]
    assert kinds == ["started", "done", "started", "done"]


@pytest.mark.parametrize(
    ("device", "before", "after", "seen"),
    [
        ("cpu", None, "cpu", None),
        ("cuda", None, "cuda", "0"),
        ("cuda:1", None, "cuda", "1"),
        ("cuda:1", "4,7", "cuda", "7"),
        ("mps", None, "mps", None),
    ],
)
def test_a_step_sees_one_gpu(runtime, monkeypatch, device, before, after, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    made = on_one_device(dataclasses.replace(runtime, device=device))
    assert made.device == after and os.environ.get("CUDA_VISIBLE_DEVICES") == seen


def test_bad_input_in_a_step_is_the_users(runtime):
    with pytest.raises(UserError, match="the corpus is empty: fill it"):
        run_local([make("bad", "bad_input")], runtime, 1)
    assert not list((runtime.results / "runs" / "test").iterdir())


def test_a_broken_step_names_its_error_and_where_the_details_are(runtime):
    with pytest.raises(StepFailed, match=r"test broken failed: RuntimeError: boom .*error\.txt"):
        run_local([make("broken", "broken")], runtime, 1)


def test_a_killed_process_names_its_log(runtime):
    with pytest.raises(StepFailed, match=r"died with exit status -9 .*out of memory.*output\.log"):
        run_local([make("killed", "killed")], runtime, 1)
    (log,) = (runtime.results / "runs" / "test").glob("failed-killed-*/output.log")
    assert "about to die" in log.read_text()


def test_memory_that_is_not_there_is_waited_for(runtime, monkeypatch):
    spare = psutil.virtual_memory().available
    needs = {"seconds": 1.0, "peak_memory_bytes": 0.6 * spare}
    steps, events = [make("one"), make("other")], []
    run_local(steps, runtime, 2, events.append, lambda step: needs)
    kinds = [event.kind for event in events if event.kind in ("started", "done")]
    assert kinds == ["started", "done", "started", "done"]


def test_the_longest_chain_goes_first(runtime):
    quick, slow = make("quick"), make("slow")
    events = []
    seconds = {"quick": 1.0, "slow": 9.0}
    run_local([quick, slow], runtime, 1, events.append, lambda s: {"seconds": seconds[s.label]})
    assert [e.step.label for e in events if e.kind == "started"] == ["slow", "quick"]


@pytest.mark.slow
def test_no_library_takes_more_threads_than_the_step_has():
    """In a process that has loaded nothing yet, as a worker elsewhere is."""
    program = (
        "from pipelines.shared.executors import prepare_process\n"
        "from pipelines.shared.steps import Step\n"
        "prepare_process(Step('a', 'b', 'c:d', 1, {}, threads=1))\n"
        "import scipy.sparse.linalg, sklearn.feature_extraction.text, threadpoolctl, torch\n"
        "print({pool['num_threads'] for pool in threadpoolctl.threadpool_info()})\n"
        "print(torch.get_num_threads())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["{1}", "1"], done.stdout + done.stderr
