"""Is RL's step more finicky to its hyperparameters than DPO's one step? Equal searches of both.

Sixteen trials a method at beta = 0.1, seed 0, on *validation* prompts. Each trial sets the three
training decisions that both methods have: the learning rate, the passes over the data and the batch
size. Their ranges have equal log-width for both (100, 4 and 4 times) and are centred on the
settings that nine tuning trials a method chose (sentiment_tuning.py), so that neither is searched
further from its best than the other. Trial i stands at the same place of both search spaces, the
i-th point of one low-discrepancy sequence: the methods are compared pairwise.

SFT model, pairs and reward model are shared; the reward model keeps its tuned settings, since the
claim is about the RL step. The score is J = E[gold] - 0.1 KL, with kl_coef and beta fixed to that
0.1. Finickiness is what tuning is worth: the expected J of the best of eight trials less that of
one (analysis/cost/tuning.py). The claim is that RL's step is the more finicky one; what would
falsify it: a difference PPO - DPO whose interval, over trials, lies below 0.

    rlhf-vs-dpo run sentiment-finickiness --scale mini
"""

import dataclasses
from typing import Any

from experiments.comparison import Comparison
from experiments.sentiment import ARMS, MINI, SENTIMENT, SMOKE
from pipelines.shared.specs import EvaluationSpec, SimulatedProtocol

TRIALS = 16
RATE_WIDTH = 100.0  # highest learning rate over the lowest
FACTORS = (0.5, 1, 2)  # of passes and of batch size: 4 from end to end
COEFFICIENT = 0.1


def sequence(count: int) -> list[tuple[float, float, float]]:
    """`count` points that fill the unit cube evenly: Roberts' (2018) additive recurrence in three
    dimensions, frac(1/2 + i g^-k) with g the real root of g^4 = g + 1."""
    root = 1.2207440846057596
    return [
        (
            (0.5 + i / root) % 1,
            (0.5 + i / root**2) % 1,
            (0.5 + i / root**3) % 1,
        )
        for i in range(1, count + 1)
    ]


def trials(protocol: SimulatedProtocol) -> list[dict[str, Any]]:
    """The search: each trial's settings of both methods, at one place of their spaces."""
    ppo, dpo = protocol.arm("ppo"), protocol.arm("dpo")

    def rate(centre: float, place: float) -> float:
        return float(f"{centre * RATE_WIDTH ** (place - 0.5):.3g}")

    def times(centre: int, place: float) -> int:
        return round(centre * FACTORS[int(place * len(FACTORS))])

    return [
        {
            "ppo.learning_rate": rate(ppo.learning_rate, x),
            "ppo.ppo_epochs": times(ppo.ppo_epochs, y),
            # Fewer minibatches are larger ones.
            "ppo.minibatches": times(ppo.minibatches, 1 - z),
            "dpo.learning_rate": rate(dpo.learning_rate, x),
            "dpo.epochs": times(dpo.epochs, y),
            "dpo.batch_size": times(dpo.batch_size, z),
        }
        for x, y, z in sequence(TRIALS)
    ]


def last_only(protocol: SimulatedProtocol, evaluation: EvaluationSpec) -> SimulatedProtocol:
    """`protocol` with one policy saved a run, judged as `evaluation` says."""
    once = {
        name: dataclasses.replace(protocol.arm(name), snapshots=1)  # type: ignore[type-var]
        for name in ("ppo", "dpo")
    }
    return dataclasses.replace(protocol, evaluation=evaluation, arms={**protocol.arms, **once})


SENTIMENT_FINICKINESS = Comparison(
    name="sentiment-finickiness",
    title="How finicky are PPO and DPO? Sixteen equal trials of each",
    question="How much of each method's result hangs on its hyperparameters, searched equally far?",
    scales={
        "smoke": last_only(
            SMOKE, EvaluationSpec(split="validation", prompts=24, samples=4, reference_samples=16)
        ),
        "mini": last_only(
            MINI, EvaluationSpec(split="validation", prompts=256, samples=4, reference_samples=64)
        ),
    },
    default=ARMS,
    sweeps={"ppo": (COEFFICIENT,), "dpo": (COEFFICIENT,)},
    trials=trials(MINI),
    reward_label=SENTIMENT.reward_label,
    deviations=SENTIMENT.deviations,
)
