"""The README tells the truth: its table is the published one, its tree is the code."""

import copy
import re
from pathlib import Path

import pytest
from datasets import Dataset

from pipelines.shared.models import new_reward_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# What stands in for the hub, and makes an example short.
SUBSTITUTES = {
    r'"Qwen/[^"]+"': 'str(HERE / "policy")',
    r'"trl-lib/Qwen[^"]+"': 'str(HERE / "judge")',
    r"load_dataset\([^)]*\)": 'Dataset.from_dict({"prompt": [MESSAGES, MESSAGES]})',
    r'PPOConfig\("([^"]+)"(?:, updates=50, rollouts=64, max_completion_length=64)?': (
        r'PPOConfig(str(HERE / "\1"), updates=1, rollouts=8, max_completion_length=6, '
        r'use_cpu=True, report_to="none"'
    ),
}


@pytest.mark.parametrize(
    ("mark", "study"),
    [
        ("headline", "sentiment-mini+seeds=3"),
        ("arms", "sentiment-mini+arms=all"),
        ("exact", "exact-mini+seeds=3"),
        ("exact-arms", "exact-mini+arms=rloo,grpo,online-dpo+seeds=3"),
    ],
)
def test_the_tables_are_the_published_studies(mark, study):
    published = ROOT / "results" / "experiments" / study / "tables" / "headline.md"
    shown = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", README, re.DOTALL)
    assert shown and shown.group(1).strip() == published.read_text().strip()


def test_the_speeds_are_the_measured_ones():
    measured = ROOT / "bench" / "results.md"
    shown = re.search(r"<!-- speed -->\n(.*?)<!-- /speed -->", README, re.DOTALL)
    assert shown and shown.group(1).strip() == measured.read_text().strip()


def test_the_claims_are_the_published_ones():
    published = ROOT / "results" / "experiments" / "claims.md"
    shown = re.search(r"<!-- claims -->\n(.*?)<!-- /claims -->", README, re.DOTALL)
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
        for package in ("pipelines", "experiments", "analysis", "bench")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules == {path for path in named if path.suffix == ".py"}


def test_the_commands_are_the_makefiles():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run_and_are_short(number, policy, tokenizer, tmp_path, monkeypatch):
    """As they are printed, on small local models in the place of the hub's."""
    example = EXAMPLES[number]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    new_reward_model(tmp_path / "policy").save_pretrained(tmp_path / "judge")
    for pattern, substitute in SUBSTITUTES.items():
        example = re.sub(pattern, substitute, example)
    monkeypatch.chdir(tmp_path)  # save_model writes where it is told, and nowhere else
    messages = [{"role": "user", "content": "a fine film"}]
    names = {"HERE": tmp_path, "Dataset": Dataset, "MESSAGES": messages}
    exec(compile(example, f"README example {number}", "exec"), names)
    assert names["trainer"].state.global_step == 16
    assert len(EXAMPLES) == 3
