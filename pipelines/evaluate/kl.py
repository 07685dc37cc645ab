"""The KL meter: one for every arm, blind to the method.

Reverse KL of whole sequences to the reference, in nats, from samples of the policy. With
l_t = log pi(y_t|y_<t) - log ref(y_t|y_<t), summed over completion tokens, the EOS step included:

    k1 = sum_t l_t                                   unbiased
    k3 = sum_t exp(-l_t) - 1 + l_t                   unbiased, never negative (Schulman 2020)
    rb = sum_t KL(pi(.|y_<t) || ref(.|y_<t))         unbiased, exact over the vocabulary at each
                                                     step (Amini et al. 2025)

k3 is taken per token: of the ratio of whole sequences it has an enormous variance.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Divergence:
    """Per sequence, (B,) fp64. kl_* in nats; entropy in nats per token; logp, ref_logp in nats."""

    kl_k1: torch.Tensor
    kl_k3: torch.Tensor
    kl_rb: torch.Tensor
    entropy: torch.Tensor
    logp: torch.Tensor
    ref_logp: torch.Tensor


def divergence(
    logits: torch.Tensor, ref_logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> Divergence:
    """KL estimators of sampled completions.

    Args:
        logits, ref_logits: (B, C, V), of policy and reference, divided by the same temperature.
        ids: (B, C) sampled tokens.
        mask: (B, C) bool, True at real tokens.
    """
    logp, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    index = ids[..., None]
    token, ref_token = (part.gather(-1, index).squeeze(-1).double() for part in (logp, ref))
    log_ratio = (token - ref_token).where(mask, 0)
    probabilities = logp.exp()
    # A token of probability 0 contributes 0, also where its log-probability is -inf.
    possible = probabilities > 0
    step_kl = (probabilities * (logp - ref)).where(possible, 0).sum(-1).double()
    step_entropy = -(probabilities * logp).where(possible, 0).sum(-1).double()
    return Divergence(
        kl_k1=log_ratio.sum(-1),
        kl_k3=(torch.expm1(-log_ratio) + log_ratio).sum(-1),
        kl_rb=step_kl.where(mask, 0).sum(-1),
        entropy=step_entropy.where(mask, 0).sum(-1) / mask.sum(-1),
        logp=token.where(mask, 0).sum(-1),
        ref_logp=ref_token.where(mask, 0).sum(-1),
    )
