"""Completions of many prompts as a table, in batches, cost booked and progress shown."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import Sequences, completion_logprobs, pack, target_logits
from pipelines.shared.sampling import Samples, greedy, keyed_uniforms, sample
from pipelines.shared.steps import Context

SAMPLER_TOLERANCE = 1e-3  # nats
LOW_PRECISION_TOLERANCE = 0.3  # as of PPO's first ratio: bf16 has steps of 0.125 at logits of 16
BATCH = 256  # sequences; a result does not depend on it beyond float rounding


def packed_batches(
    table: pd.DataFrame, pad_id: int, device: torch.device, size: int = BATCH
) -> Iterator[tuple[np.ndarray, Sequences]]:
    """Padded batches of a table of completions (prompt_ids, completion_ids), each with the places
    of its rows in the table.

    Rows of like length go together, the longest first: little of a batch is padding, and what does
    not fit into memory shows at once.
    """
    prompts, completions = table["prompt_ids"].tolist(), table["completion_ids"].tolist()
    longest_first = [
        -np.fromiter(map(len, side), np.int32, len(side)) for side in (completions, prompts)
    ]
    order = np.lexsort(longest_first)  # by prompt, then by completion
    for start in range(0, len(order), size):
        places = order[start : start + size]
        chosen, written = ([side[place] for place in places] for side in (prompts, completions))
        yield places, pack(chosen, written, pad_id, device)


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
        temperature: 0 takes the likeliest token at each step, and then one completion is all there
            is of a prompt.
        stream: keys the sampling noise together with `seed`.

    Returns:
        one row per completion: prompt_id, prompt, prompt_ids, sample, completion (text without
        EOS), completion_ids, finished, logp (nats, as sampled).

    Raises:
        ValueError: several samples at temperature 0.
    """
    if temperature == 0 and samples != 1:
        raise ValueError(f"{samples} samples of a prompt at temperature 0 are all the same: take 1")
    cost = ModelCost.of(model)
    context.ledger.network("policy", model)
    rows = prompts.loc[prompts.index.repeat(samples)].reset_index(drop=True)
    rows["sample"] = rows.groupby("prompt_id", sort=False).cumcount()
    noise = keyed_uniforms(seed, stream, range(len(rows)), max_new_tokens)
    special: Any = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    parts: dict[str, list] = {"completion_ids": [], "finished": [], "logp": []}
    for start in range(0, len(rows), BATCH):
        batch = rows["prompt_ids"].iloc[start : start + BATCH].tolist()
        with context.ledger.phase("sampling"):
            if temperature == 0:
                drawn = greedy(model, batch, max_new_tokens, **special)
            else:
                own = noise[start : start + BATCH]
                drawn = sample(model, batch, own, temperature=temperature, **special)
            context.ledger.add(
                flops=cost.decode(drawn.sequences.prompt_width, drawn.rows),
                tokens_generated=drawn.sequences.tokens,
            )
        if start == 0:
            check_sampler(model, drawn, temperature, context.ledger)
        parts["completion_ids"] += drawn.completions()
        parts["finished"] += drawn.finished.tolist()
        parts["logp"] += drawn.logprobs.double().sum(-1).tolist()
        context.progress(start + len(batch), len(rows), "completions")
    table = rows.assign(**parts)
    table["completion"] = tokenizer.batch_decode(
        table["completion_ids"].tolist(), skip_special_tokens=True
    )
    return table


def check_sampler(
    model: PreTrainedModel,
    drawn: Samples,
    temperature: float,
    ledger: Ledger,
    tolerance: float = SAMPLER_TOLERANCE,
) -> None:
    """Hold the sampled log-probs against a full forward pass; at temperature 0, the tokens' rank.

    Args:
        ledger: where the pass is booked, under the phase `check`.
        tolerance: nats a token; `LOW_PRECISION_TOLERANCE` where products are in bf16.

    Raises:
        RuntimeError: they differ, as for architectures whose state the cache does not hold.
    """
    with ledger.phase("check"):
        worst = _largest_difference(model, drawn, temperature)
        sequences = drawn.sequences
        ledger.add(flops=ModelCost.of(model).forward(*sequences.shape, sequences.tokens))
    if not worst < tolerance:
        raise RuntimeError(
            f"the sampler's log-probs differ from a full forward pass by {worst:.2e} nats: "
            f"{type(model).__name__} does not decode from a static KV cache with left padding"
        )


def _largest_difference(model: PreTrainedModel, drawn: Samples, temperature: float) -> float:
    """Nats between the sampler and a full forward pass; at temperature 0, between the likeliest
    token and the one taken."""
    if temperature == 0:
        sequences, targets = drawn.sequences, drawn.sequences.targets
        logits = target_logits(model, sequences.model_inputs(), targets)
        taken = logits.gather(-1, sequences.input_ids[targets][:, None]).squeeze(-1)
        return float((logits.amax(-1) - taken).max())
    again = completion_logprobs(model, drawn.sequences, temperature)
    return float((again - drawn.logprobs).abs().max())
