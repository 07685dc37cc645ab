"""Prompts with completions in one padded batch, and the log-probabilities of the completions.

Layout: prompts padded on the left, completions on the right, so that every completion starts at the
same column and the LM head runs on completion positions only. B sequences, P prompt columns, C
completion columns, T = P + C, V vocabulary entries.
"""

import itertools
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from pipelines.shared.reading import Places, as_mask, head_at, mlp_at

PRODUCTS = ("MmBackward0", "AddmmBackward0", "OneDNNProductBackward")
BLOCK = 2**19  # entries: 2 MiB in fp32, about a core's share of the cache


@dataclass(frozen=True)
class Sequences:
    """A padded batch.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 at real tokens.
        prompt_width: P.
        skip_padding: position ids count real tokens only; False counts the padding too, which is
            wrong for left-padded prompts (kept to measure what it costs).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompt_width: int
    skip_padding: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)"""
        batch, length = self.input_ids.shape
        return batch, length

    @property
    def completion_ids(self) -> torch.Tensor:
        """(B, C)"""
        return self.input_ids[:, self.prompt_width :]

    @property
    def completion_mask(self) -> torch.Tensor:
        """(B, C) bool, True at real completion tokens, the EOS included."""
        return self.attention_mask[:, self.prompt_width :].bool()

    @property
    def targets(self) -> torch.Tensor:
        """(B, T) bool, True at real completion tokens."""
        return self.without_prompts().attention_mask.bool()

    @property
    def tokens(self) -> int:
        """Real completion tokens in all."""
        return int(self.completion_mask.sum())

    @property
    def last(self) -> torch.Tensor:
        """(B,) column of each sequence's last real token."""
        return self.prompt_width + self.completion_mask.sum(-1) - 1

    @property
    def from_prompts_end(self) -> torch.Tensor:
        """(B, T) bool, True from the prompts' last column on: where a completion's token can be
        predicted, and after its end."""
        columns = torch.arange(self.shape[1], device=self.input_ids.device)
        return (columns >= self.prompt_width - 1).expand(self.shape)

    def unpacked(self) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of each prompt and of each completion, without the padding."""
        width = self.prompt_width
        sides = slice(None, width), slice(width, None)
        prompts, completions = (
            [
                list(itertools.compress(*row))
                for row in zip(
                    self.input_ids[:, side].tolist(),
                    self.attention_mask[:, side].tolist(),
                    strict=True,
                )
            ]
            for side in sides
        )
        return prompts, completions

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of a model's forward pass; positions skip the padding."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": positions(self.attention_mask, self.skip_padding),
        }

    def rows(self, index: torch.Tensor | slice) -> "Sequences":
        """The chosen sequences, in the same layout."""
        return replace(
            self, input_ids=self.input_ids[index], attention_mask=self.attention_mask[index]
        )

    def without_prompts(self) -> "Sequences":
        """The completions alone, in the same layout: the prompts are masked as padding."""
        mask = self.attention_mask.clone()
        mask[:, : self.prompt_width] = 0
        return replace(self, attention_mask=mask)


def positions(attention_mask: torch.Tensor, skip_padding: bool = True) -> torch.Tensor:
    """Position ids that count real tokens only; padding gets 0 (or else is counted as well)."""
    counted = attention_mask if skip_padding else torch.ones_like(attention_mask)
    return (counted.cumsum(-1) - 1).clamp(min=0)


def pack(
    prompts: SequenceOf[SequenceOf[int]],
    completions: SequenceOf[SequenceOf[int]],
    pad_id: int,
    device: str | torch.device = "cpu",
) -> Sequences:
    """Put prompts and completions (token ids, unpadded, none empty) into one batch."""
    width = max(len(ids) for ids in prompts)
    length = max(len(ids) for ids in completions)
    rows, mask = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        left, right = width - len(prompt), length - len(completion)
        rows.append([pad_id] * left + list(prompt) + list(completion) + [pad_id] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
    return Sequences(
        torch.tensor(rows, device=device, dtype=torch.long),
        torch.tensor(mask, device=device, dtype=torch.long),
        width,
    )


def logits_at(
    model: Any,
    inputs: Mapping[str, Any],
    places: Places,
    temperature: float = 1.0,
    also: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits at some positions, divided by the temperature: (N, V) fp32, row by row.

    The LM head, the dearest matrix of a small model, and the last block's MLP run there and nowhere
    else: neither on prompts nor on padding.

    Args:
        inputs: arguments of the model's forward pass, `input_ids` (B, T) among them.
        places: N positions.
        also: (B, T) bool, further positions whose last hidden state somebody reads.
    """
    shape = inputs["input_ids"].shape
    states = as_mask(places, shape) if also is None else as_mask(places, shape) | also
    with mlp_at(model, states), head_at(model, places):
        logits = model(**inputs, use_cache=False).logits.float()
    return logits if temperature == 1.0 else logits / temperature


