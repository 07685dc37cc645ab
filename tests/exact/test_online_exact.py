"""Online DPO on the task whose optimum is known."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.dpo.specs import OnlineDPOSpec
from pipelines.exact.enumeration import every_pair, sequence_logprobs
from pipelines.exact.oracle import closed_share
from pipelines.exact.sampling_steps import train_online_dpo
from pipelines.shared.ledger import Ledger
from pipelines.shared.models import load_policy
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step


def trained(made, folder, beta: float) -> SimpleNamespace:
    """The share of J(pi*) - J(ref) that a short run closes, and what the step left behind."""
    spec = OnlineDPOSpec(
        beta=beta, rounds=20, pairs=256, epochs=1, batch_size=64, learning_rate=2e-3, snapshots=2
    )
    rows: list = []
    context = SimpleNamespace(
        step=Step("arm", "s0", "a:b", 1, {}),
        path=folder,
        seed=0,
        inputs={"task": made.folder},
        spec={"online_dpo": spec}.__getitem__,
        runtime=Runtime(results=Path(), cache=Path()),
        ledger=Ledger(),
        progress=lambda *state: None,
        log=rows.append,
    )
    train_online_dpo(context)
    task, policy = made.task, load_policy(folder / "checkpoint")
    with torch.no_grad():
        logp = sequence_logprobs(
            policy, task.prompts, task.completions, made.tokenizer.pad_token_id
        ).numpy()
    share = closed_share(logp, task.ref_logp, task.rewards, beta)
    return SimpleNamespace(share=share, rows=rows, ledger=context.ledger)


@pytest.mark.parametrize("name", ["fixed", "ending"])
def test_a_short_run_closes_most_of_the_gap(request, tmp_path, name):
    run = trained(request.getfixturevalue(name), tmp_path, beta=1.0)
    assert 0.7 < run.share < 1
    logged = [row for row in run.rows if "loss" in row]
    assert len(logged) == 20 and logged[-1]["rewards/accuracies"] > 0.8
    lengths = {row["completions/length"] for row in logged}
    assert (lengths == {3.0}) == (name == "fixed")
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"checkpoint", "snapshots", "policies.json"}
    steps = [row["step"] for row in json.loads((tmp_path / "policies.json").read_text())]
    assert steps == [40, 80]
    assert set(run.ledger.phases()) == {"train", "sampling", "check", "scoring"}


def test_the_judge_is_the_true_reward(ending):
    task = ending.task
    every = every_pair(task.prompts, task.completions, ending.tokenizer.pad_token_id)
    scores = task.judge(every)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(task.rewards.ravel(), dtype=torch.float32))
