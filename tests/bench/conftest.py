"""The benchmarks are scripts beside one another: their folder is where they import from."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
