"""GRPO (Shao et al. 2024, "DeepSeekMath", eq. 3-4), TRL's.

Objective: the clipped surrogate with rewards standardised within each prompt's completions, less
kl_coef times k3 in the loss. Dividing by the standard deviation and taking k3's gradient both move
the optimum: it is not J's.
Swept: kl_coef, which is per standardised reward, not J's coefficient.
Cost: PPO's without the critic.
"""

from pipelines.arms.arm import Arm
from pipelines.rlhf.specs import GRPOSpec

GRPO = Arm(
    name="grpo",
    family="rl",
    summary="GRPO: rewards standardised within the prompt, k3 in the loss, no critic",
    policy=lambda given: given.sampled_step(
        "grpo",
        given.protocol.arm("grpo"),
        "pipelines.rlhf.group_stage:train_grpo",
        "reward_model",
    ),
    settings=GRPOSpec(),
    sweep=("grpo.kl_coef", (0.05, 0.1, 0.3, 1.0)),
    trains_on="scaled-proxy",
)
