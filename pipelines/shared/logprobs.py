"""Prompts with completions in one padded batch, and the log-probabilities of the completions.

Layout: prompts padded on the left, completions on the right, so that every completion starts at the
same column and the LM head runs on completion positions only. B sequences, P prompt columns, C
completion columns, T = P + C, V vocabulary entries.
"""

import inspect
import itertools
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel


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
    def completion_ids(self) -> torch.Tensor:
        """(B, C)"""
        return self.input_ids[:, self.prompt_width :]

    @property
    def completion_mask(self) -> torch.Tensor:
        """(B, C) bool, True at real completion tokens, the EOS included."""
        return self.attention_mask[:, self.prompt_width :].bool()

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


def base_model(model: Any) -> Any:
    """The Transformers model below a PEFT adapter, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def completion_logits(
    model: PreTrainedModel, sequences: Sequences, temperature: float = 1.0
) -> torch.Tensor:
    """Logits that predict each completion token, divided by the temperature: (B, C, V) fp32."""
    keep = sequences.input_ids.shape[1] - sequences.prompt_width + 1
    inputs = sequences.model_inputs()
    if "logits_to_keep" in inspect.signature(base_model(model).forward).parameters:
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, -keep:]
    return logits[:, :-1].float() / temperature


def gather_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[ids] without the full log-softmax: (B, C, V), (B, C) -> (B, C)."""
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)


def completion_logprobs(
    model: PreTrainedModel, sequences: Sequences, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probability (nats) of each completion token, 0 at padding: (B, C)."""
    logits = completion_logits(model, sequences, temperature)
    logprobs = gather_logprobs(logits, sequences.completion_ids)
    return logprobs.masked_fill(~sequences.completion_mask, 0.0)
