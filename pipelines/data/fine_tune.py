"""Stage 1 from a pretrained model: maximum likelihood on texts, or on completions of prompts.

Completions are the chosen ones of the pairs, or demonstrations of their own. Where there is no SFT
model, Rafailov et al. 2023 (section 4, "DPO outline") make one of the chosen: it brings the
reference near the distribution that the pairs are from.
"""

from collections import Counter

import pandas as pd
from datasets import Dataset

from pipelines.data import brought
from pipelines.data.checks import prompt_key
from pipelines.data.corpus import TRAINING, longest_of, pairs_of, read_key
from pipelines.data.encoding import Encoder
from pipelines.data.pipeline import DEMONSTRATIONS
from pipelines.data.prompts import read_demonstrations
from pipelines.data.specs import DataSpec, FineTuneSpec
from pipelines.rlhf.sft import completion_rows, fit
from pipelines.shared.corpus import TEXTS
from pipelines.shared.errors import UserError
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.steps import Context
from pipelines.shared.training import PolicyWriter


def train(context: Context) -> None:
    """Step: the start of every arm; the validation loss (nats a completion token) is logged last.

    With 0 epochs the model is taken as it is.
    """
    train_from_start(context, chosen_rows(context, TRAINING), chosen_rows(context, "validation"))


def train_on_demonstrations(context: Context) -> None:
    """Step: the start of every arm, from prompts with completions that were written for them; the
    validation loss is of the pairs' chosen completions. With 0 epochs the model is taken as it is.
    """
    train_from_start(context, demonstrations(context), chosen_rows(context, "validation"))


def demonstrations(context: Context) -> Dataset:
    """The rows of a file of prompt and completion, but those whose prompt, however it is typed, is
    one that is judged, tuned or a judge trained on, and those that are too long.

    Raises:
        UserError: a row is none, or nothing is left.
    """
    spec: DataSpec = context.spec("data")
    path, start = brought.of(context, DEMONSTRATIONS), context.inputs["start"] / "checkpoint"
    longest, encoder = longest_of(start, spec), Encoder(load_tokenizer(start))
    texts = pd.read_parquet(context.inputs["corpus"] / TEXTS)
    judged = set(texts.loc[texts["split"] != TRAINING, "prompt"].map(prompt_key))
    rows, left_out = [], Counter({"judged on": 0, "too long": 0})
    for prompt, completion in read_demonstrations(path):
        ids, written = encoder.both(prompt, completion)
        if read_key(prompt, encoder) in judged:
            left_out["judged on"] += 1
        elif len(ids) + len(written) > longest:
            left_out["too long"] += 1
        else:
            rows.append((list(ids), list(written)))
    if not rows:
        raise UserError(f"{path}: no demonstrations are left to train on")
    counts = {f"demonstrations/{name}": count for name, count in left_out.items()}
    context.log({"demonstrations": len(rows), **counts})
    return completion_rows(rows)


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
    rows: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
    pairs = pairs_of(context, split)
    for prompt, chosen in zip(pairs["prompt_ids"], pairs["chosen_ids"], strict=True):
        rows.setdefault((*prompt, *chosen), (list(prompt), list(chosen)))
    return completion_rows(rows.values())
