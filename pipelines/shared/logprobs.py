"""Prompts with completions in one padded batch, and the log-probabilities of the completions.

Layout: prompts padded on the left, completions on the right, so that every completion starts at the
same column and the LM head runs on completion positions only. B sequences, P prompt columns, C
completion columns, T = P + C, V vocabulary entries.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

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


def unwrapped(model: Any) -> Any:
    """The Transformers model below a PEFT adapter and what a Trainer wraps around for several
    devices, or `model` itself."""
    inner: Any = extract_model_from_parallel(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


@contextlib.contextmanager
def head_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Inside, the LM head computes these positions alone: a forward pass gives logits (N, V).

    A hook hands the head the hidden states of N positions in row-major order. So whatever a model
    does to its logits (scaling, soft caps) it still does itself.

    Args:
        positions: (B, T) bool, N of them True.

    Raises:
        ValueError: the model does not say which module its LM head is.
    """
    head = unwrapped(model).get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(unwrapped(model)).__name__} has no LM head of its own")
    hook = head.register_forward_pre_hook(
        lambda module, arguments: (arguments[0][positions], *arguments[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def target_logits(
    model: Any, inputs: Mapping[str, Any], targets: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Logits that predict some tokens, divided by the temperature: (N, V) fp32, row by row.

    The LM head, the dearest matrix of a small model, runs on the positions before these tokens and
    on no other: neither on prompts nor on padding.

    Args:
        inputs: arguments of the model's forward pass, `input_ids` (B, T) among them.
        targets: (B, T) bool, True at the N tokens; none of them in the first column.
    """
    before = torch.zeros_like(targets)
    before[:, :-1] = targets[:, 1:]
    with head_at(model, before):
        logits = model(**inputs, use_cache=False).logits.float()
    return logits if temperature == 1.0 else logits / temperature


def target_logprobs(
    model: Any, inputs: Mapping[str, Any], targets: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities (nats) of the tokens that `targets` marks, 0 elsewhere: (B, T).

    Args: see `target_logits`.
    """
    logits = target_logits(model, inputs, targets, temperature)
    # A matrix product does not look at its result again; a soft cap would.
    product = type(logits.grad_fn).__name__ in ("MmBackward0", "AddmmBackward0")
    ids = inputs["input_ids"][targets]
    return scattered(gather_logprobs(logits, ids, overwrite=product), targets)


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
    """log softmax(logits)[ids] with the gradient written once, block by block.

    d/dlogits = g (onehot(ids) - softmax(logits)). Composed of torch's gather and logsumexp it takes
    about three times the passes over (N, V) and as much more memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor, overwrite: bool) -> torch.Tensor:
        total = logits.new_empty(len(ids))
        for rows in blocks(logits):
            torch.logsumexp(logits[rows], -1, out=total[rows])
        ctx.save_for_backward(logits, total, ids)
        ctx.overwrite, ctx.spent = overwrite, False
        return logits.gather(1, ids[:, None]).squeeze(1) - total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if ctx.spent:
            raise RuntimeError("the logits were overwritten by the first backward pass")
        logits, total, ids = ctx.saved_tensors
        ctx.spent = ctx.overwrite
        result = logits if ctx.overwrite else torch.empty_like(logits)
        for rows in blocks(logits):
            part = torch.sub(logits[rows], total[rows, None], out=result[rows])
            part.exp_().mul_(-gradient[rows, None])
        return result.scatter_add_(1, ids[:, None], gradient[:, None]), None, None


def gather_logprobs(
    logits: torch.Tensor, ids: torch.Tensor, overwrite: bool = False
) -> torch.Tensor:
    """log softmax(logits)[ids], without the whole log-softmax: (N, V), (N,) -> (N,), nats.

    It can be differentiated once.

    Args:
        overwrite: the backward pass puts the gradient where the logits were, which nobody may read
            afterwards, the operation that made them included.
    """
    result: Any = _TokenLogprobs.apply(logits, ids, overwrite)
    return result


def completion_logprobs(
    model: PreTrainedModel, sequences: Sequences, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probability (nats) of each completion token, 0 at padding: (B, C)."""
    inputs, targets = sequences.model_inputs(), sequences.targets
    logprobs = target_logprobs(model, inputs, targets, temperature)
    return logprobs[:, sequences.prompt_width :]
