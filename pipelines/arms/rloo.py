"""RLOO (Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE-Style Optimization"), TRL's.

Objective: PPO's J, KL in the reward of the whole completion; the advantage of a completion is its
reward less the mean reward of the prompt's other completions. No critic.
Swept: kl_coef, J's own coefficient.
Cost: PPO's without the critic.
"""

from pipelines.arms.arm import Arm
from pipelines.rlhf.specs import RLOOSpec

RLOO = Arm(
    name="rloo",
    family="rl",
    summary="RLOO: the other completions of a prompt are the baseline, no critic",
    policy=lambda given: given.sampled_step(
        "rloo",
        given.protocol.arm("rloo"),
        "pipelines.rlhf.group_stage:train_rloo",
        "reward_model",
    ),
    settings=RLOOSpec(),
    sweep=("rloo.kl_coef", (0.05, 0.1, 0.3, 1.0)),
    coefficient=True,
    trains_on="proxy",
)
