"""Stage 2 of RLHF: a reward model learnt from pairwise comparisons (TRL RewardTrainer).

Loss: -log sigmoid(r(x, y_chosen) - r(x, y_rejected)) (Bradley-Terry; Ouyang et al. 2022, eq. 1).
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from pipelines.shared.adapters import adapted, merged
from pipelines.shared.assets import ASSETS, WheelModel
from pipelines.shared.errors import UserError
from pipelines.shared.generation import packed_batches
from pipelines.shared.hub import HubModel
from pipelines.shared.ledger import ModelCost
from pipelines.shared.losses import bradley_terry_loss
from pipelines.shared.models import load_tokenizer, new_reward_model, rewards
from pipelines.shared.reading import as_mask, mlp_at, unwrapped
from pipelines.shared.specs import RewardModelSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import (
    Accounted,
    StepCallback,
    micro_batched,
    trainer_arguments,
    with_preference,
)


def ends(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """(B, T) bool, True where Transformers' classifiers read a sequence's score: at the last token
    that is not PAD."""
    real = (input_ids != unwrapped(model).config.get_text_config().pad_token_id).int()
    rows, columns = (torch.arange(size, device=input_ids.device) for size in input_ids.shape)
    return as_mask((rows, (real * columns).argmax(-1)), input_ids.shape)


class AccountedRewardTrainer(Accounted, RewardTrainer):
    """TRL's RewardTrainer with its cost booked; the last block's MLP runs at the ends alone."""

    def forward_flops(self, inputs: dict[str, Any]) -> int:
        sequences, length = inputs["input_ids"].shape
        return self.cost.forward(sequences, length, 0, read=sequences)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with mlp_at(model, ends(model, inputs["input_ids"])):
            return super().compute_loss(model, inputs, *args, **kwargs)


class SoftLabelRewardTrainer(AccountedRewardTrainer):
    """A reward model where a column `preference` holds the probability that chosen is better."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = with_preference(self.data_collator)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with mlp_at(model, ends(model, inputs["input_ids"])):
            logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        chosen, rejected = logits.squeeze(-1).chunk(2)
        return bradley_terry_loss(chosen - rejected, inputs["preference"]).mean()


def train(context: Context) -> None:
    """Step: train on the pairs' exact ids, then centre the scores on the SFT model's completions.

    Writes checkpoint/ (a Transformers sequence classifier; config.reward_mean is what `rewards`
    subtracts, config.reward_std what it divides by).
    """
    spec: RewardModelSpec = context.spec("reward_model")
    checkpoint = context.inputs["sft"] / "checkpoint"
    tokenizer = load_tokenizer(checkpoint)
    pairs = pd.read_parquet(context.inputs["pairs"] / "pairs.parquet")
    model = grown_from(spec, checkpoint, tokenizer, context)
    completions = pd.read_parquet(context.inputs["completions"] / "completions.parquet")
    learn(context, spec, model, tokenizer, pairs, completions)


def grown_from(spec: RewardModelSpec, sft: Path, tokenizer: Any, context: Context) -> Any:
    """An untrained reward model on the trunk that its settings name.

    Raises:
        UserError: another model's tokens are not the SFT model's.
    """
    asset = ASSETS.get(spec.init)
    if not isinstance(asset, HubModel | WheelModel):
        return new_reward_model(sft, spec.init)
    folder = asset.folder(context.runtime.cache)
    own, shared = load_tokenizer(folder).get_vocab(), tokenizer.get_vocab()
    if any(shared.get(token) != place for token, place in own.items()):
        raise UserError(
            f"{spec.section}.init = {spec.init}: its tokens are not the SFT model's: choose a "
            "model of the same family"
        )
    return new_reward_model(folder, like=sft)


def learn(
    context: Context,
    spec: RewardModelSpec,
    model: Any,
    tokenizer: Any,
    pairs: pd.DataFrame,
    completions: pd.DataFrame,
) -> None:
    """Train a reward model on pairs, normalise its scores on completions, and write checkpoint/."""
    if spec.normalise == "gain-bias":
        with context.ledger.phase("normalise"):
            scores = raw_scores(model, completions, tokenizer.pad_token_id, context)
            model.score.weight.data /= scores.std()
    model = adapted(context, model)
    fit(context, spec, model, tokenizer, pairs)
    model = merged(model)
    with context.ledger.phase("normalise"):
        scores = raw_scores(model, completions, tokenizer.pad_token_id, context)
    normalise(model, float(scores.mean()), float(scores.std()), spec.normalise)
    model.save_pretrained(context.path / "checkpoint")
    tokenizer.save_pretrained(context.path / "checkpoint")
    context.log({name: getattr(model.config, name, None) for name in ("reward_mean", "reward_std")})


def fit(
    context: Context, spec: RewardModelSpec, model: Any, tokenizer: Any, pairs: pd.DataFrame
) -> None:
    """Train a reward model on pairs by `spec`."""
    trainer = AccountedRewardTrainer(
        model=model,
        args=RewardConfig(
            **trainer_arguments(context),
            **reward_arguments(spec) | micro_batched(context, spec.batch_size),
            logging_steps=10,
        ),
        train_dataset=exact_ids(pairs),
        processing_class=tokenizer,
        callbacks=[StepCallback(context)],
    )
    trainer.account(context.ledger, "reward model")
    with context.ledger.phase("train"):
        trainer.train()


def reward_arguments(spec: RewardModelSpec) -> dict[str, Any]:
    """`spec` as arguments of RewardConfig."""
    return {
        "num_train_epochs": spec.epochs,
        "per_device_train_batch_size": spec.batch_size,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": spec.warmup,
        "max_grad_norm": spec.max_grad_norm,
        "max_length": None,
    }


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
def raw_scores(
    model: Any, completions: pd.DataFrame, pad_id: int, context: Context
) -> torch.Tensor:
    """Scores (N,) fp64 of the SFT model's completions, in batches of 512."""
    model.eval()
    cost, scores = ModelCost.of(model), torch.empty(len(completions), dtype=torch.double)
    for places, sequences in packed_batches(completions, pad_id, model.device, size=512):
        context.ledger.add(flops=cost.forward(*sequences.shape, 0, read=len(places)))
        scores[torch.from_numpy(places)] = rewards(model, sequences).double().cpu()
    return scores


def normalise(model: Any, mean: float, std: float, how: str) -> None:
    """Make scores of the reference have mean 0 (`bias`; Huang et al. 2024), and also standard
    deviation 1 (`gain-bias`; Ziegler et al. 2019); `none` leaves them."""
    if how == "none":
        return
    model.config.reward_mean = mean
    if how == "gain-bias":
        model.config.reward_std = std
