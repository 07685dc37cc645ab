"""Hinge loss on implicit rewards (SLiC: Zhao et al. 2023; normalised by the reference: Liu et al.
2023, RSO).

Objective: min max(0, 1 - h), h = beta [log pi(y_w)/ref(y_w) - log pi(y_l)/ref(y_l)].
Swept: beta; 1 / beta is the margin, in nats, beyond which a pair has no more gradient. It is not
J's coefficient.
Cost: DPO's.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import HingeDPOSpec

DPO_HINGE = Arm(
    name="dpo-hinge",
    family="dpo",
    summary="SLiC's hinge loss on DPO's implicit rewards",
    policy=from_pairs("dpo-hinge", "dpo_hinge"),
    settings=HingeDPOSpec(),
    sweep=("dpo_hinge.beta", (0.05, 0.1, 0.3, 1.0)),
)
