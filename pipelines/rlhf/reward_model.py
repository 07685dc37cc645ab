"""Stage 2 of RLHF: a reward model learnt from pairwise comparisons (TRL RewardTrainer).

Loss: -log sigmoid(r(x, y_chosen) - r(x, y_rejected)) (Bradley-Terry; Ouyang et al. 2022, eq. 1).
"""

from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from pipelines.shared.generation import packed_batches
from pipelines.shared.ledger import ModelCost
from pipelines.shared.models import load_tokenizer, new_reward_model, rewards
from pipelines.shared.specs import RewardModelSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import Accounted, StepCallback, trainer_arguments


class AccountedRewardTrainer(Accounted, RewardTrainer):
    """TRL's RewardTrainer with its cost booked."""

    def head_positions(self, inputs: dict[str, Any]) -> int:
        return 0  # no LM head


def train(context: Context) -> None:
    """Step: train on the pairs' exact ids, then centre the scores on the SFT model's completions.

    Writes checkpoint/ (a Transformers sequence classifier; config.reward_mean is what `rewards`
    subtracts).
    """
    spec: RewardModelSpec = context.spec("reward_model")
    checkpoint = context.inputs["sft"] / "checkpoint"
    tokenizer = load_tokenizer(checkpoint)
    pairs = pd.read_parquet(context.inputs["pairs"] / "pairs.parquet")
    model = new_reward_model(checkpoint)
    trainer = AccountedRewardTrainer(
        model=model,
        args=RewardConfig(
            **trainer_arguments(context),
            num_train_epochs=spec.epochs,
            per_device_train_batch_size=spec.batch_size,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=spec.warmup,
            max_grad_norm=spec.max_grad_norm,
            max_length=None,
            logging_steps=10,
        ),
        train_dataset=exact_ids(pairs),
        processing_class=tokenizer,
        callbacks=[StepCallback(context)],
    )
    trainer.ledger, trainer.cost = context.ledger, ModelCost.of(model)
    with context.ledger.phase("train"):
        trainer.train()
    with context.ledger.phase("centre"):
        completions = pd.read_parquet(context.inputs["completions"] / "completions.parquet")
        model.config.reward_mean = centre(model, completions, tokenizer.pad_token_id, context)
    model.save_pretrained(context.path / "checkpoint")
    tokenizer.save_pretrained(context.path / "checkpoint")
    context.log({"reward_mean": model.config.reward_mean})


def exact_ids(pairs: pd.DataFrame) -> Dataset:
    """The pairs as RewardTrainer's tokenized columns: prompt + completion, nothing appended."""
    prompts = pairs["prompt_ids"].map(list)
    return Dataset.from_dict(
        {
            "chosen_ids": (prompts + pairs["chosen_ids"].map(list)).tolist(),
            "rejected_ids": (prompts + pairs["rejected_ids"].map(list)).tolist(),
        }
    )


@torch.no_grad()
def centre(model: Any, completions: pd.DataFrame, pad_id: int, context: Context) -> float:
    """Mean raw score of the SFT model's completions, in batches of 512."""
    model.eval()
    cost, scores = ModelCost.of(model), []
    for _, sequences in packed_batches(completions, pad_id, model.device, size=512):
        context.ledger.add(flops=cost.forward(*sequences.input_ids.shape))
        scores.append(rewards(model, sequences).double())
    return float(torch.cat(scores).mean())
