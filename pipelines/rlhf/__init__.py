"""RLHF in three stages. `from pipelines.rlhf import PPOConfig, PPOTrainer`.

The trainer is imported when it is asked for: the steps in pipeline.py must stay free of torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.rlhf.ppo import PPOTrainer
    from pipelines.rlhf.ppo_config import PPOConfig

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str) -> Any:
    if name == "PPOTrainer":
        from pipelines.rlhf.ppo import PPOTrainer

        return PPOTrainer
    if name == "PPOConfig":
        from pipelines.rlhf.ppo_config import PPOConfig

        return PPOConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
