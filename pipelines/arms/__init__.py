"""The arms by name. One line registers one; a user's own file does the same with `register`."""

from pipelines.arms.arm import Arm, Ingredients, check
from pipelines.arms.best_of_n import BEST_OF_N, BEST_OF_N_PROXY
from pipelines.arms.dpo import DPO
from pipelines.arms.dpo_conservative import DPO_CONSERVATIVE
from pipelines.arms.dpo_hinge import DPO_HINGE
from pipelines.arms.dpo_robust import DPO_ROBUST
from pipelines.arms.grpo import GRPO
from pipelines.arms.ipo import IPO
from pipelines.arms.ipo_mean import IPO_MEAN
from pipelines.arms.kto import KTO
from pipelines.arms.online_dpo import ONLINE_DPO, ONLINE_DPO_GT
from pipelines.arms.optimum import OPTIMUM
from pipelines.arms.orpo import ORPO
from pipelines.arms.ppo import PPO
from pipelines.arms.ppo_adaptive import PPO_ADAPTIVE
from pipelines.arms.ppo_gt import PPO_GT
from pipelines.arms.preferred_ft import PREFERRED_FT
from pipelines.arms.reinforce import REINFORCE
from pipelines.arms.rloo import RLOO
from pipelines.arms.sft import SFT
from pipelines.arms.simpo import SIMPO
from pipelines.arms.unlikelihood import UNLIKELIHOOD
from pipelines.shared.errors import UserError, unknown

__all__ = ["ARMS", "Arm", "Ingredients", "find", "register"]

ARMS: dict[str, Arm] = {}


def register(arm: Arm) -> Arm:
    """Make an arm known by its name, and return it.

    Raises:
        UserError: there is one of that name, or another arm has other settings in its section; or
            the arm cannot be part of a comparison.
    """
    check(arm)
    if arm.name in ARMS:
        raise UserError(
            f"arm {arm.name} is registered already ({ARMS[arm.name].summary}): choose another name"
        )
    for other in ARMS.values():
        ours, theirs = arm.settings, other.settings
        if ours and theirs and ours.section == theirs.section and ours != theirs:
            raise UserError(
                f"arm {arm.name}: the section {ours.section} is that of arm {other.name}, whose "
                "settings are others: choose another section, or `fixed` values"
            )
    ARMS[arm.name] = arm
    return arm


def find(name: str) -> Arm:
    """The arm of that name. Raises `UserError` with the nearest right name."""
    if name not in ARMS:
        raise unknown("arm", name, ARMS)
    return ARMS[name]


# In the order of tables and lists.
register(SFT)
register(PREFERRED_FT)
register(UNLIKELIHOOD)
register(PPO)
register(PPO_ADAPTIVE)
register(PPO_GT)
register(REINFORCE)
register(RLOO)
register(GRPO)
register(DPO)
register(DPO_CONSERVATIVE)
register(DPO_ROBUST)
register(DPO_HINGE)
register(IPO)
register(IPO_MEAN)
register(KTO)
register(SIMPO)
register(ORPO)
register(ONLINE_DPO)
register(ONLINE_DPO_GT)
register(BEST_OF_N)
register(BEST_OF_N_PROXY)
register(OPTIMUM)
