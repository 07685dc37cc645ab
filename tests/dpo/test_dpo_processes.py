"""DPO in one process or two, in whole batches or parts: the same losses at one global batch."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).with_name("dpo_run.py")
NAMES = ("loss", "grad_norm", "margin", "accuracy", "logps/chosen", "log_ratios/rejected")


def run(folder: Path, *arguments: str, processes: int = 1) -> list[dict[str, float]]:
    """The rows that were logged at each step."""
    command = [sys.executable, str(PROGRAM), str(folder), *arguments]
    if processes > 1:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        # Without --multi_gpu, accelerate starts one process on a machine that has no GPU.
        launch = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
        launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        command = [command[0], "-m", *launch, f"--main_process_port={port}", *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(folder.glob(f"rank-*-of-{processes}"))) == processes
    rows = [row for row in json.loads((folder / "losses.json").read_text()) if "margin" in row]
    assert len(rows) == 9
    return rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(8, 1, 2), (8, 2, 1), (4, 2, 2)])
def test_the_losses_are_those_of_one_process(alone, tmp_path, batch, accumulation, processes):
    parts = ["--batch", str(batch), "--accumulation", str(accumulation)]
    rows = run(tmp_path, *parts, processes=processes)
    for ours, theirs in zip(rows, alone, strict=True):
        for name in NAMES:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4, rel=1e-4), name
    assert alone[-1]["loss"] < alone[0]["loss"]


def test_another_global_batch_gives_other_losses(alone, tmp_path):
    """So the test above can fail."""
    command = [sys.executable, str(PROGRAM), str(tmp_path), "--batch", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [r for r in json.loads((tmp_path / "losses.json").read_text()) if "margin" in r]
    assert abs(rows[1]["loss"] - alone[1]["loss"]) > 1e-3
