"""Checkpoints leave and come in: plain Transformers reads ours, and others' stand on our axes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.cli import main
from pipelines.shared.corpus import train_tokenizer
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec

PLAIN = Path(__file__).with_name("plain_logprobs.py")
ARGUMENTS = ["sentiment", "--scale", "smoke", "--arms", "dpo", "--set", "dpo.beta=0.1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    assert main(["run", *ARGUMENTS, "--results", str(folder)]) == 0
    return folder


def one(results, stage):
    (folder,) = (results / "runs" / stage).glob("*")
    return folder


@pytest.mark.slow
def test_a_checkpoint_is_plain_transformers_and_says_where_it_is_from(results):
    checkpoint = one(results, "sft") / "checkpoint"
    files = [one(results, "completions") / "completions.parquet"]
    files += [one(results, "reference-logprobs") / "logprobs.parquet"]
    command = [sys.executable, "-I", str(PLAIN), str(checkpoint), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5
    card = (one(results, "dpo") / "checkpoint" / "README.md").read_text()
    record = json.loads((one(results, "dpo") / "record.json").read_text())
    assert record["fingerprint"] in card and "library_name: transformers" in card
    assert '"beta": 0.1' in card and str(results) not in card
    assert not list(checkpoint.glob("*.bin")), "safetensors only"


@pytest.mark.slow
def test_a_checkpoint_from_elsewhere_stands_on_the_frontier(results, tmp_path, capsys):
    """DPO's own checkpoint, brought in under another name, must be measured just as DPO's."""
    outside = shutil.copytree(one(results, "dpo") / "checkpoint", tmp_path / "outside")
    moved = tmp_path / "moved"
    model = AutoModelForCausalLM.from_pretrained(outside)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    model.save_pretrained(moved)
    shutil.copy(outside / "tokenizer.json", moved)
    shutil.copy(outside / "tokenizer_config.json", moved)
    more = ["--import", f"theirs={outside}", "--import", f"sharper={moved}"]
    assert main(["run", *ARGUMENTS, *more, "--results", str(results)]) == 0
    (study,) = (results / "experiments").glob("*import=theirs*")
    frontier = pd.read_csv(study / "tables" / "frontier.csv")
    final = frontier[frontier["final"] & (frontier["kl_estimator"] == "rb")].set_index("arm")
    for name in ("kl", "reward_gold", "reward_proxy", "entropy"):
        assert final.loc["theirs", name] == pytest.approx(final.loc["dpo", name], rel=1e-9)
        assert final.loc["sharper", name] != final.loc["dpo", name]
    page = (study / "report.html").read_text()
    assert "Trained elsewhere: sharper, theirs" in page and str(tmp_path) not in page
    manifest = json.loads((study / "manifest.json").read_text())
    assert set(manifest["brought"]) == {"imported theirs", "imported sharper"}


@pytest.mark.slow
def test_another_vocabulary_has_no_kl_to_ours(results, tmp_path, capsys):
    other = train_tokenizer(["quite other words"], vocab_size=270)
    new_policy(ModelSpec(layers=1, width=16, heads=2, context=24), other).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["run", *ARGUMENTS, "--import", f"x={tmp_path}", "--results", str(results)]) == 2
    err = capsys.readouterr().err
    assert "its tokens are not those of the shared SFT model" in err and err.count("\n") == 1
    assert not list((results / "runs" / "imported").glob("x-*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dpo={}", "is the name of an arm of this project"),
        ("Theirs={}", "lower-case letters"),
        ("{}", "write NAME=DIR"),
        ("x=", "write NAME=DIR"),
        ("x={}/none", "neither a model's folder"),
    ],
)
def test_what_cannot_be_imported_is_one_line(policy, tokenizer, tmp_path, capsys, given, message):
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capsys.readouterr()
    arguments = [*ARGUMENTS, "--results", str(tmp_path / "results")]
    assert main(["plan", *arguments, "--import", given.format(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert main(["plan", "exact", "--import", f"x={tmp_path}"]) == 2
    assert "no --import" in capsys.readouterr().err
