"""The README tells the truth: its table is the published one, its tree is the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STUDY = "sentiment-mini+seeds=3"


def test_the_table_is_the_published_studys():
    published = ROOT / "results" / "experiments" / STUDY / "tables" / "headline.md"
    shown = re.search(r"<!-- headline -->\n(.*?)<!-- /headline -->", README, re.DOTALL)
    assert shown and shown.group(1).strip() == published.read_text().strip()


def test_every_module_is_in_the_tree_and_every_name_in_the_tree_is_there():
    tree = README.split("## Where things are")[1].split("```")[1]
    named, folder = set(), {0: ROOT}
    for line in tree.strip().splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        path = folder[indent] / name
        assert path.exists(), name
        if name.endswith("/"):
            folder[indent + 2] = path
        named.add(path)
    modules = {
        path
        for package in ("pipelines", "experiments", "analysis")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules == {path for path in named if path.suffix == ".py"}


def test_the_commands_are_the_makefiles():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()
