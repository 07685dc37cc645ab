"""REINFORCE with a learnt baseline (Williams 1992): the floor of RL.

Objective: PPO's, by plain policy gradients: each rollout gives one step along the mean of
(return - value) grad log pi, with nothing clipped, whitened or used twice.
Swept: kl_coef, J's own coefficient.
Cost: as many completions as PPO, one pass over each of them.
"""

from pipelines.arms.arm import Arm
from pipelines.rlhf.specs import ReinforceSpec

REINFORCE = Arm(
    name="reinforce",
    family="rl",
    summary="REINFORCE with a learnt baseline: the floor of RL",
    policy=lambda given: given.sampled_step(
        "reinforce",
        given.protocol.arm("reinforce"),
        "pipelines.rlhf.reinforce:train",
        "reward_model",
    ),
    settings=ReinforceSpec(),
    sweep=("reinforce.kl_coef", (0.05, 0.1, 0.3, 1.0)),
    coefficient=True,
    trains_on="proxy",
)
