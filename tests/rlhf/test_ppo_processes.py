"""One process or two, whole minibatches or parts, straight through or killed: the same run."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("ppo_run.py")
TOLERANCE = 1e-4


def run(folder: Path, *arguments: str, processes: int = 1, dies: bool = False) -> None:
    """Start the program, and see that it ran in as many processes as asked for."""
    command = [sys.executable, str(PROGRAM), str(folder), *arguments]
    if processes > 1:
        # Without --multi_gpu, accelerate starts one process on a machine that has no GPU.
        launch = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
        launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        command = [
            sys.executable,
            "-m",
            *launch,
            f"--main_process_port={free_port()}",
            *command[1:],
        ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) != dies, done.stderr[-3000:]
    ranks = {path.name for path in folder.glob("rank-*")}
    assert ranks >= {f"rank-{rank}-of-{processes}" for rank in range(processes)}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def rows(folder: Path) -> list[dict[str, float]]:
    """The logged rows of the updates, without what depends on the clock."""
    history = json.loads((folder / "losses.json").read_text())
    return [row for row in history if "objective/kl" in row]


def assert_same_trajectory(one: Path, other: Path, tolerance: float = TOLERANCE) -> None:
    first, second = rows(one), rows(other)
    assert len(first) == len(second) == 5
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"epoch"}:
            assert b[name] == pytest.approx(a[name], abs=tolerance, rel=tolerance), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run(folder)
    assert 0.2 < rows(folder)[0]["completions/eos_rate"] < 0.8  # of many lengths: parts are padded
    return folder


def test_two_processes_give_the_trajectory_of_one(straight, tmp_path):
    run(tmp_path, processes=2)
    assert_same_trajectory(straight, tmp_path)
    assert set((tmp_path / "saved_by.txt").read_text().split()) == {"0"}  # one writes, not both


def test_two_processes_resume_what_one_began(straight, tmp_path):
    run(tmp_path, "--die-at=10", dies=True)
    run(tmp_path, "--resume", "--accumulation=2", processes=2)
    assert_same_trajectory(straight, tmp_path)


def test_accumulation_and_rollout_batches_change_nothing(straight, tmp_path):
    run(tmp_path, "--accumulation=4", "--rollout-batch=1")
    assert_same_trajectory(straight, tmp_path)


def test_resume_after_kill_gives_the_very_weights(straight, tmp_path):
    run(tmp_path, "--die-at=14", dies=True)
    found = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert found == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]  # between updates only
    run(tmp_path, "--resume")
    ours, theirs = (torch.load(f / "weights.pt", weights_only=True) for f in (tmp_path, straight))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    for a, b in zip(rows(straight), rows(tmp_path), strict=True):
        assert {k: v for k, v in a.items() if k != "epoch"} == {
            k: v for k, v in b.items() if k != "epoch"
        }


def test_noise_of_each_process_own_gives_another_trajectory(straight, tmp_path):
    """keyed_noise off: so the test above can fail."""
    run(tmp_path, "--updates=1", "--settings", '{"keyed_noise": false}', processes=2)
    apart = rows(straight)[0]["objective/entropy"] - rows(tmp_path)[0]["objective/entropy"]
    assert abs(apart) > 100 * TOLERANCE
