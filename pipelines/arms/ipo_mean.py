"""IPO on means over tokens: what TRL, and so most published rankings, call IPO.

Objective: min (h - 1 / (2 beta))^2, h as in IPO but with each completion's log-ratio divided by its
number of tokens, so that the same beta asks for a far larger margin (huggingface/trl #1677).
Swept: beta.
Cost: DPO's.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import MeanIPOSpec

IPO_MEAN = Arm(
    name="ipo-mean",
    family="dpo",
    summary="IPO on means over tokens, as TRL has it",
    policy=from_pairs("ipo-mean", "ipo_mean"),
    settings=MeanIPOSpec(),
    sweep=("ipo_mean.beta", (0.3, 1.0, 3.0, 10.0)),
)
