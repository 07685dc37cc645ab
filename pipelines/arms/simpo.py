"""SimPO (Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward").

Objective (eq. 6): min -log sigmoid(beta [log pi(y_w)/|y_w| - log pi(y_l)/|y_l|] - gamma).
Swept: beta; gamma / beta stays as it is. Nothing but the length of training holds the policy near
the reference.
Cost: DPO's without the reference.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import SimPOSpec

SIMPO = Arm(
    name="simpo",
    family="dpo",
    summary="SimPO: mean log-probability as reward, no reference",
    policy=from_pairs("simpo", "simpo", reference=False),
    settings=SimPOSpec(),
    sweep=("simpo.beta", (1.0, 2.0, 5.0, 10.0)),
)
