"""Scores of completions: a reward model, Python reward functions, and the checks on both."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.shared.logprobs import Sequences
from pipelines.shared.models import rewards

# Called with prompts (as in the data set, before any cut), completions (text, or messages where the
# prompts are messages), completion_ids, and the data set's other columns; returns one number a
# completion.
RewardFunction = Callable[..., Sequence[float]]


class Scorer:
    """The weighted sum of a reward model's score and of reward functions.

    Args:
        reward_model: a sequence classifier with one output, or None.
        functions: as in TRL's trainers.
        weights: of the functions; None: 1 each. The reward model has weight 1.
    """

    def __init__(
        self,
        reward_model: PreTrainedModel | None,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None,
        tokenizer: PreTrainedTokenizerBase,
        reads_prompt: bool = True,
    ) -> None:
        if reward_model is None and not functions:
            raise ValueError(
                "give a reward_model, reward_funcs, or both: there is nothing to learn"
            )
        if weights is not None and len(weights) != len(functions):
            raise ValueError(
                f"reward_weights has {len(weights)} entries for {len(functions)} reward functions"
            )
        self.reward_model, self.functions, self.tokenizer = reward_model, functions, tokenizer
        self.weights = weights or [1.0] * len(functions)
        self.reads_prompt = reads_prompt

    @torch.no_grad()
    def __call__(
        self, sequences: Sequences, rows: Sequence[Mapping[str, Any]], indices: Sequence[int]
    ) -> torch.Tensor:
        """Scores (B,) fp32.

        Args:
            rows: the data set's row of each sequence.
            indices: and its number, for error messages.

        Raises:
            ValueError: a score is missing or not finite; the message names the sample.
        """
        total = torch.zeros(len(rows), device=sequences.input_ids.device)
        if self.reward_model is not None:
            read = sequences if self.reads_prompt else sequences.without_prompts()
            scores = rewards(self.reward_model, read).float()
            total += self._checked(scores, "the reward model", sequences, indices)
        if self.functions:
            given = self._arguments(sequences, rows)
        for function, weight in zip(self.functions, self.weights, strict=True):
            name = f"reward function {getattr(function, '__name__', type(function).__name__)}"
            with torch.autocast(total.device.type, enabled=False):  # ours is not the function's
                returned = function(**given)
            scores = as_scores(returned, len(rows), name)
            total += weight * self._checked(scores, name, sequences, indices).to(total)
        return total

    def _arguments(
        self, sequences: Sequences, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[Any]]:
        """What reward functions are called with: lists with an entry a sequence."""
        ids = [
            row[mask].tolist()
            for row, mask in zip(sequences.completion_ids, sequences.completion_mask, strict=True)
        ]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        prompts = [
            row["prompt"] if "prompt" in row else self.tokenizer.decode(row["prompt_ids"])
            for row in rows
        ]
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        return {**columns, "prompts": prompts, "completions": completions, "completion_ids": ids}

    def _checked(
        self, scores: torch.Tensor, name: str, sequences: Sequences, indices: Sequence[int]
    ) -> torch.Tensor:
        wrong = (~torch.isfinite(scores)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            ids = sequences.completion_ids[row][sequences.completion_mask[row]]
            raise ValueError(
                f"{name} gave {float(scores[row])} for prompt {indices[row]} of train_dataset and "
                f"the completion {self.tokenizer.decode(ids)[:60]!r}: a score must be finite"
            )
        return scores


def as_scores(values: Any, sequences: int, name: str) -> torch.Tensor:
    """What a reward function returned, as (B,) fp32; None inside it becomes NaN, to be named.

    Raises:
        ValueError: it is not one number for each sequence.
    """
    if values is None:
        raise ValueError(f"{name} returned None: it must return {sequences} numbers")
    if isinstance(values, torch.Tensor):
        if values.shape != (sequences,):
            raise ValueError(
                f"{name} returned shape {tuple(values.shape)} for {sequences} completions"
            )
        return values.float()
    values = list(values)
    if len(values) != sequences:
        raise ValueError(f"{name} returned {len(values)} scores for {sequences} completions")
    try:
        return torch.tensor([math.nan if value is None else float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} returned what is not a number: {error}") from None