def target_logits(
    model: Any,
    inputs: Mapping[str, Any],
    targets: torch.Tensor,
    temperature: float = 1.0,
    also: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits that predict some tokens: (N, V) fp32, row by row.

    Args:
        targets: (B, T) bool, True at the N tokens; none of them in the first column.
        inputs, temperature, also: see `logits_at`.
    """
    before = torch.zeros_like(targets)
    before[:, :-1] = targets[:, 1:]
    return logits_at(model, inputs, before, temperature, also)


def target_logprobs(
    model: Any,
    inputs: Mapping[str, Any],
    targets: torch.Tensor,
    temperature: float = 1.0,
    also: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probabilities (nats) of the tokens that `targets` marks, 0 elsewhere: (B, T).

    Args: see `target_logits`.
    """
    logits = target_logits(model, inputs, targets, temperature, also)
    return scattered(spent_logprobs(logits, inputs["input_ids"][targets]), targets)


def spent_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """`gather_logprobs` of logits that nobody else reads."""
    # A matrix product does not look at its result again; other operations (tanh) may.
    product = type(logits.grad_fn).__name__ in PRODUCTS
    return gather_logprobs(logits, ids, overwrite=product or not logits.requires_grad)


def scattered(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`values` (N,) where a mask is True, row by row, and 0 elsewhere: of the mask's shape."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def blocks(logits: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of (N, V) logits that are worked on one after another.

    On a CPU each has about `BLOCK` entries, so that what one operation leaves in the cache the next
    finds there; elsewhere all rows are one block.
    """
    rows, entries = logits.shape
    size = max(1, BLOCK // entries) if logits.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, size):
        yield slice(start, start + size)


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(logits)[ids], with what its gradient needs kept where the logits were.

    d/dlogits = g (onehot(ids) - softmax(logits)). Composed of torch's gather and logsumexp it takes
    about three times the passes over (N, V) and as much more memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor, overwrite: bool) -> torch.Tensor:
        chosen = logits.gather(1, ids[:, None]).squeeze(1)
        highest, total = chosen.new_empty(2, len(ids))
        powers = logits if overwrite else None  # exp(logits - highest)
        if powers is None and ctx.needs_input_grad[0]:
            powers = torch.empty_like(logits)
        for rows in blocks(logits):
            torch.amax(logits[rows], -1, out=highest[rows])
            own = None if powers is None else powers[rows]
            torch.sum(
                torch.sub(logits[rows], highest[rows, None], out=own).exp_(), -1, out=total[rows]
            )
        ctx.save_for_backward(powers, total, ids)
        ctx.overwrite, ctx.spent = overwrite, False
        return chosen - highest - total.log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if ctx.spent:
            raise RuntimeError("the logits were overwritten by the first backward pass")
        powers, total, ids = ctx.saved_tensors
        ctx.spent = ctx.overwrite
        result = powers if ctx.overwrite else torch.empty_like(powers)
        factor = (-gradient / total)[:, None]
        for rows in blocks(powers):
            torch.mul(powers[rows], factor[rows], out=result[rows])
        return result.scatter_add_(1, ids[:, None], gradient[:, None]), None, None


def gather_logprobs(
    logits: torch.Tensor, ids: torch.Tensor, overwrite: bool = False
) -> torch.Tensor:
    """log softmax(logits)[ids], without the whole log-softmax: (N, V), (N,) -> (N,), nats.

    It can be differentiated once.

    Args:
        overwrite: nobody reads the logits any more, the operation that made them included: what the
            gradient needs, and then the gradient, goes where they were.
    """
    result: Any = _TokenLogprobs.apply(logits, ids, overwrite)
    return result


def completion_logprobs(
    model: PreTrainedModel,
    sequences: Sequences,
    temperature: float = 1.0,
    also: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probability (nats) of each completion token, 0 at padding: (B, C).

    Args:
        also: see `logits_at`.
    """
    inputs, targets = sequences.model_inputs(), sequences.targets
    logprobs = target_logprobs(model, inputs, targets, temperature, also)
    return logprobs[:, sequences.prompt_width :]
