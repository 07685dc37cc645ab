"""The gold reward of somebody's own comparison: theirs, or a reward model held out from training.

A held-out judge is trained, from the model as it was brought, on pairs whose prompts nothing else
is trained on. It stands for the people who compared them as far as it has learnt what they like,
and no farther: it is no gold reward in the sense of a known truth, and the report says so.
"""

import json
import shutil
from typing import Any

import pandas as pd
import torch

from pipelines.data import brought
from pipelines.data.corpus import HELD_OUT, TRAINING, pairs_of, sided
from pipelines.data.pairs import SIDES
from pipelines.data.pipeline import GOLD
from pipelines.data.specs import JudgeSpec
from pipelines.rlhf import reward_model
from pipelines.shared.errors import UserError
from pipelines.shared.gold import FUNCTION, SOURCE, load_gold
from pipelines.shared.models import load_tokenizer
from pipelines.shared.steps import Context


def learn(context: Context) -> None:
    """Step: write checkpoint/, a reward model of the judge's pairs, and its accuracy on held-out
    pairs."""
    spec: JudgeSpec = context.spec("judge")
    start = context.inputs["start"] / "checkpoint"
    tokenizer, table = load_tokenizer(start), pairs_of(context, "judge")
    if len(table) < spec.batch_size:
        raise UserError(
            f"{len(table)} pairs are held out for the judge, fewer than a batch "
            f"({spec.batch_size}): raise data.share_judge, or give a reward by --gold"
        )
    model: Any = reward_model.grown_from(spec, start, tokenizer, context)
    training = pairs_of(context, TRAINING)  # what it is to judge is like these, not like its own
    texts = pd.concat([sided(training, side) for side in SIDES], ignore_index=True)
    reward_model.learn(context, spec, model, tokenizer, table, texts)
    log_accuracy(context, "held-out reward model")


def adopt(context: Context) -> None:
    """Step: copy the reward that was brought, and log its accuracy on held-out pairs."""
    log_accuracy(context, copied(context))


def copied(context: Context) -> str:
    """Copy the function or classifier that a step adopts into its folder; the source's name."""
    source, name = brought.function_of(brought.of(context, GOLD))
    (context.path / FUNCTION).write_text(json.dumps({"function": name, "from": source.name}))
    if name:
        shutil.copyfile(source, context.path / SOURCE)
    else:
        unwanted = shutil.ignore_patterns(*(f"*{suffix}" for suffix in brought.IGNORED))
        shutil.copytree(source, context.path / "checkpoint", ignore=unwanted)
    return source.name


def log_accuracy(context: Context, name: str) -> None:
    """On the pairs of the evaluation prompts: the share that the gold reward orders as people did
    (equal rewards count one half)."""
    table = pairs_of(context, HELD_OUT)
    if table.empty:
        context.log({"judge": name, "held_out_pairs": 0})
        return
    gold = load_gold(context.path, context.runtime.device)
    chosen, rejected = (torch.tensor(gold(sided(table, side))) for side in SIDES)
    right = (chosen > rejected).double() + 0.5 * (chosen == rejected)
    context.log(
        {
            "judge": name,
            "held_out_pairs": len(table),
            "held_out_agreement": float(right.mean()),
        }
    )
