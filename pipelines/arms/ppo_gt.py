"""PPO-GT: PPO on the true reward (Rafailov et al. 2023, sec. 6.1).

Objective: PPO's, with the gold reward in place of the learnt one: an oracle that no real study has,
and what a perfect reward model would be worth.
Swept: kl_coef, J's own coefficient.
Cost: PPO's without a reward model; scoring with the gold reward is not counted.
"""

from pipelines.arms.arm import Arm, Ingredients
from pipelines.rlhf.pipeline import ppo
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.steps import Step


def on_gold(given: Ingredients) -> Step:
    """PPO against the gold reward."""
    judge = {"gold": given.gold}
    return ppo(given.protocol, given.corpus, given.sft, judge, given.seed, f"gold-{given.label}")


PPO_GT = Arm(
    name="ppo-gt",
    family="rl",
    summary="PPO on the gold reward itself",
    policy=on_gold,
    settings=PPOSpec(),
    fixed={"ppo.kl_control": "fixed"},
    sweep=("ppo.kl_coef", (0.05, 0.1, 0.3, 1.0)),
    coefficient=True,
    trains_on="gold",
)
