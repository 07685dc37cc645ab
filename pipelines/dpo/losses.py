"""DPO's arithmetic as pure functions. B pairs."""

import torch

from pipelines.shared.losses import bradley_terry_loss


def implicit_reward(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, beta: float
) -> torch.Tensor:
    """beta (log pi(y|x) - log ref(y|x)), (B,): the reward for which pi is optimal, up to a function
    of the prompt (Rafailov et al. 2023, eq. 5)."""
    return beta * (logprobs - ref_logprobs)


def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, preference: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Bradley-Terry on implicit rewards (Rafailov et al. 2023, eq. 7): (B,) nats.

    Args:
        chosen, rejected: (B,) implicit rewards.
        preference: probability that "chosen" is the better one; 1 for a hard label, less for a soft
            one (Mitchell 2023, conservative DPO).
    """
    return bradley_terry_loss(chosen - rejected, preference)
