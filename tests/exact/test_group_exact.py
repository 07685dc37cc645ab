"""RLOO and GRPO where the optimum is known: short runs that must get most of the way."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.exact import sampling_steps
from pipelines.exact.enumeration import every_pair, sequence_logprobs
from pipelines.exact.oracle import closed_share
from pipelines.rlhf.specs import GRPOSpec, RLOOSpec
from pipelines.shared.ledger import Ledger
from pipelines.shared.models import load_policy
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step

SPECS = {"rloo": RLOOSpec, "grpo": GRPOSpec}
SHORT = {
    "kl_coef": 0.3,
    "updates": 30,
    "rollouts": 256,
    "group": 32,
    "epochs": 1,
    "minibatches": 2,
    "learning_rate": 2e-3,
    "snapshots": 1,
}


def share_of_a_run(made, folder, method, **changes) -> float:
    """The share of J(pi*) - J(ref) that one run closes."""
    spec = SPECS[method](**(SHORT | changes))
    rows = []
    context = SimpleNamespace(
        step=Step("arm", "s0", "a:b", 1, {}),
        path=folder,
        seed=0,
        inputs={"task": made.folder},
        spec={method: spec}.__getitem__,
        runtime=Runtime(results=Path(), cache=Path()),
        ledger=Ledger(),
        progress=lambda *state: None,
        log=rows.append,
    )
    folder.mkdir(exist_ok=True)
    getattr(sampling_steps, f"train_{method}")(context)
    assert sorted(file.name for file in folder.iterdir()) == ["checkpoint", "policies.json"]
    updates = [row for row in rows if "objective/score" in row]
    assert len(updates) == spec.updates
    assert updates[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    generated = context.ledger.phases()["sampling"]["tokens_generated"]
    longest = max(map(len, made.task.completions))
    assert spec.updates * spec.rollouts <= generated <= spec.updates * spec.rollouts * longest
    task, policy = made.task, load_policy(folder / "checkpoint")
    pad_id = made.tokenizer.pad_token_id
    logp = sequence_logprobs(policy, task.prompts, task.completions, pad_id).detach().numpy()
    return closed_share(logp, task.ref_logp, task.rewards, spec.kl_coef)


@pytest.mark.parametrize(("method", "least"), [("rloo", 0.6), ("grpo", 0.5)])
def test_a_short_run_closes_most_of_the_gap(fixed, tmp_path, method, least):
    assert share_of_a_run(fixed, tmp_path, method) > least


def test_completions_may_end_early(ending, tmp_path):
    assert share_of_a_run(ending, tmp_path, "rloo") > 0.5


def test_the_judge_is_the_tasks_reward(ending):
    task = ending.task
    every = every_pair(task.prompts, task.completions, ending.tokenizer.pad_token_id)
    scores = task.judge(every)
    assert scores.numpy() == pytest.approx(task.rewards.ravel(), abs=1e-6)
