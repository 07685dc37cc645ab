import sys
from pathlib import Path

import pytest

# Tests are imported one by one (importlib mode): their shared helpers must be found by name.
sys.path.insert(0, str(Path(__file__).parent))

from synthetic_study import Builder


@pytest.fixture
def builder() -> Builder:
    """A small study, not yet written."""
    return Builder()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study's folder with its report."""
    from analysis.report import write_report

    folder = Builder().write(tmp_path_factory.mktemp("study") / "toy-mini")
    write_report(folder)
    return folder
