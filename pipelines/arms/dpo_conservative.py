"""Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO").

Objective: with h = beta [log pi(y_w)/ref(y_w) - log pi(y_l)/ref(y_l)] and eps = label_smoothing,
min -(1 - eps) log sigmoid(h) - eps log sigmoid(-h): its margin has a finite optimum.
Swept: beta, as DPO's. It asks for smaller margins than DPO, so that beta is not J's coefficient.
Cost: DPO's.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import ConservativeDPOSpec

DPO_CONSERVATIVE = Arm(
    name="dpo-conservative",
    family="dpo",
    summary="DPO that takes each label to be wrong with a small probability",
    policy=from_pairs("dpo-conservative", "dpo_conservative"),
    settings=ConservativeDPOSpec(),
    sweep=("dpo_conservative.beta", (0.05, 0.1, 0.3, 1.0)),
)
