"""Every benchmark can be started: what it imports is there."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
SCRIPTS = ("speed", "study", "study_peer", "scaling", "startup", "parity_trl_ppo")


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_says_how_it_is_used(script):
    command = [sys.executable, BENCH / f"{script}.py", "--help"]
    done = subprocess.run(command, cwd=BENCH.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
