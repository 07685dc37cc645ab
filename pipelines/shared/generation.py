"""Completions of many prompts as a table, in batches, cost booked and progress shown."""

from collections.abc import Iterator

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import Sequences, completion_logprobs, pack
from pipelines.shared.sampling import Samples, keyed_uniforms, sample
from pipelines.shared.steps import Context

SAMPLER_TOLERANCE = 1e-3  # nats
BATCH = 256  # sequences; a result does not depend on it beyond float rounding


def packed_batches(
    table: pd.DataFrame, pad_id: int, device: torch.device, size: int = BATCH
) -> Iterator[tuple[pd.DataFrame, Sequences]]:
    """Rows of a table of completions (prompt_ids, completion_ids) with their padded batch."""
    for start in range(0, len(table), size):
        rows = table.iloc[start : start + size]
        prompts, completions = rows["prompt_ids"].tolist(), rows["completion_ids"].tolist()
        yield rows, pack(prompts, completions, pad_id, device)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: pd.DataFrame,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    stream: int,
    context: Context,
) -> pd.DataFrame:
    """`samples` completions of each prompt.

    Args:
        prompts: columns prompt_id, prompt, prompt_ids.
        stream: keys the sampling noise together with `seed`.

    Returns:
        one row per completion: prompt_id, prompt, prompt_ids, sample, completion (text without
        EOS), completion_ids, finished, logp (nats, as sampled).
    """
    cost = ModelCost.of(model)
    rows = prompts.loc[prompts.index.repeat(samples)].reset_index(drop=True)
    rows["sample"] = rows.groupby("prompt_id", sort=False).cumcount()
    noise = keyed_uniforms(seed, stream, range(len(rows)), max_new_tokens)
    parts: dict[str, list] = {"completion_ids": [], "finished": [], "logp": []}
    for start in range(0, len(rows), BATCH):
        batch = rows["prompt_ids"].iloc[start : start + BATCH].tolist()
        with context.ledger.phase("sampling"):
            drawn = sample(
                model,
                batch,
                noise[start : start + BATCH],
                eos_id=tokenizer.eos_token_id,
                pad_id=tokenizer.pad_token_id,
                temperature=temperature,
            )
            width, steps = drawn.sequences.prompt_width, drawn.logprobs.shape[1]
            if start == 0:
                check_sampler(model, drawn, temperature)
            context.ledger.add(
                flops=cost.decode(len(batch), width, steps),
                tokens_generated=int(drawn.sequences.completion_mask.sum()),
            )
        parts["completion_ids"] += drawn.completions()
        parts["finished"] += drawn.finished.tolist()
        parts["logp"] += drawn.logprobs.double().sum(-1).tolist()
        context.progress(start + len(batch), len(rows), "completions")
    table = rows.assign(**parts)
    table["completion"] = tokenizer.batch_decode(
        table["completion_ids"].tolist(), skip_special_tokens=True
    )
    return table


def check_sampler(model: PreTrainedModel, drawn: Samples, temperature: float) -> None:
    """Hold the sampled log-probs against a full forward pass.

    Raises:
        RuntimeError: they differ, as for architectures whose state the cache does not hold.
    """
    again = completion_logprobs(model, drawn.sequences, temperature)
    worst = float((again - drawn.logprobs).abs().max())
    if not worst < SAMPLER_TOLERANCE:
        raise RuntimeError(
            f"the sampler's log-probs differ from a full forward pass by {worst:.2e} nats: "
            f"{type(model).__name__} does not decode from a static KV cache with left padding"
        )
