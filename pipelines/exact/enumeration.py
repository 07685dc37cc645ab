"""A model's exact log-probabilities and the exact, differentiable objective, by enumeration."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from pipelines.shared.logprobs import Sequences, completion_logprobs, pack

MASS_TOLERANCE = 1e-5  # of the probabilities' sum


def every_pair(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    device: str | torch.device = "cpu",
) -> Sequences:
    """Every completion of every prompt as one batch of X Y sequences, prompt by prompt."""
    rows = [(prompt, completion) for prompt in prompts for completion in completions]
    return pack([row[0] for row in rows], [row[1] for row in rows], pad_id, device)


def sequence_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
) -> torch.Tensor:
    """Log-probability of each completion of each prompt, (X, Y) nats, differentiable.

    Raises:
        ValueError: a prompt's probabilities do not sum to 1: there are other completions.
    """
    sequences = every_pair(prompts, completions, pad_id, model.device)
    logp = completion_logprobs(model, sequences).double().sum(-1).view(len(prompts), -1)
    mass = logp.detach().exp().sum(-1)
    if not bool(((mass - 1).abs() < MASS_TOLERANCE).all()):
        raise ValueError(f"the completions have probabilities {mass.tolist()} in all, not 1")
    return logp


def objective(
    logp: torch.Tensor, ref_logp: torch.Tensor, rewards: torch.Tensor, beta: float
) -> torch.Tensor:
    """J(pi) of (X, Y) log-probabilities: its gradient is what RLHF's sampled gradient estimates."""
    return (logp.exp() * (rewards - beta * (logp - ref_logp))).sum(-1).mean()
