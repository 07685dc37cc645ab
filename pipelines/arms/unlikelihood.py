"""Unlikelihood: raise the preferred completions' probability, lower the rejected ones'.

Objective, a baseline of Rafailov et al. 2023 with the token-level unlikelihood of Welleck et al.
2019 (eq. 2-3): min -sum_t log pi(y_w,t) - alpha sum_t log(1 - pi(y_l,t)).
Swept: alpha, the weight of the second term. Nothing holds the policy near the reference.
Cost: DPO's without the reference.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import UnlikelihoodSpec

UNLIKELIHOOD = Arm(
    name="unlikelihood",
    family="supervised",
    summary="likelihood of the preferred, unlikelihood of the rejected completions",
    policy=from_pairs("unlikelihood", "unlikelihood", reference=False),
    settings=UnlikelihoodSpec(),
    sweep=("unlikelihood.alpha", (0.05, 0.1, 0.5, 1.0)),
)
