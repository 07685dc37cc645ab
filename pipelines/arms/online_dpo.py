"""Online DPO (Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback").

Objective: DPO's, on pairs that the policy itself samples and a judge (the reward model, or the
gold reward with online_dpo.judge=gold) compares, in rounds. Few long rounds are iterative DPO.
Swept: beta, J's own coefficient.
Cost: DPO's, and sampling, judging and the reference's forward pass of every round; with the reward
model as judge also what that cost.
"""

from pipelines.arms.arm import Arm, Ingredients
from pipelines.dpo.specs import OnlineDPOSpec
from pipelines.shared.steps import Step

JUDGES = {"reward-model": "reward_model", "gold": "gold"}


def policy(given: Ingredients) -> Step:
    """Online DPO with the judge that its settings name."""
    spec: OnlineDPOSpec = given.protocol.arm("online_dpo")
    return given.sampled_step("online-dpo", spec, "pipelines.dpo.online:train", JUDGES[spec.judge])


ONLINE_DPO = Arm(
    name="online-dpo",
    family="dpo",
    summary="DPO on the policy's own samples, compared by the reward model",
    policy=policy,
    settings=OnlineDPOSpec(),
    sweep=("online_dpo.beta", (0.05, 0.1, 0.3, 1.0)),
    coefficient=True,
    trains_on="proxy",
)
