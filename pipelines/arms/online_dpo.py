"""Online DPO (Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback").

Objective: DPO's, on pairs that the policy itself samples and a judge compares, in rounds: the
reward model, or the gold reward itself (online-dpo-gt, an oracle as PPO-GT is; its labels know
nothing of the labeller's temperature and noise). Few long rounds are iterative DPO.
Swept: beta, J's own coefficient.
Cost: DPO's, and sampling, judging and the reference's forward pass of every round; with the reward
model as judge also what that cost.
"""

from collections.abc import Callable

from pipelines.arms.arm import Arm, Ingredients
from pipelines.dpo.specs import OnlineDPOSpec
from pipelines.shared.steps import Step


def compared_by(judge: str) -> Callable[[Ingredients], Step]:
    """Online DPO whose pairs the named ingredient compares."""

    def make(given: Ingredients) -> Step:
        spec = given.protocol.arm("online_dpo")
        return given.sampled_step("online-dpo", spec, "pipelines.dpo.online:train", judge)

    return make


ONLINE_DPO = Arm(
    name="online-dpo",
    family="dpo",
    summary="DPO on the policy's own samples, compared by the reward model",
    policy=compared_by("reward_model"),
    settings=OnlineDPOSpec(),
    sweep=("online_dpo.beta", (0.05, 0.1, 0.3, 1.0)),
    coefficient=True,
    trains_on="proxy",
)
ONLINE_DPO_GT = Arm(
    name="online-dpo-gt",
    family="dpo",
    summary="DPO on the policy's own samples, compared by the gold reward itself",
    policy=compared_by("gold"),
    settings=OnlineDPOSpec(),
    sweep=("online_dpo.beta", (0.05, 0.1, 0.3, 1.0)),
    coefficient=True,
    trains_on="gold",
)
