"""Preferred-FT: what is learnt, from which ids, and its step."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from pipelines.baselines import preferred_ft
from pipelines.baselines.specs import PreferredFTSpec
from pipelines.shared import training
from pipelines.shared.ledger import Ledger
from pipelines.shared.logprobs import completion_logprobs, pack
from pipelines.shared.models import load_policy
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Context, Step

# Completions that were cut off have no EOS (0), and none may be appended.
PAIRS = pd.DataFrame(
    [
        {"prompt_ids": [5, 6, 7], "chosen_ids": [9, 10, 0], "rejected_ids": [11, 12]},
        {"prompt_ids": [5, 6, 7], "chosen_ids": [9, 10, 0], "rejected_ids": [13]},
        {"prompt_ids": [8, 20, 21], "chosen_ids": [15, 16, 17, 18], "rejected_ids": [19, 20]},
        {"prompt_ids": [9, 20, 21], "chosen_ids": [30], "rejected_ids": [31, 32, 33]},
    ]
)
SPEC = PreferredFTSpec(epochs=6, batch_size=2, learning_rate=1e-3, snapshots=2)


@pytest.fixture
def inputs(policy, tokenizer, tmp_path) -> dict[str, Path]:
    policy.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    PAIRS.to_parquet(tmp_path / "pairs.parquet")
    return {"sft": tmp_path, "pairs": tmp_path}


def run(inputs: dict[str, Path], path: Path) -> tuple[Context, list[dict[str, Any]]]:
    path.mkdir()
    rows: list[dict[str, Any]] = []
    context = Context(
        step=Step("preferred-ft", "s1", "a:b", 1, {"preferred_ft": SPEC}, seed=1),
        path=path,
        inputs=inputs,
        runtime=Runtime(results=path, cache=path),
        ledger=Ledger(),
        progress=lambda done, total, unit: None,
        log=lambda row: rows.append(dict(row)),
    )
    torch.manual_seed(1)
    preferred_ft.train(context)
    return context, rows


def nll_per_token(model: Any) -> float:
    """Mean over the batches of training, each a mean over its tokens: the loss as it is trained."""
    losses = []
    for start in range(0, len(PAIRS), SPEC.batch_size):
        rows = PAIRS.iloc[start : start + SPEC.batch_size]
        sequences = pack(rows["prompt_ids"].tolist(), rows["chosen_ids"].tolist(), pad_id=1)
        with torch.no_grad():
            logprobs = completion_logprobs(model, sequences)
        losses.append(-float(logprobs.sum() / sequences.completion_mask.sum()))
    return sum(losses) / len(losses)


def test_only_the_chosen_completions_are_learnt_as_they_were_sampled():
    rows = preferred_ft.chosen_completions(PAIRS)
    assert rows["input_ids"][0] == [5, 6, 7, 9, 10, 0]
    assert rows["labels"][0] == [-100, -100, -100, 9, 10, 0]
    assert rows["labels"][2] == [-100, -100, -100, 15, 16, 17, 18]
    assert len(rows) == len(PAIRS)


def test_the_loss_is_the_chosen_tokens_nats_and_falls(inputs, policy, tmp_path):
    _, rows = run(inputs, tmp_path / "run")
    start, end = [row["training_loss"] for row in rows if "training_loss" in row]
    assert start == pytest.approx(nll_per_token(policy), rel=1e-5)
    assert end < start - 0.5
    trained = load_policy(tmp_path / "run" / "checkpoint")
    assert end == pytest.approx(nll_per_token(trained), rel=1e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint")) == 280
    policies = json.loads((tmp_path / "run" / "policies.json").read_text())
    assert [row["step"] for row in policies] == [6, 12]


def test_looking_changes_no_weight_and_is_not_booked(inputs, tmp_path, monkeypatch):
    context, _ = run(inputs, tmp_path / "looked")
    monkeypatch.setattr(training, "log_training_loss", lambda *args: None)
    blind, _ = run(inputs, tmp_path / "blind")
    weights = [
        load_policy(tmp_path / name / "checkpoint").state_dict() for name in ("looked", "blind")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert context.ledger.totals(0)["flops"] == blind.ledger.totals(0)["flops"]
    book = context.ledger.phases()["train"]
    assert book["tokens_trained"] == SPEC.epochs * (6 + 6 + 7 + 4)
