"""PPO with an adaptive KL coefficient (Ziegler et al. 2019, sec. 2.2).

Objective: PPO's, with a coefficient that is raised where the KL is above its target and lowered
where it is below: log kl_coef follows clip(KL / target - 1, -0.2, 0.2) over the horizon.
Swept: the target, nats per completion; the DPO paper's values are 3, 6, 9 and 12.
Cost: PPO's.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.ppo import on_proxy
from pipelines.rlhf.specs import PPOSpec

PPO_ADAPTIVE = Arm(
    name="ppo-adaptive",
    family="rl",
    summary="RLHF with a KL coefficient that follows a target KL",
    policy=on_proxy,
    settings=PPOSpec(),
    fixed={"ppo.kl_control": "adaptive"},
    sweep=("ppo.kl_target", (3.0, 6.0, 9.0, 12.0)),
    trains_on="proxy",
)
