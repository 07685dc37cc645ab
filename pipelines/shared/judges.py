"""Who scores completions while an arm trains: a learnt reward model, or the gold reward.

A judge is a function of a padded batch that returns a score for each of its sequences, (B,) fp32.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.shared.gold import load_gold
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import Sequences
from pipelines.shared.models import load_reward_model, load_tokenizer, rewards
from pipelines.shared.steps import Context

Judge = Callable[[Sequences], torch.Tensor]


def learnt_judge(model: PreTrainedModel, ledger: Ledger) -> Judge:
    """The scores of a reward model, its cost booked."""
    cost = ModelCost.of(model)
    ledger.network("reward model", model)

    @torch.no_grad()
    def judge(sequences: Sequences) -> torch.Tensor:
        ledger.add(flops=cost.forward(*sequences.shape, 0, read=len(sequences.input_ids)))
        return rewards(model, sequences).float()

    return judge


def gold_judge(folder: Path, tokenizer: PreTrainedTokenizerBase, device: str = "cpu") -> Judge:
    """The gold reward of prompts with completions."""
    gold = load_gold(folder, device)

    def judge(sequences: Sequences) -> torch.Tensor:
        rewards = gold(as_table(*sequences.unpacked(), tokenizer))
        return torch.from_numpy(rewards).to(sequences.input_ids.device, torch.float32)

    return judge


def as_table(
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> pd.DataFrame:
    """Completions as a table (prompt, completion, prompt_ids, completion_ids), in text and ids."""
    prompts, completions = (
        tokenizer.batch_decode(ids, skip_special_tokens=True)
        for ids in (prompt_ids, completion_ids)
    )
    texts = {"prompt": prompts, "completion": completions}
    return pd.DataFrame({**texts, "prompt_ids": prompt_ids, "completion_ids": completion_ids})


def judge_of(context: Context) -> Judge:
    """The judge that a step has upstream: its reward model, or else the gold reward."""
    if "reward_model" in context.inputs:
        folder = context.inputs["reward_model"] / "checkpoint"
        return learnt_judge(load_reward_model(folder, context.runtime.device), context.ledger)
    tokenizer = load_tokenizer(context.inputs["sft"] / "checkpoint")
    return gold_judge(context.inputs["gold"], tokenizer, context.runtime.device)
