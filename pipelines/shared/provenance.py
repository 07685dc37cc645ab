"""What ran: versions, commit, command, hardware. Recorded beside a result, never hashed into it."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "scikit-learn",
    "numpy",
    "pandas",
)


def _git(*arguments: str) -> str | None:
    """Output of a git command in the project's folder, or None outside a checkout."""
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    """The processor's name as the machine states it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the portable name below will do
    return platform.processor() or platform.machine()


@functools.cache
def provenance() -> dict[str, Any]:
    """Commit (with a digest of uncommitted changes), command, package versions, hardware."""
    code = ("--", "*.py")
    changed = _git("status", "--porcelain", "--untracked-files=all", *code)
    diff = f"{changed}{_git('diff', 'HEAD', *code)}" if changed else None
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }
