"""Robust DPO (Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy
Feedback").

Objective: min [(1 - eps) L(y_w, y_l) - eps L(y_l, y_w)] / (1 - 2 eps) with DPO's L: unbiased where
a share eps = label_smoothing of the labels is flipped.
Swept: beta, as DPO's. The optimum is J's only where labels.noise = label_smoothing; without flipped
labels it asks for too much, without bound for sure pairs. So beta is not J's coefficient here.
Cost: DPO's.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import RobustDPOSpec

DPO_ROBUST = Arm(
    name="dpo-robust",
    family="dpo",
    summary="DPO whose loss is unbiased under label noise",
    policy=from_pairs("dpo-robust", "dpo_robust"),
    settings=RobustDPOSpec(),
    sweep=("dpo_robust.beta", (0.05, 0.1, 0.3, 1.0)),
)
