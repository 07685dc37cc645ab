"""Preferred-FT: maximum likelihood on the chosen completions (Rafailov et al. 2023, sec. 6).

Loss: -log pi(y_c|x), the mean over the completion tokens of a batch (nats per token). The rejected
completions are not used, nor is there a reference.
"""

from typing import Any

import pandas as pd
from datasets import Dataset
from trl import SFTConfig

from pipelines.baselines.specs import PreferredFTSpec
from pipelines.rlhf.sft import AccountedSFTTrainer, completion_rows
from pipelines.shared.adapters import adapted
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.steps import Context
from pipelines.shared.training import (
    PolicyWriter,
    StepCallback,
    fit,
    micro_batched,
    trainer_arguments,
)


def train(context: Context) -> None:
    """Step: train the SFT model on. Writes checkpoint/, snapshots/ and policies.json."""
    spec: PreferredFTSpec = context.spec("preferred_ft")
    checkpoint = context.inputs["sft"] / "checkpoint"
    tokenizer = load_tokenizer(checkpoint)
    data = chosen_completions(pd.read_parquet(context.inputs["pairs"] / "pairs.parquet"))
    model = adapted(context, load_policy(checkpoint))
    writer = PolicyWriter(context, model, tokenizer)
    trainer = AccountedSFTTrainer(
        model=model,
        args=SFTConfig(
            **trainer_arguments(context),
            **preferred_ft_arguments(spec) | micro_batched(context, spec.batch_size),
            logging_steps=10,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[StepCallback(context, writer, spec.snapshots)],
    )
    fit(trainer, context, writer, data)


def chosen_completions(pairs: pd.DataFrame) -> Dataset:
    """Prompt + chosen completion of each pair, as sampled; only the completion is learnt.

    A completion that is chosen over several others is there as often.
    """
    prompts, chosen = (pairs[name].map(list).tolist() for name in ("prompt_ids", "chosen_ids"))
    return completion_rows(zip(prompts, chosen, strict=True))


def preferred_ft_arguments(spec: PreferredFTSpec) -> dict[str, Any]:
    """`spec` as arguments of SFTConfig."""
    return {
        "num_train_epochs": spec.epochs,
        "per_device_train_batch_size": spec.batch_size,
        "per_device_eval_batch_size": spec.batch_size,  # the look must not raise the peak memory
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": spec.warmup,
        "max_grad_norm": spec.max_grad_norm,
        "max_length": None,
    }
