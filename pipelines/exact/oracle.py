"""Everything about a task small enough to enumerate: the exact optimum and a policy's exact place.

X prompts, equally likely, and Y completions, the same for each prompt; all arrays are (X, Y)
float64, log-probabilities in nats per sequence. The objective that RLHF and DPO both aim at is

    J(pi) = E_x [ E_{y ~ pi(.|x)} r(x, y) - beta KL(pi(.|x) || ref(.|x)) ].

Nothing here is sampled, and nothing needs a model.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

Array = np.ndarray


def completions(symbols: Sequence[int], length: int, eos: int | None) -> list[tuple[int, ...]]:
    """Every completion of `length` tokens; with an EOS also all that end in it, there or before."""
    full = list(itertools.product(symbols, repeat=length))
    if eos is None:
        return full
    starts = (start for size in range(length) for start in itertools.product(symbols, repeat=size))
    return [(*start, eos) for start in starts] + full


@dataclass(frozen=True)
class Point:
    """A policy's place: reward in its units; KL to the reference and entropy in nats a sequence."""

    reward: float
    kl: float
    entropy: float
    objective: float


def evaluate(logp: Array, ref_logp: Array, rewards: Array, beta: float) -> Point:
    """Where a policy stands."""
    p = np.exp(logp)
    reward = float((p * rewards).sum(-1).mean())
    kl = float((p * (logp - ref_logp)).sum(-1).mean())
    return Point(reward, kl, float(-(p * logp).sum(-1).mean()), reward - beta * kl)


def optimum(ref_logp: Array, rewards: Array, beta: float) -> Array:
    """log pi*(y|x) = log ref(y|x) + r(x, y) / beta - log Z(x) (Rafailov et al. 2023, eq. 4)."""
    return log_softmax(ref_logp + rewards / beta, axis=-1)


def best_of_n(ref_logp: Array, rewards: Array, n: int) -> Array:
    """log pi_n(y|x) of the best of n draws from the reference, ties broken in proportion to it.

    Over groups g of completions with equal reward, ascending, with p_g their probability under the
    reference and F_g its sum up to g, g is chosen with q_g = F_g^n - F_(g-1)^n: pi_n = ref q_g/p_g.

    Args:
        n: at least 1.

    Returns:
        (X, Y); -inf where the reference has no probability, or the chance is below the smallest
        number above 0.
    """
    out = np.empty_like(ref_logp, dtype=float)
    for x, (logp, reward) in enumerate(zip(ref_logp, rewards, strict=True)):
        _, group = np.unique(reward, return_inverse=True)
        p = np.bincount(group, np.exp(logp))
        upto = np.cumsum(p) / p.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            # F^n - (F - p)^n without cancellation: F^n (1 - (1 - p / F)^n).
            share = np.minimum(p / p.sum() / upto, 1)
            log_q = n * np.log(upto) + np.log(-np.expm1(n * np.log1p(-share)))
            out[x] = logp + np.where(p > 0, log_q - np.log(p), 0)[group]
    return out


def closed_share(logp: Array, ref_logp: Array, rewards: Array, beta: float) -> float:
    """(J(pi) - J(ref)) / (J(pi*) - J(ref)): 1 at the optimum, 0 at the reference."""
    start, own, best = (
        evaluate(policy, ref_logp, rewards, beta).objective
        for policy in (ref_logp, logp, optimum(ref_logp, rewards, beta))
    )
    return (own - start) / (best - start)


def standardised(rewards: Array, ref_logp: Array) -> Array:
    """Rewards with mean 0 and standard deviation 1 under the reference, for each prompt."""
    p = np.exp(ref_logp)
    centred = rewards - (p * rewards).sum(-1, keepdims=True)
    return centred / np.sqrt((p * centred**2).sum(-1, keepdims=True))
