"""ORPO (Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model").

Objective (eq. 6-7): min -log pi(y_w)/|y_w| - lambda log sigmoid(log odds(y_w) - log odds(y_l)),
odds = p / (1 - p) of the length-normalised probabilities. The paper starts from a base model; here
it starts from the SFT model, as all arms do.
Swept: the weight lambda.
Cost: DPO's without the reference.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import ORPOSpec

ORPO = Arm(
    name="orpo",
    family="dpo",
    summary="ORPO: likelihood of the preferred and odds against the rejected, no reference",
    policy=from_pairs("orpo", "orpo", reference=False),
    settings=ORPOSpec(),
    sweep=("orpo.weight", (0.1, 0.3, 1.0, 3.0)),
)
