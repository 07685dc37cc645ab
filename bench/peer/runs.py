"""The study that study.py and study_peer.py time: PPO and DPO, each at the same four strengths of
the KL constraint. Its settings are the project's own; nothing is written down twice.
"""

from collections.abc import Sequence
from typing import Any

from experiments.sentiment import BETAS, SENTIMENT

ARMS = ("ppo", "dpo")


def assignments(more_betas: Sequence[float] = ()) -> list[str]:
    """`--set` arguments.

    Args:
        more_betas: values of dpo.beta besides those that both arms have.
    """
    return [f"dpo.beta={_values([*BETAS, *more_betas])}", f"ppo.kl_coef={_values(BETAS)}"]


def _values(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def study(scale: str, more_betas: Sequence[float] = ()) -> Any:
    """The `ComparisonStudy` that `run sentiment` with these options makes."""
    return SENTIMENT.resolve(scale, ARMS, assignments=assignments(more_betas))


def run_name(run: Any) -> str:
    """What a run is called in tables: "dpo beta0.1-s0"; "sft" for the model that all start from."""
    return "sft" if run.arm == "sft" else f"{run.policy.stage} {run.policy.label}"
