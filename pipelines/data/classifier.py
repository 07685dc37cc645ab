"""The gold reward as a sequence classifier's log-odds: pinned, or fine-tuned on human labels.

As in Rafailov et al. 2023, section 6.1, where a sentiment classifier of the data set is the ground
truth. It reads prompt and completion as one text.
"""

import json
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from pipelines.data.gold import copied
from pipelines.data.specs import ClassifierSpec
from pipelines.data.texts import HELD_OUT
from pipelines.shared.adapters import adapted, merged
from pipelines.shared.corpus import TEXTS
from pipelines.shared.gold import FUNCTION, load_gold
from pipelines.shared.kernels import with_fast_kernels
from pipelines.shared.models import load_tokenizer
from pipelines.shared.steps import Context
from pipelines.shared.training import Accounted, StepCallback, micro_batched, trainer_arguments


class AccountedClassifierTrainer(Accounted, Trainer):
    """The Trainer with its cost booked. Loss: cross-entropy, nats a text."""

    def forward_flops(self, inputs: dict[str, Any]) -> int:
        sequences, length = inputs["input_ids"].shape
        return self.cost.forward(sequences, length, 0, read=sequences * length)


def fit(context: Context) -> None:
    """Step: fine-tune the pretrained model on the labels of all texts but the evaluation prompts';
    write checkpoint/ and log the accuracy on those."""
    spec: ClassifierSpec = context.spec("gold")
    start = context.inputs["start"] / "checkpoint"
    tokenizer = load_tokenizer(start)
    texts = pd.read_parquet(context.inputs["corpus"] / TEXTS)
    held_out = texts["split"] == HELD_OUT
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        start, num_labels=2, dtype=torch.float32
    )
    model = adapted(context, with_fast_kernels(model))
    trainer = AccountedClassifierTrainer(
        model=model,
        args=TrainingArguments(
            **trainer_arguments(context),
            **micro_batched(context, spec.batch_size),
            num_train_epochs=spec.epochs,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=spec.warmup,
            max_grad_norm=spec.max_grad_norm,
            remove_unused_columns=False,
            logging_steps=10,
        ),
        train_dataset=rows_of(texts[~held_out], tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[StepCallback(context)],
    )
    trainer.account(context.ledger, "classifier")
    with context.ledger.phase("train"):
        trainer.train()
    merged(model).save_pretrained(context.path / "checkpoint")
    tokenizer.save_pretrained(context.path / "checkpoint")
    (context.path / FUNCTION).write_text(json.dumps({"function": "", "from": "human labels"}))
    log_accuracy(context, texts[held_out])


def rows_of(texts: pd.DataFrame, tokenizer: Any) -> list[dict[str, Any]]:
    """The texts, as they will be read when completions are judged, with their labels."""
    return [
        {"input_ids": tokenizer(text)["input_ids"], "labels": int(positive)}
        for text, positive in zip(texts["text"], texts["positive"], strict=True)
    ]


def adopt(context: Context) -> None:
    """Step: copy a pinned classifier to checkpoint/, and log its accuracy on the evaluation
    prompts' texts."""
    copied(context)
    texts = pd.read_parquet(context.inputs["corpus"] / TEXTS)
    log_accuracy(context, texts[texts["split"] == HELD_OUT])


def log_accuracy(context: Context, tested: pd.DataFrame) -> None:
    """Of the sign of the log-odds, on texts that it has not seen, as far as the prompts' SFT model
    reads them."""
    tokenizer = load_tokenizer(context.inputs["corpus"] / "tokenizer")
    read = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tested["ids"]]
    table = pd.DataFrame({"prompt": "", "completion": read}, index=tested.index)
    scores = load_gold(context.path, context.runtime.device)(table)
    positive = tested["positive"].to_numpy()
    share = float(positive.mean())
    context.log(
        {
            "held_out_accuracy": float(np.mean((scores > 0) == positive)),
            "held_out_reviews": len(tested),
            "held_out_majority": max(share, 1 - share),
        }
    )
