"""Held-out pairs: whose log-probs, which side less which."""

from types import SimpleNamespace

import pandas as pd
import pytest

from pipelines.dpo.specs import DPOSpec
from pipelines.evaluate import held_out
from pipelines.shared.ledger import Ledger
from pipelines.shared.logprobs import completion_logprobs, pack
from pipelines.shared.models import load_reward_model, new_reward_model, rewards
from pipelines.shared.specs import EvaluationSpec, Runtime
from pipelines.shared.steps import Step
from pipelines.shared.training import PolicyWriter


@pytest.fixture
def context(policy, tokenizer, tmp_path):
    """A run whose first saved policy is another than its last, and pairs of two splits."""
    made = [
        ("p", "evaluation", [5, 6], [7, 8, 1], [9, 1]),
        ("q", "preference", [5], [10, 1], [11, 1]),
        ("r", "evaluation", [6], [12, 1], [13, 14, 15, 1]),
    ]
    columns = ["prompt_id", "split", "prompt_ids", "chosen_ids", "rejected_ids"]
    table = pd.DataFrame(made, columns=columns)
    table = table.assign(prompt="x", chosen="long", rejected="no", line=range(1, 4))
    folders = {name: tmp_path / name for name in ("corpus", "run", "sft", "reward_model", "gold")}
    for folder in folders.values():
        folder.mkdir()
    table.to_parquet(folders["corpus"] / "all_pairs.parquet")
    step = Step("dpo", "s0", "a:b", 1, {"dpo": DPOSpec()})
    writer = PolicyWriter(SimpleNamespace(path=folders["run"], step=step), policy, tokenizer)
    last = policy.lm_head.weight.data.clone()
    policy.lm_head.weight.data.zero_()
    writer(1)
    policy.lm_head.weight.data.copy_(last)
    writer(2)
    writer.finish()
    policy.save_pretrained(folders["sft"] / "checkpoint")
    tokenizer.save_pretrained(folders["sft"] / "checkpoint")
    learnt = new_reward_model(folders["sft"] / "checkpoint")
    learnt.save_pretrained(folders["reward_model"] / "checkpoint")
    (folders["gold"] / "reward.py").write_text(
        "def longer(prompts, completions): return [len(text) for text in completions]"
    )
    (folders["gold"] / "reward.json").write_text('{"function": "longer"}')
    return SimpleNamespace(
        inputs={**folders, "policy": folders["run"]},
        spec={"evaluation": EvaluationSpec()}.__getitem__,
        runtime=Runtime(results=tmp_path, cache=tmp_path),
        path=tmp_path,
        ledger=Ledger(),
        progress=lambda done, total, unit: None,
    )


def batch(tokenizer, side):
    completions = {"chosen": [[7, 8, 1], [12, 1]], "rejected": [[9, 1], [13, 14, 15, 1]]}
    return pack([[5, 6], [6]], completions[side], tokenizer.pad_token_id)


def test_log_probs_are_of_the_last_policy(context, policy, tokenizer):
    held_out.log_probs(context)
    table = pd.read_parquet(context.path / "scores.parquet")
    assert table["prompt_id"].tolist() == ["p", "r"] and table["line"].tolist() == [1, 3]
    for side in ("chosen", "rejected"):
        expected = completion_logprobs(policy, batch(tokenizer, side)).sum(-1).tolist()
        assert table[f"logp_{side}"].tolist() == pytest.approx(expected, abs=1e-4)


def test_rewards_are_of_the_chosen_less_the_rejected(context, tokenizer):
    held_out.rewards(context)
    table = pd.read_parquet(context.path / "scores.parquet")
    learnt = load_reward_model(context.inputs["reward_model"] / "checkpoint")
    chosen, rejected = (rewards(learnt, batch(tokenizer, s)) for s in ("chosen", "rejected"))
    assert table["reward_proxy"].tolist() == pytest.approx((chosen - rejected).tolist(), abs=1e-4)
    assert table["reward_gold"].tolist() == [2, 2], "of the texts long and no"
    assert table["length"].tolist() == [1, -2]
