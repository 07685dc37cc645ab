"""The likelihood of comparisons: what the reward model is trained by, and DPO's policy."""

import torch
from torch.nn import functional


def bradley_terry_loss(
    margin: torch.Tensor, preference: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Negative log-likelihood of comparisons (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1).

    L = -p log sigmoid(m) - (1 - p) log sigmoid(-m),  m = r(x, y) - r(x, y')

    Args:
        margin: (B,) difference of the rewards.
        preference: probability p that y is preferred; 1 for a hard label.

    Returns:
        (B,) nats. At m = 0 it is ln 2; its minimum over m is at sigmoid(m) = p.
    """
    return -preference * functional.logsigmoid(margin) - (1 - preference) * functional.logsigmoid(
        -margin
    )
