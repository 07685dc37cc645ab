"""Stage 1 from a pretrained model: maximum likelihood on the chosen completions of the pairs.

Where there is no SFT model, Rafailov et al. 2023 (section 4, "DPO outline") make one so: it brings
the reference near the distribution that the pairs are from.
"""

from typing import Any

from datasets import Dataset

from pipelines.data.corpus import TRAINING, pairs_of
from pipelines.data.specs import FineTuneSpec
from pipelines.rlhf.sft import fit
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.steps import Context
from pipelines.shared.training import PolicyWriter


def train(context: Context) -> None:
    """Step: the start of every arm; the validation loss (nats a completion token) is logged last.

    With 0 epochs the model is taken as it is.
    """
    spec: FineTuneSpec = context.spec("sft")
    start = context.inputs["start"] / "checkpoint"
    tokenizer, model = load_tokenizer(start), load_policy(start)
    if spec.epochs:
        splits = {name: chosen_rows(context, name) for name in (TRAINING, "validation")}
        fit(context, spec, model, tokenizer, *splits.values())
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
