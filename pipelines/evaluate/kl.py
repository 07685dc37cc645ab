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

from pipelines.shared.logprobs import blocks, scattered


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
        logits, ref_logits: (N, V), of policy and reference, divided by the same temperature, at the
            N real tokens, sequence by sequence.
        ids: (N,) sampled tokens.
        mask: (B, C) bool, True at real tokens.
    """
    parts = [_of_tokens(logits[rows], ref_logits[rows], ids[rows]) for rows in blocks(logits)]
    token, ref_token, step_kl, step_entropy = (torch.cat(part) for part in zip(*parts, strict=True))
    log_ratio = token - ref_token

    def summed(values: torch.Tensor) -> torch.Tensor:
        return scattered(values, mask).sum(-1)

    return Divergence(
        kl_k1=summed(log_ratio),
        kl_k3=summed(torch.expm1(-log_ratio) + log_ratio),
        kl_rb=summed(step_kl),
        entropy=summed(step_entropy) / mask.sum(-1),
        logp=summed(token),
        ref_logp=summed(ref_token),
    )


def _of_tokens(
    logits: torch.Tensor, ref_logits: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Log-prob of the token under policy and reference, KL and entropy of its step: (N,) fp64."""
    logp, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    token, ref_token = (part.gather(-1, ids[:, None]).squeeze(-1) for part in (logp, ref))
    probabilities = logp.exp()
    # A token of probability 0 contributes 0, also where its log-probability is -inf.
    possible = probabilities > 0
    step_kl = (probabilities * (logp - ref)).where(possible, 0).sum(-1)
    step_entropy = -(probabilities * logp).where(possible, 0).sum(-1)
    return tuple(part.double() for part in (token, ref_token, step_kl, step_entropy))
