"""Fast batched sampling from a Transformers causal LM with a KV cache.

A preallocated KV cache, inverse-CDF sampling, and noise keyed by (seed, stream, row, token): what a
row samples depends neither on the batch it is in nor on the rows beside it (up to float rounding).
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from pipelines.shared.logprobs import Sequences, positions

CDF_BLOCK = 64  # entries
LOOK_EVERY = 8  # steps; on an accelerator, which has to be waited for to see who is finished
KEPT_WHOLE = 0.9  # a smaller share of rows still going is worth the copy of their cache


@dataclass(frozen=True)
class Samples:
    """Sampled completions.

    Attributes:
        sequences: prompts and completions, padded.
        logprobs: (B, C) nats, of the distribution sampled from (temperature included), 0 at
            padding, and 0 throughout where decoding is greedy: that distribution is one token.
        finished: (B,) bool, True where the completion ended in EOS.
        rows: how many rows were in the batch at each step.
    """

    sequences: Sequences
    logprobs: torch.Tensor
    finished: torch.Tensor
    rows: tuple[int, ...]

    def completions(self) -> list[list[int]]:
        """Token ids of each completion, EOS included, padding not."""
        return self.sequences.unpacked()[1]


def keyed_uniforms(seed: int, stream: int, rows: SequenceOf[int], tokens: int) -> torch.Tensor:
    """Uniform noise in [0, 1) for each (seed, stream, row, token): (rows, tokens) fp64.

    Philox is counter-based (Salmon et al. 2011), so any row can be drawn alone. `stream` tells
    apart uses of one seed, such as the updates of a PPO run.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    noise = [
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, row, 0])).random(tokens)
        for row in rows
    ]
    return torch.from_numpy(np.stack(noise))


