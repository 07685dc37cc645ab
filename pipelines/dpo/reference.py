"""DPO's reference log-probs: once for each (SFT model, completions), for all betas and seeds."""

import numpy as np
import pandas as pd
import torch

from pipelines.shared.generation import packed_batches
from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import completion_logprobs
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.steps import Context

KEYS = ["prompt_id", "sample"]
READ = [*KEYS, "prompt_ids", "completion_ids"]


@torch.no_grad()
def score(context: Context) -> None:
    """Step: write logprobs.parquet (prompt_id, sample, ref_logp: nats, summed over the completion).

    At temperature 1: the policy that DPO trains is the model as it is.
    """
    checkpoint = context.inputs["sft"] / "checkpoint"
    pad_id = load_tokenizer(checkpoint).pad_token_id
    model = load_policy(checkpoint, context.runtime.device)
    cost = ModelCost.of(model)
    context.ledger.network("reference", model)
    table = pd.read_parquet(
        context.inputs["completions"] / "completions.parquet", columns=READ
    )  # not the text, which there is as much of as of ids
    logprobs, done = np.empty(len(table)), 0
    for places, sequences in packed_batches(table, pad_id, model.device):
        logprobs[places] = completion_logprobs(model, sequences).double().sum(-1).cpu()
        done += len(places)
        context.ledger.add(flops=cost.forward(*sequences.shape, sequences.tokens))
        context.progress(done, len(table), "completions")
    table[KEYS].assign(ref_logp=logprobs).to_parquet(context.path / "logprobs.parquet")


def with_reference(pairs: pd.DataFrame, logprobs: pd.DataFrame) -> pd.DataFrame:
    """`pairs` with ref_chosen_logps and ref_rejected_logps (nats), TRL's names.

    Raises:
        ValueError: a completion of a pair has no log-prob.
    """
    known = logprobs.set_index(KEYS)["ref_logp"]
    result = pairs.copy()
    for side in ("chosen", "rejected"):
        keys = pd.MultiIndex.from_frame(pairs[["prompt_id", f"{side}_sample"]], names=KEYS)
        result[f"ref_{side}_logps"] = known.reindex(keys).to_numpy()
    if result[["ref_chosen_logps", "ref_rejected_logps"]].isna().any(axis=None):
        raise ValueError("reference log-probs do not cover all completions of the pairs")
    return result
