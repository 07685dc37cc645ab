"""Stage 1 from a pretrained model: maximum likelihood on texts, or on completions of prompts.

Completions are the chosen ones of the pairs, or demonstrations of their own. Where there is no SFT
model, Rafailov et al. 2023 (section 4, "DPO outline") make one of the chosen: it brings the
reference near the distribution that the pairs are from.
"""

from typing import Any

import pandas as pd
from datasets import Dataset

from pipelines.data.corpus import TRAINING, pairs_of
from pipelines.data.specs import FineTuneSpec
from pipelines.rlhf.sft import fit
from pipelines.shared.corpus import TEXTS
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.steps import Context
from pipelines.shared.training import PolicyWriter


def train(context: Context) -> None:
    """Step: the start of every arm; the validation loss (nats a completion token) is logged last.

    With 0 epochs the model is taken as it is.
    """
    train_from_start(context, chosen_rows(context, TRAINING), chosen_rows(context, "validation"))


def train_on_texts(context: Context) -> None:
    """Step: the start of every arm, from the SFT split's texts; the validation loss (nats a token)
    is logged last. With 0 epochs the model is taken as it is."""
    texts = pd.read_parquet(context.inputs["corpus"] / TEXTS)

    def split(name: str) -> Dataset:
        rows = texts.loc[texts["split"] == name, "ids"].map(list).tolist()
        return Dataset.from_dict({"input_ids": rows, "labels": rows})

    train_from_start(context, split("sft"), split("validation"))


def train_from_start(context: Context, rows: Dataset, validation: Dataset) -> None:
    """Train the pretrained model; see `sft.fit`."""
    spec: FineTuneSpec = context.spec("sft")
    start = context.inputs["start"] / "checkpoint"
    tokenizer, model = load_tokenizer(start), load_policy(start)
    if spec.epochs:
        fit(context, spec, model, tokenizer, rows, validation)
    else:
        writer = PolicyWriter(context, model, tokenizer)
        writer(0)
        writer.finish()


def chosen_rows(context: Context, split: str) -> Dataset:
    """Prompts with their chosen completions, each once; the prompts' tokens are no targets."""
    rows: dict[tuple[int, ...], list[int]] = {}
    pairs = pairs_of(context, split)
    for prompt, chosen in zip(pairs["prompt_ids"], pairs["chosen_ids"], strict=True):
        rows.setdefault((*prompt, *chosen), [-100] * len(prompt) + list(chosen))
    columns: dict[str, Any] = {"input_ids": [list(row) for row in rows], "labels": [*rows.values()]}
    return Dataset.from_dict(columns)