def inverse_cdf(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample one index a row: the first whose cumulative probability exceeds u times the total.
    (B, V), (B,) -> (B,).

    First among the sums of blocks of `CDF_BLOCK` entries, then inside the block: the running sum
    over all of V would be the dearest part of sampling.

    An entry of probability 0 is never drawn.
    """
    size = min(CDF_BLOCK, probabilities.shape[1])
    whole = probabilities.shape[1] // size * size
    sums = probabilities[:, :whole].unflatten(1, (-1, size)).sum(-1)
    if whole < probabilities.shape[1]:
        sums = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True)], 1)
    cdf = sums.cumsum(-1)
    block, before = first_above(cdf, uniforms.to(cdf.dtype) * cdf[:, -1])
    places = block[:, None] * size + torch.arange(size, device=block.device)
    beyond = places >= probabilities.shape[1]  # of the last block, which may be shorter
    inside = probabilities.gather(1, places.masked_fill(beyond, 0)).masked_fill(beyond, 0.0)
    place, _ = first_above(inside.cumsum(-1), uniforms.to(cdf.dtype) * cdf[:, -1] - before)
    return block * size + place


def first_above(cdf: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first index at which a rising row exceeds its target, and the row's value before it.

    Args:
        cdf: (B, N), with a last value above 0. target: (B,); one that rounding put at or above the
            row's last value counts as just below it, so that the index is of an entry that rises.
    """
    last = cdf[:, -1]
    target = torch.minimum(target, torch.nextafter(last, -last))
    index = torch.searchsorted(cdf, target[:, None], right=True)
    before = torch.nn.functional.pad(cdf, (1, 0)).gather(1, index)
    return index.squeeze(1), before.squeeze(1)


def context_length(model: PreTrainedModel) -> int | None:
    """Positions that the model has, or None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def truncated(probabilities: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """`probabilities` (B, V) without all but the `top_k` likeliest tokens (0: keep all) and all
    beyond the fewest that hold a share `top_p` (Holtzman et al. 2020); not normalised.
    """
    if top_k == 0 and top_p == 1.0:
        return probabilities
    ranked, order = probabilities.sort(-1, descending=True)
    keep = ranked.cumsum(-1) - ranked < top_p  # what comes before a token holds less than top_p
    if top_k:
        keep[:, top_k:] = False
    return torch.zeros_like(probabilities).scatter(-1, order, ranked * keep)


def sample(
    model: PreTrainedModel,
    prompts: SequenceOf[SequenceOf[int]],
    uniforms: torch.Tensor,
    *,
    eos_id: int | None,
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    skip_padding: bool = True,
) -> Samples:
    """Sample a completion for each prompt, until EOS or as many tokens as `uniforms` has columns.

    Args:
        model: in evaluation mode; its logits are divided by `temperature`.
        prompts: token ids, none empty.
        uniforms: (B, C) noise in [0, 1); see `keyed_uniforms`.
        eos_id: None goes on to the last column whatever comes.
        temperature: above 0; for 0 there is `greedy`.
        top_k, top_p: see `truncated`. The log-probs returned are of the whole distribution all the
            same: training that takes them for those sampled from is off-policy.
        skip_padding: see `Sequences`.

    Raises:
        ValueError: PAD is EOS, an empty prompt, more tokens than the model has positions for, or
            not one row of noise for each prompt.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if uniforms.shape[0] != len(prompts):
        raise ValueError(f"{uniforms.shape[0]} rows of noise for {len(prompts)} prompts")
    uniforms = uniforms.to(model.device)

    def draw(
        logits: torch.Tensor, step: int, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = logits if temperature == 1.0 else logits / temperature
        # The log of a softmax is exact enough: what is drawn never has a probability near 0.
        probabilities = scaled.softmax(-1)
        drawn = inverse_cdf(truncated(probabilities, top_k, top_p), uniforms[rows, step])
        return drawn, probabilities.gather(1, drawn[:, None]).squeeze(1).log()

    return _decode(model, prompts, uniforms.shape[1], draw, eos_id, pad_id, skip_padding)


def greedy(
    model: PreTrainedModel,
    prompts: SequenceOf[SequenceOf[int]],
    max_new_tokens: int,
    *,
    eos_id: int | None,
    pad_id: int,
    skip_padding: bool = True,
) -> Samples:
    """The likeliest token at each step: the limit of `sample` at temperature 0, without noise.

    Of equally likely tokens the first is taken. The log-probs returned are 0, those of a
    distribution with one outcome; `Raises` and the other arguments are as in `sample`.
    """

    def take(
        logits: torch.Tensor, step: int, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return logits.argmax(-1), torch.zeros(len(logits), device=logits.device)

    return _decode(model, prompts, max_new_tokens, take, eos_id, pad_id, skip_padding)


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one attention layer in tensors that are as long as they will ever get.

    A token is written in place, where DynamicLayer copies all that came before it; and attention
    reads only what is there, where StaticLayer has it read to the end.

    Args:
        capacity: tokens.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_empty((*states.shape[:2], self.capacity, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        assert self.keys is not None and self.values is not None
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length


def preallocated_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """An empty KV cache for so many tokens a row. Layers that hold no more than a window, or a
    state, are Transformers' own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


@torch.no_grad()
def _decode(
    model: PreTrainedModel,
    prompts: SequenceOf[SequenceOf[int]],
    steps: int,
    choose: Callable[[torch.Tensor, int, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    eos_id: int | None,
    pad_id: int,
    skip_padding: bool,
) -> Samples:
    """Complete prompts token by token from a preallocated KV cache. Finished rows leave the batch.

    Args:
        choose: from the logits (b, V) fp32, the step's number and the numbers (b,) of the rows that
            are still in the batch, to the tokens (b,) and their log-probs (b,).
    """
    if pad_id == eos_id:
        raise ValueError(
            "PAD must differ from EOS, or finished completions cannot be told from cut-off ones"
        )
    if not all(len(ids) for ids in prompts):
        raise ValueError("an empty prompt cannot be completed")
    device, batch = model.device, len(prompts)
    width = max(len(ids) for ids in prompts)
    limit = context_length(model)
    if limit is not None and width + steps > limit:
        raise ValueError(
            f"{width} prompt + {steps} new tokens exceed the model's {limit} positions"
        )
    ids = torch.full((batch, width + steps), pad_id, dtype=torch.long)
    mask = torch.zeros((batch, width + steps), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) : width] = torch.tensor(prompt)
        mask[row, width - len(prompt) : width] = 1
    # A mask is needed for the prompts' padding alone: nobody reads on from a row that is finished.
    attended = None if mask[:, :width].all() else mask.clone().to(device)
    if attended is not None:
        attended[:, width:] = 1
    ids, mask = ids.to(device), mask.to(device)
    logprobs = torch.zeros((batch, steps), device=device)
    rows = torch.arange(batch, device=device)  # those still in the batch
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    cache = preallocated_cache(model, width + steps)
    position = positions(mask, skip_padding)[:, :width]
    tokens, counts = ids[:, :width], []
    for step in range(steps):
        now = width + step
        counts.append(len(rows))
        logits = model(
            input_ids=tokens,
            attention_mask=None if attended is None else attended[rows, :now],
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        drawn, logp = choose(logits.float(), step, rows)
        over = finished[rows]
        tokens = drawn.masked_fill(over, pad_id)[:, None]
        ids[rows, now], mask[rows, now] = tokens[:, 0], (~over).long()
        logprobs[rows, step] = logp.masked_fill(over, 0.0)
        position = position[:, -1:] + 1
        if eos_id is None:
            continue
        finished[rows] = over | (drawn == eos_id)
        if device.type != "cpu" and (step + 1) % LOOK_EVERY:
            continue
        going = (~finished[rows]).nonzero().squeeze(1)
        if not len(going):
            break
        if len(going) <= KEPT_WHOLE * len(rows):
            cache.reorder_cache(cast(torch.LongTensor, going))
            rows, tokens, position = rows[going], tokens[going], position[going]
    longest = width + int(mask[:, width:].sum(1).max())
    sequences = Sequences(ids[:, :longest].clone(), mask[:, :longest].clone(), width, skip_padding)
    return Samples(sequences, logprobs[:, : longest - width].clone(), finished, tuple(counts))
