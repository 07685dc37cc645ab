"""RLHF's arithmetic as pure functions. B sequences, C completion tokens; masks: True where real.

The losses take `count`, the number to divide by, where a batch is only a part of the minibatch:
summed over the parts, on however many processes, they give the loss of the whole.
"""

import torch


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, count: float | None = None
) -> torch.Tensor:
    """Sum over the real tokens / `count` (default: the real tokens): (B, C), (B, C) -> ()."""
    return (values * mask).sum() / (mask.sum() if count is None else count)


def masked_var(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unbiased variance over the real tokens of a batch, 0 of one: (B, C), (B, C) -> ()."""
    centred = values - masked_mean(values, mask)
    return ((centred**2) * mask).sum() / (mask.sum() - 1).clamp(min=1)


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
    *,
    end: torch.Tensor | None = None,
    clamp: bool = False,
) -> torch.Tensor:
    """Reward of each token (Ziegler et al. 2019, eq. 2; Stiennon et al. 2020).

    r_t = -kl_coef (log pi(y_t|y_<t) - log ref(y_t|y_<t)) + [t = end] score

    Unless `clamp`, the KL term's sum is an unbiased estimate of the sequence KL; clamping each
    term at 0 from below, as alpaca_farm does, makes it larger.

    Args:
        scores: (B,) reward of the whole sequence.
        logprobs, ref_logprobs: (B, C) nats.
        end: (B,) column that gets the score; default: the last real token's.

    Returns:
        (B, C), 0 at padding (but for a score there, if `end` says so).
    """
    kl = (logprobs - ref_logprobs) * mask
    rewards = -kl_coef * (kl.clamp(min=0) if clamp else kl)
    end = mask.sum(-1) - 1 if end is None else end
    return rewards.scatter_add(1, end[:, None], scores[:, None].to(rewards.dtype))


def scores_without_eos(
    scores: torch.Tensor,
    finished: torch.Tensor,
    replacement: float | None = None,
    penalty: float | None = None,
) -> torch.Tensor:
    """Scores of completions that never ended: replaced (Stiennon et al. 2020: -1) or reduced.

    Args:
        scores, finished: (B,); finished is True where the completion ended in EOS.
    """
    if replacement is not None:
        scores = torch.where(finished, scores, replacement)
    return scores if penalty is None else scores - penalty * (~finished)


def adapted_kl_coef(
    kl_coef: float, kl: float, target: float, horizon: float, sequences: int
) -> float:
    """The next coefficient of the adaptive controller (Ziegler et al. 2019, section 2.2).

    e = clip((KL - target) / target, -0.2, 0.2),  kl_coef <- kl_coef (1 + e n / horizon)

    Args:
        kl: measured sequence KL to the reference, nats, summed over tokens.
        target: nats per sequence.
        horizon: sequences over which an error of 1 would double the coefficient.
        sequences: n, how many the measurement saw.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * sequences / horizon)


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
    count: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), averaged over real tokens.

    L = mean_t max(-A_t rho_t, -A_t clip(rho_t, 1 - eps, 1 + eps)),  rho_t = pi(y_t) / pi_old(y_t)

    Returns:
        loss () and the ratio rho (B, C), 1 at padding.
    """
    ratio = ((logprobs - old_logprobs) * mask).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    losses = torch.maximum(-advantages * ratio, -advantages * clipped)
    return masked_mean(losses, mask, count), ratio


def sequence_kl_loss(
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    mask: torch.Tensor,
    count: float | None = None,
) -> torch.Tensor:
    """Half the squared log-ratio of whole sequences, summed over them / `count`.

    L = 1/count sum_y 1/2 (sum_t log pi(y_t|y_<t) - log ref(y_t|y_<t))^2

    On samples of pi its gradient is unbiased for that of the sequence KL, E[(sum_t l_t) grad log
    pi(y)]. A tokenwise k1 in the loss has a gradient of mean 0, and tokenwise k2 or k3 miss what a
    token does to the KL of those after it (Tang and Munos 2025).

    Args:
        logprobs, ref_logprobs: (B, C) nats.
        count: default B, the mean over sequences; the number of tokens puts the loss on the scale
            of the surrogate's token mean.
    """
    log_ratio = ((logprobs - ref_logprobs) * mask).sum(-1)
    return 0.5 * (log_ratio**2).sum() / (len(log_ratio) if count is None else count)


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip_range: float | None,
    count: float | None = None,
) -> torch.Tensor:
    """Clipped value loss (Stiennon et al. 2020), averaged over real tokens; not clipped for None.

    L = 0.5 mean_t max((V_t - R_t)^2, (clip(V_t, V_old_t +- eps) - R_t)^2)
    """
    losses = (values - returns) ** 2
    if clip_range is not None:
        clipped = values.clamp(old_values - clip_range, old_values + clip_range)
        losses = torch.maximum(losses, (clipped - returns) ** 2)
    return 0.5 * masked_mean(losses, mask, count)
