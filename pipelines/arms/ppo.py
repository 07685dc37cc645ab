"""PPO on the learnt reward: RLHF (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022).

Objective: max_pi E[r(x, y) - kl_coef KL(pi || ref)], r learnt from the pairs, by the clipped
surrogate with a learnt value function; details on pipelines/rlhf/README.md.
Swept: kl_coef, J's own coefficient.
Cost: the reward model, sampling and scoring of every rollout, and passes over it for policy and
critic.
"""

from pipelines.arms.arm import Arm, Ingredients
from pipelines.rlhf.pipeline import ppo
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.steps import Step


def on_proxy(given: Ingredients) -> Step:
    """PPO against the reward model."""
    judge = {"reward_model": given.reward_model}
    return ppo(given.protocol, given.corpus, given.sft, judge, given.seed, given.label)


PPO = Arm(
    name="ppo",
    family="rl",
    summary="RLHF: reward model from the pairs, then PPO with a per-token KL penalty",
    policy=on_proxy,
    settings=PPOSpec(),
    fixed={"ppo.kl_control": "fixed"},
    sweep=("ppo.kl_coef", (0.05, 0.1, 0.3, 1.0)),
    coefficient=True,
    trains_on="proxy",
)
