"""DPO's arithmetic and that of its family, as pure functions. B pairs, T completion tokens.

Log-ratio: log pi(y|x) - log ref(y|x), nats. Every loss is one number a pair; a batch's is the mean.
"""

import math

import torch
from torch.nn import functional

from pipelines.shared.losses import bradley_terry_loss


def implicit_reward(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor | float, beta: float
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


def robust_dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """rDPO: on labels of which a share e is flipped, its mean is DPO's on the true ones (Chowdhury
    et al. 2024, the unbiased loss of sec. 3).

    L = ((1 - e) L_DPO(y_c, y_r) - e L_DPO(y_r, y_c)) / (1 - 2 e)

    Args:
        chosen, rejected: (B,) implicit rewards.
        label_smoothing: e, below 1/2.

    Returns:
        (B,) nats. Unlike DPO's it has no lower bound: it falls with the margin for ever.
    """
    as_labelled, flipped = dpo_loss(chosen, rejected), dpo_loss(rejected, chosen)
    unbiased = (1 - label_smoothing) * as_labelled - label_smoothing * flipped
    return unbiased / (1 - 2 * label_smoothing)


def hinge_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """SLiC's hinge (Zhao et al. 2023, eq. 1) on implicit rewards (Liu et al. 2023, hinge-norm).

    L = max(0, 1 - (chosen - rejected))

    Args:
        chosen, rejected: (B,) implicit rewards, beta times the log-ratio.

    Returns:
        (B,) in units of the implicit reward; 0 from a margin of 1 on.
    """
    return functional.relu(1 - (chosen - rejected))


def ipo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Squared distance of the margin from its target (Azar et al. 2023, eq. 17; beta is their tau).

    L = (h - 1 / (2 beta))^2,  h = chosen - rejected

    Args:
        chosen, rejected: (B,) log-ratios, of whole completions as in the paper; or their mean over
            the completion's tokens, as TRL has it (its authors say that the paper's results do).

    Returns:
        (B,) squared nats; squared nats per token where the log-ratios are means.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def kto_reference_point(mismatched: torch.Tensor) -> torch.Tensor:
    """z0, from which KTO counts gains and losses: an estimate of KL(pi || ref) (Ethayarajh et al.
    2024, sec. 4.1).

    z0 = max(0, mean of log pi(y'|x) - log ref(y'|x)),  y' a completion of another prompt

    Args:
        mismatched: (N,) log-ratios of prompts with completions of other prompts; empty: z0 is 0.

    Returns:
        () nats, cut from the graph: no gradient flows through it.
    """
    mean = mismatched.detach().sum() / max(mismatched.numel(), 1)
    return mean.clamp(min=0)


def kto_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_point: torch.Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """KTO: lambda_y - v(x, y), each completion by itself (Ethayarajh et al. 2024, eq. 8).

    v = lambda_D sigmoid(beta (r - z0)) of a desirable completion with log-ratio r
    v = lambda_U sigmoid(beta (z0 - r)) of an undesirable one

    Args:
        chosen, rejected: (B,) log-ratios; chosen is desirable, rejected undesirable.
        reference_point: z0, nats, >= 0.
        desirable_weight, undesirable_weight: lambda_D, lambda_U.

    Returns:
        (B,) without unit: the mean of the pair's two completions, so that the mean over pairs is
        the paper's mean over completions.
    """
    gain = desirable_weight * torch.sigmoid(beta * (chosen - reference_point))
    spared = undesirable_weight * torch.sigmoid(beta * (reference_point - rejected))
    return (desirable_weight - gain + undesirable_weight - spared) / 2


def simpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma: float
) -> torch.Tensor:
    """SimPO: Bradley-Terry on length-normalised log-probs with a target margin (Meng et al. 2024,
    eq. 6).

    L = -log sigmoid(beta chosen - beta rejected - gamma)

    Args:
        chosen, rejected: (B,) log-prob per token, the mean over the completion; no reference.
        gamma: the target margin, in units of beta times nats per token.

    Returns:
        (B,) nats.
    """
    return bradley_terry_loss(beta * (chosen - rejected) - gamma)


def orpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, weight: float) -> torch.Tensor:
    """ORPO: likelihood of the chosen, its odds against the rejected (Hong et al. 2024, eqs. 4-7).

    L = -log P(y_c) - lambda log sigmoid(log odds(y_c) - log odds(y_r)),  odds = P / (1 - P)

    P is the geometric mean of the completion's token probabilities. Both terms are of completions
    alone, as in the paper; TRL's ORPOTrainer takes its likelihood term over prompt and completion,
    and over all tokens of a batch alike.

    Args:
        chosen, rejected: (B,) log P: log-prob per token, the mean over the completion.
        weight: lambda.

    Returns:
        (B,) nats (per token, in the first term). At equal odds it is -chosen + lambda ln 2.
    """
    log_odds_ratio = (chosen - log_one_minus(chosen)) - (rejected - log_one_minus(rejected))
    return -chosen - weight * functional.logsigmoid(log_odds_ratio)


def unlikelihood_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, rejected_mask: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Likelihood of the chosen, unlikelihood of the rejected (Welleck et al. 2019, eqs. 2-3, with
    each token of the rejected completion as the one negative candidate of its position).

    L = -sum_t log p(y_c,t) - alpha sum_t log(1 - p(y_r,t))

    Args:
        chosen, rejected: (B, T) log-probs of the completions' tokens, 0 at padding.
        rejected_mask: (B, T) bool, True at tokens of the rejected completion.
        alpha: weight of the second sum.

    Returns:
        (B,) nats, sums over completions.
    """
    # log(1 - p) is not 0 at padding, where log p is.
    unlikelihood = log_one_minus(rejected).masked_fill(~rejected_mask, 0.0)
    return -chosen.sum(-1) - alpha * unlikelihood.sum(-1)


def log_one_minus(logprobs: torch.Tensor) -> torch.Tensor:
    """log(1 - p) from log p, of the same shape, accurate where p is near 0 and near 1.

    1 - p below the precision of the numbers (1e-7 in fp32) counts as that, and has no gradient:
    log p can round to 0, or just above, and the loss must stay finite.
    """
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    # Each form loses digits in the other's half. Neither overflows in it, so no NaN reaches the
    # gradient through the half that is not taken.
    near_one = torch.log(-torch.expm1(logprobs))
    near_zero = torch.log1p(-torch.exp(logprobs))
    return torch.where(logprobs > -math.log(2), near_one, near_zero)
