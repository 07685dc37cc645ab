"""Environments of the libraries that `make bench` compares with, apart from the project's own."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "rlhf-vs-dpo"


@dataclass(frozen=True)
class Peer:
    """A library at one version, with what it is installed with.

    Attributes:
        trl: its version.
        folder: where its environment is kept.
        requirements: as pip takes them.
    """

    trl: str
    folder: Path
    requirements: tuple[str, ...]


def trl_peer(version: str, folder: str) -> Peer:
    """TRL at a version, on the Transformers and PyTorch that the project is tested with."""
    others = ("transformers==5.23.0", "torch==2.13.0", "datasets", "accelerate")
    return Peer(version, CACHE / folder, (f"trl=={version}", *others))


LAST_PPO = trl_peer("1.12.0", "parity-trl-1.12.0")  # the last release with a PPOTrainer
CURRENT = trl_peer("1.16.0", "bench-trl-1.16.0")


def build_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """The Python of an environment with these requirements, built unless it is there; the rest of
    its packages have the versions that this project is tested with."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in pins if not line.startswith(("trl==", "#"))]
    wanted = hashlib.sha256("\n".join([*requirements, *pins]).encode()).hexdigest()
    python, stamp = folder / "bin" / "python", folder / "parity.sha256"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"building {folder} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    pip: list[Any] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", constraints, *requirements], check=True)
    stamp.write_text(wanted)
    return python
