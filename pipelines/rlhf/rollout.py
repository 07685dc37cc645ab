"""What a rollout phase leaves to the update, joined over batches and over processes.

Every process ends up with the whole rollout (token ids and a few numbers a token), so that
advantages, minibatches and metrics are those of one process, however many there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter

import torch
from torch.nn.functional import pad

from pipelines.rlhf.losses import masked_mean, masked_var
from pipelines.shared.logprobs import Sequences


@dataclass(frozen=True)
class Sampled:
    """Scored samples. B sequences, C completion columns.

    Attributes:
        logprobs, ref_logprobs: (B, C) nats, 0 at padding.
        values: (B, C + 1), before each completion token and after the last column.
        scores: (B,)
        finished: (B,) bool, True where the completion ended in EOS.
    """

    sequences: Sequences
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor
    finished: torch.Tensor

    @property
    def kl(self) -> torch.Tensor:
        """Log-ratio to the reference, summed over a completion's tokens: (B,) nats."""
        mask = self.sequences.completion_mask
        return ((self.logprobs - self.ref_logprobs) * mask).sum(-1)

    def widened(self, prompt: int, completion: int, pad_id: int) -> "Sampled":
        """The same with so many prompt and completion columns."""
        width, columns = self.sequences.prompt_width, self.logprobs.shape[1]
        left, right = prompt - width, completion - columns
        if left == right == 0:
            return self
        sequences = replace(
            self.sequences,
            input_ids=pad(self.sequences.input_ids, (left, right), value=pad_id),
            attention_mask=pad(self.sequences.attention_mask, (left, right)),
            prompt_width=prompt,
        )
        grown = {name: pad(getattr(self, name), (0, right)) for name in TOKENWISE}
        return replace(self, sequences=sequences, **grown)

    def shape(self) -> tuple[int, int]:
        return self.sequences.prompt_width, self.logprobs.shape[1]


TOKENWISE = ("logprobs", "ref_logprobs", "values")


def joined(parts: Sequence[Sampled], pad_id: int) -> Sampled:
    """Samples of several batches as one."""
    prompt, completion = (max(sizes) for sizes in zip(*(p.shape() for p in parts), strict=True))
    parts = [part.widened(prompt, completion, pad_id) for part in parts]
    return _combine(parts[0], lambda get: torch.cat([get(part) for part in parts]))


def gathered(
    sampled: Sampled, gather: Callable[[torch.Tensor], torch.Tensor], pad_id: int
) -> Sampled:
    """Samples of all processes, in their order, on each of them; `gather` is accelerate's."""
    own = torch.tensor([sampled.shape()], device=sampled.scores.device)
    prompt, completion = gather(own).amax(0).tolist()
    wide = sampled.widened(prompt, completion, pad_id)
    return _combine(wide, lambda get: gather(get(wide).contiguous()))


def _combine(
    like: Sampled, combine: Callable[[Callable[[Sampled], torch.Tensor]], torch.Tensor]
) -> Sampled:
    sequences = replace(
        like.sequences,
        input_ids=combine(attrgetter("sequences.input_ids")),
        attention_mask=combine(attrgetter("sequences.attention_mask")),
    )
    rest = {
        field.name: combine(attrgetter(field.name))
        for field in fields(like)
        if field.name != "sequences"
    }
    return replace(like, sequences=sequences, **rest)


@dataclass(frozen=True)
class Rollout:
    """A rollout, or rows of it, as the update needs it.

    Attributes:
        logprobs, ref_logprobs, advantages: (B, C)
        rewards, values, returns, value_mask: (B, C), or (B, C + 1) where the state after the end
            has a value; values and returns are in the critic's units.
        scores: (B,)
        kl_weight: of the KL in the loss; 0 where it is in the reward.
        update: number of the rollout phase.
        first: the first minibatch of its update, where the ratio must be 1.
        tokens, states: how many real tokens and values the whole minibatch has, of which this may
            be a part.
    """

    sequences: Sequences
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    rewards: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    value_mask: torch.Tensor
    scores: torch.Tensor
    kl_weight: float
    update: int
    first: bool = False
    tokens: int = 0
    states: int = 0

    @property
    def mask(self) -> torch.Tensor:
        return self.sequences.completion_mask

    def rows(self, index: torch.Tensor) -> "Rollout":
        """The chosen sequences."""
        tensors = {
            field.name: getattr(self, field.name)[index]
            for field in fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor)
        }
        return replace(self, sequences=self.sequences.rows(index), **tensors)

    def minibatch(self, index: torch.Tensor, first: bool) -> "Rollout":
        """The chosen sequences as a minibatch, whose tokens the losses are averaged over."""
        chosen = self.rows(index)
        tokens, states = int(chosen.mask.sum()), int(chosen.value_mask.sum())
        return replace(chosen, first=first, tokens=tokens, states=states)


@dataclass
class RunningMoments:
    """Mean and standard deviation of all that was seen (Chan et al. 1979), for the critic."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: torch.Tensor, mask: torch.Tensor) -> None:
        """Take the real entries of (B, C) into account."""
        count = float(mask.sum())
        mean = float(masked_mean(values.double(), mask))
        squares = float(masked_var(values.double(), mask)) * (count - 1)
        total, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    @property
    def std(self) -> float:
        """1 before anything was seen."""
        return max((self.squares / (self.count - 1)) ** 0.5, 1e-8) if self.count > 1 else 1.0
