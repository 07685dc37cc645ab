"""Stage 1: supervised fine-tuning (TRL SFTTrainer), the start and reference of every arm."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from pipelines.shared.adapters import adapted
from pipelines.shared.corpus import TEXTS
from pipelines.shared.logprobs import target_logprobs
from pipelines.shared.models import load_tokenizer, new_policy
from pipelines.shared.specs import SFTSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import (
    Accounted,
    PolicyWriter,
    StepCallback,
    micro_batched,
    trainer_arguments,
)

IGNORED = -100  # label of a token that is not learnt


class AccountedSFTTrainer(Accounted, SFTTrainer):
    """TRL's SFTTrainer with its cost booked, and with its loss for less work.

    TRL's fused LM head computes the logits of padding on a CPU, and all of them once more in the
    backward pass.
    """

    def forward_flops(self, inputs: dict[str, Any]) -> int:
        targets = int((inputs["labels"][:, 1:] != -100).sum())
        sequences, length = inputs["input_ids"].shape
        return self.cost.forward(sequences, length, targets)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean negative log-likelihood, nats a token; over the tokens of all of a step's batches
        where the Trainer counts them."""
        targets = inputs["labels"] != IGNORED
        targets[:, 0] = False  # nothing predicts the first token
        logprobs = target_logprobs(
            model, {name: inputs[name] for name in ("input_ids", "attention_mask")}, targets
        )
        counted = num_items_in_batch is not None
        tokens = num_items_in_batch if counted else targets.sum()
        loss = -logprobs.sum() / torch.as_tensor(tokens).clamp(min=1)
        if counted and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # their gradients are averaged
        return (loss, {}) if return_outputs else loss


def train(context: Context) -> None:
    """Step: train on the SFT split's reviews; the validation loss (nats per token) is logged last.

    A review is its tokens and EOS, cut at the model's context: a review that is cut has no EOS.
    """
    tokenizer = load_tokenizer(context.inputs["corpus"] / "tokenizer")
    reviews = pd.read_parquet(context.inputs["corpus"] / TEXTS)
    length = context.spec("model").context
    rows = [[*ids, tokenizer.eos_token_id][:length] for ids in reviews["ids"]]

    def split(name: str) -> Dataset:
        chosen = [row for row, where in zip(rows, reviews["split"], strict=True) if where == name]
        return Dataset.from_dict({"input_ids": chosen, "labels": chosen})

    tokenizer.model_max_length = length
    model = new_policy(context.spec("model"), tokenizer)
    fit(context, context.spec("sft"), model, tokenizer, split("sft"), split("validation"))


def completion_rows(rows: Iterable[tuple[list[int], list[int]]]) -> Dataset:
    """Prompts with a completion each, as input_ids and labels; only the completions are learnt."""
    pairs = list(rows)
    return Dataset.from_dict(
        {
            "input_ids": [prompt + completion for prompt, completion in pairs],
            "labels": [[IGNORED] * len(prompt) + completion for prompt, completion in pairs],
        }
    )


def fit(
    context: Context, spec: SFTSpec, model: Any, tokenizer: Any, rows: Dataset, validation: Dataset
) -> None:
    """Train a model by `spec` and write it as a run's only policy.

    Args:
        rows, validation: input_ids and labels (-100: no target); validation may have no rows.
    """
    model = adapted(context, model)
    trainer = AccountedSFTTrainer(
        model=model,
        args=SFTConfig(
            **trainer_arguments(context),
            **micro_batched(context, spec.batch_size),
            num_train_epochs=spec.epochs,
            per_device_eval_batch_size=4 * spec.batch_size,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=spec.warmup,
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            max_length=None,
            logging_steps=50,
        ),
        train_dataset=rows,
        eval_dataset=validation if len(validation) else None,
        processing_class=tokenizer,
        callbacks=[StepCallback(context)],
    )
    trainer.account(context.ledger)
    with context.ledger.phase("train"):
        trainer.train()
    if len(validation):
        with context.ledger.phase("validation"):
            trainer.evaluate()
    writer = PolicyWriter(context, model, tokenizer)
    writer(0)  # step 0 of every arm
    writer.finish()
