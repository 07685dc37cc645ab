"""The settings of RL's arms, stage 3 of RLHF and its relatives."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.shared.errors import UserError
from pipelines.shared.specs import Spec, setting


@dataclass(frozen=True)
class PPOSpec(Spec):
    """Stage 3 of RLHF: PPO on the reward minus kl_coef times the KL to the SFT model."""

    section: ClassVar[str] = "ppo"
    kl_coef: float = setting(0.1, "beta of the objective, per nat", at_least=0)
    updates: int = setting(60, "rollout phases", at_least=1)
    rollouts: int = setting(128, "completions per rollout phase", at_least=1)
    ppo_epochs: int = setting(4, "passes over each rollout", at_least=1)
    minibatches: int = setting(4, "optimiser steps per pass", at_least=1)
    learning_rate: float = setting(3e-4, "AdamW's start; see lr_schedule", above=0)
    adam_epsilon: float = setting(1e-5, "AdamW's", above=0)
    clip_range: float = setting(0.2, "of the policy's ratio", above=0)
    clip_range_value: float = setting(
        0.2, "of the value estimate, in the critic's units; 0: not clipped", at_least=0
    )
    vf_coef: float = setting(0.1, "weight of the value loss", at_least=0)
    gamma: float = setting(1.0, "discount per token", at_least=0, at_most=1)
    gae_lambda: float = setting(0.95, "of generalised advantage estimation", at_least=0, at_most=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    kl_control: str = setting(
        "fixed", "adaptive: kl_coef follows kl_target", choices=("fixed", "adaptive")
    )
    kl_target: float = setting(6.0, "of adaptive control, nats per sequence", above=0)
    kl_horizon: float = setting(10_000.0, "of adaptive control, sequences", above=0)
    kl_in: str = setting("reward", "where the penalty is", choices=("reward", "loss"))
    clamp_kl: bool = setting(False, "clamp each token's KL term at 0 from below")
    ema_reference: float = setting(
        1.0, "decay of the reference towards the policy, per update; 1: frozen", above=0, at_most=1
    )
    missing_eos: str = setting(
        "keep", "score of a completion without EOS", choices=("keep", "replace", "subtract")
    )
    missing_eos_value: float = setting(-1.0, "what replaces it, or (negative) is added to it")
    whiten_rewards: bool = setting(False, "divide token rewards by their std")
    whiten_advantages: bool = setting(True, "to mean 0 and std 1 over a rollout's tokens")
    value_after_end: bool = setting(False, "the state after an early EOS has the score, a value")
    normalise_values: bool = setting(False, "the critic predicts normalised returns")
    share_trunk: bool = setting(False, "the critic is a head on the policy's trunk")
    critic_warmup: int = setting(0, "first updates in which only the critic learns", at_least=0)
    ratio_threshold: float = setting(
        0.0, "mean ratio at which the rest of an update is skipped; 0: never", at_least=0
    )
    reshuffle_prompts: bool = setting(True, "anew each time the prompts are exhausted")
    reshuffle_minibatches: bool = setting(True, "anew in each pass over a rollout")
    top_k: int = setting(0, "of the rollouts; 0: all tokens", at_least=0)
    top_p: float = setting(1.0, "of the rollouts; 1: all tokens", above=0, at_most=1)
    stop_at_eos: bool = setting(True, "a completion ends with its first EOS")
    skip_padding: bool = setting(True, "position ids count real tokens only")
    keyed_noise: bool = setting(True, "sampling noise keyed by global prompt index")
    reward_reads_prompt: bool = setting(True, "the reward model reads prompt and completion")
    disable_dropout: bool = setting(True, "everywhere")
    lr_schedule: str = setting("linear", "of the learning rate", choices=("linear", "constant"))
    snapshots: int = setting(3, "policies saved over training, the last one included", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollouts % self.minibatches:
            raise UserError(
                f"ppo.rollouts = {self.rollouts}: must be a multiple of "
                f"minibatches = {self.minibatches}"
            )


@dataclass(frozen=True)
class ReinforceSpec(Spec):
    """REINFORCE: one step along the policy gradient for each rollout, with a learnt baseline."""

    section: ClassVar[str] = "reinforce"
    kl_coef: float = setting(0.1, "beta of the objective, per nat", at_least=0)
    updates: int = setting(60, "rollout phases, one optimiser step each", at_least=1)
    rollouts: int = setting(128, "completions per rollout phase", at_least=1)
    learning_rate: float = setting(1e-3, "AdamW's start; linear to 0", above=0)
    vf_coef: float = setting(0.1, "weight of the value loss", at_least=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    snapshots: int = setting(3, "policies saved over training, the last one included", at_least=1)


@dataclass(frozen=True)
class GroupSpec(Spec):
    """What RLOO and GRPO share: several completions of each prompt judge one another."""

    kl_coef: float = setting(0.1, "weight of the KL penalty, per nat", at_least=0)
    updates: int = setting(60, "rollout phases", at_least=1)
    rollouts: int = setting(128, "completions per rollout phase", at_least=2)
    group: int = setting(4, "completions of each prompt", at_least=2)
    epochs: int = setting(4, "passes over each rollout", at_least=1)
    minibatches: int = setting(4, "optimiser steps per pass", at_least=1)
    learning_rate: float = setting(1e-4, "AdamW's start; linear to 0", above=0)
    clip_range: float = setting(0.2, "of the ratio", above=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    snapshots: int = setting(3, "policies saved over training, the last one included", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "minibatches"):
            if self.rollouts % getattr(self, name):
                raise UserError(
                    f"{self.section}.rollouts = {self.rollouts}: must be a multiple of "
                    f"{name} = {getattr(self, name)}"
                )


@dataclass(frozen=True)
class RLOOSpec(GroupSpec):
    """RLOO: the baseline of a completion is the mean reward of its prompt's others."""

    section: ClassVar[str] = "rloo"
    normalise_advantages: bool = setting(False, "to mean 0 and std 1 over a rollout")


@dataclass(frozen=True)
class GRPOSpec(GroupSpec):
    """GRPO: rewards standardised within the group; k3 in the loss, not KL in the reward."""

    section: ClassVar[str] = "grpo"
    scale_rewards: str = setting(
        "group", "divide by the standard deviation of", choices=("group", "batch", "none")
    )
    loss_type: str = setting(
        "grpo",
        "mean over a completion's tokens, or dr_grpo: sum over them over a constant",
        choices=("grpo", "dr_grpo"),
    )
