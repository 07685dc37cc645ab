"""A prompt's tokens computed once for both of its completions (Wang and Hegde 2024).

The two sequences of a pair, prompt + chosen and prompt + rejected, become one row

    prompt | chosen | rejected

in which each completion attends to the prompt and to itself and goes on counting positions from the
prompt's end. The log-probabilities are those of two sequences; the prompt's keys, values and MLPs
are computed once. B pairs, T columns as given, R columns of the rows, N completion tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch

from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import logits_at, scattered, spent_logprobs
from pipelines.shared.reading import unwrapped

# Decoders that take any attention mask and any positions; tests/shared/test_shared_prompts.py holds
# each of them to the log-probs of separate sequences.
FAMILIES = frozenset(
    {
        *("gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "phi", "phi3", "gemma"),
        *("olmo2", "smollm3", "granite", "starcoder2", "stablelm", "cohere"),
    }
)
PROMPT, CHOSEN, REJECTED, PADDING = range(4)


@dataclass(frozen=True)
class SharedPrompts:
    """A batch of B pairs with each prompt once.

    Attributes:
        input_ids, positions: (B, R) int64.
        part: (B, R) which part of its row a token belongs to: PROMPT, CHOSEN, REJECTED, PADDING.
        before: rows and columns (N,) of what predicts each completion token, all the chosen ones
            first; the last token of a prompt is there twice.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    part: torch.Tensor
    before: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, input_ids: torch.Tensor, targets: torch.Tensor) -> "SharedPrompts":
        """Rows of pairs.

        Args:
            input_ids: (2B, T), padded on the right; row n and row B + n begin with the same prompt.
            targets: (2B, T) bool, True at completion tokens, of which every row has one.
        """
        prompts = targets.int().argmax(-1).chunk(2)[0]  # (B,) tokens
        chosen, rejected = targets.sum(-1).chunk(2)
        pairs, columns = len(prompts), torch.arange(input_ids.shape[1], device=input_ids.device)
        lengths = prompts + chosen + rejected
        place = torch.arange(int(lengths.max()), device=input_ids.device).expand(pairs, -1)
        second = place >= (prompts + chosen)[:, None]
        # Where the token stood in its own sequence, which is its position, too.
        column = torch.where(second, place - chosen[:, None], place)
        padding = place >= lengths[:, None]
        column = column.masked_fill(padding, 0)
        row = torch.arange(pairs, device=input_ids.device)[:, None] + pairs * second
        part = torch.where(second, REJECTED, CHOSEN).masked_fill(place < prompts[:, None], PROMPT)
        # From a target at column t of a sequence to what predicts it in the row: t - 1, and behind
        # the chosen completion for the rejected one, whose first token the prompt predicts.
        shift = torch.where(columns > prompts[:, None], chosen[:, None], 0)
        predictor = torch.cat([columns.expand(pairs, -1) - 1, columns + shift - 1])
        rows, where = targets.nonzero(as_tuple=True)
        return cls(
            input_ids[row, column],
            column,
            part.masked_fill(padding, PADDING),
            (rows % pairs, predictor[rows, where]),
        )

    def seen(self) -> torch.Tensor:
        """(B, R, R) bool, True where a token (axis 1) attends to another (axis 2)."""
        size = self.part.shape[1]
        asks, asked = self.part[:, :, None], self.part[:, None, :]
        earlier = torch.ones(size, size, dtype=torch.bool, device=self.part.device).tril()
        return earlier & ((asked == PROMPT) | (asked == asks))  # padding sees at least itself

    def model_inputs(self, model: Any) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward pass."""
        mask, inner = self.seen()[:, None], unwrapped(model)
        if inner.config._attn_implementation == "eager":  # adds the mask to the scores
            lowest = torch.finfo(inner.dtype).min
            mask = torch.zeros_like(mask, dtype=inner.dtype).masked_fill_(~mask, lowest)
        return {
            "input_ids": self.input_ids,
            "attention_mask": mask,
            "position_ids": self.positions,
        }


def takes_any_mask(model: Any) -> bool:
    """Whether a model can have several sequences in one row: it is of `FAMILIES`, every layer
    attends to everything, and its attention is one that takes a mask of two axes."""
    config = unwrapped(model).config
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config.model_type in FAMILIES
        and layers == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and getattr(config, "is_causal", True)
        and not getattr(config, "use_bidirectional_attention", False)
        and config._attn_implementation in ("sdpa", "eager")
    )


def shared_shape(
    model: Any, cost: ModelCost, input_ids: torch.Tensor, targets: torch.Tensor
) -> tuple[int, int] | None:
    """(B, R) of a batch of pairs with shared prompts, where the model and the batch allow it and it
    is cheaper.

    It is not with long completions of short prompts, in whose attention each completion passes over
    the other. None, too, where a completion is empty or prompts of a pair differ (cut off, say).

    Args:
        input_ids, targets: see `SharedPrompts.of`.
    """
    if not takes_any_mask(model):
        return None
    sequences, columns = targets.shape
    pairs, lengths, prompts = sequences // 2, targets.sum(-1), targets.int().argmax(-1)
    beyond = torch.arange(columns, device=targets.device) >= prompts[:pairs, None]
    alike = ((input_ids[:pairs] == input_ids[pairs:]) | beyond).all()
    if not bool(lengths.all() & (prompts[:pairs] == prompts[pairs:]).all() & alike):
        return None
    longest = int((prompts[:pairs] + lengths[:pairs] + lengths[pairs:]).max())
    cheaper = cost.forward(pairs, longest, 0) < cost.forward(sequences, columns, 0)
    return (pairs, longest) if cheaper else None


def shared_logprobs(model: Any, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probs (nats) of the completion tokens of B pairs, 0 elsewhere: (2B, T).

    Args: see `SharedPrompts.of`.
    """
    rows = SharedPrompts.of(input_ids, targets)
    logits = logits_at(model, rows.model_inputs(model), rows.before)
    return scattered(spent_logprobs(logits, input_ids[targets]), targets)
