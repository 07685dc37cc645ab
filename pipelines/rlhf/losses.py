"""PPO's arithmetic as pure functions. B sequences, C completion tokens; masks: True where real."""

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens of a batch: (B, C), (B, C) -> ()."""
    return (values * mask).sum() / mask.sum()


def masked_var(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unbiased variance over the real tokens of a batch: (B, C), (B, C) -> ()."""
    centred = values - masked_mean(values, mask)
    return ((centred**2) * mask).sum() / (mask.sum() - 1)


def whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """(values - mean) / std over the real tokens, 0 at padding: (B, C), (B, C) -> (B, C).

    With `shift_mean=False` the mean is kept (the values are divided by std about their mean, and
    the mean added back): for rewards, whose sign means something.
    """
    mean, std = masked_mean(values, mask), (masked_var(values, mask) + 1e-8).sqrt()
    whitened = (values - mean) / std
    return (whitened if shift_mean else whitened + mean) * mask


def kl_penalised_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
) -> torch.Tensor:
    """Reward of each token (Ziegler et al. 2019, eq. 2; Stiennon et al. 2020).

    r_t = -kl_coef (log pi(y_t|y_<t) - log ref(y_t|y_<t)) + [t is the last token] score

    The KL term is not clamped: its sum is then an unbiased estimate of the sequence KL.

    Args:
        scores: (B,) reward of the whole sequence.
        logprobs, ref_logprobs: (B, C) nats.

    Returns:
        (B, C), 0 at padding.
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * mask
    last = mask.sum(-1) - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t),  A_t = delta_t + gamma lam A_{t+1}

    V is 0 after a completion's last token, whether it ended in EOS or was cut off there: the score
    judges the text as it stands.

    Args:
        rewards, values: (B, C); values[:, t] is the value before token t.

    Returns:
        advantages and returns (advantages + values), (B, C) each, 0 at padding.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        following = values[:, t]
        advantages[:, t] = running
    return advantages, advantages + values


def clipped_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_range: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), averaged over real tokens.

    L = mean_t max(-A_t rho_t, -A_t clip(rho_t, 1 - eps, 1 + eps)),  rho_t = pi(y_t) / pi_old(y_t)

    Returns:
        loss () and the ratio rho (B, C), 1 at padding.
    """
    ratio = ((logprobs - old_logprobs) * mask).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return masked_mean(torch.maximum(-advantages * ratio, -advantages * clipped), mask), ratio


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip_range: float,
) -> torch.Tensor:
    """Clipped value loss (Stiennon et al. 2020), averaged over real tokens.

    L = 0.5 mean_t max((V_t - R_t)^2, (clip(V_t, V_old_t +- eps) - R_t)^2)
    """
    clipped = values.clamp(old_values - clip_range, old_values + clip_range)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)
