"""PPO's settings: every detail of pipelines/rlhf/README.md that is a choice, with its default."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


CHOICES = {
    "kl_control": ("fixed", "adaptive"),
    "kl_in": ("reward", "loss"),
    "truncate_at": ("whitespace", "newline", "token"),
}
POSITIVE = (
    "updates",
    "rollouts",
    "num_ppo_epochs",
    "num_mini_batches",
    "max_completion_length",
    "temperature",
    "top_p",
    "kl_target",
    "kl_horizon",
    "cliprange",
)
POSITIVE_OR_NONE = (
    "rollout_batch_size",
    "max_prompt_length",
    "cliprange_value",
    "ratio_threshold",
    "ratio_tolerance",
)


@dataclass
class PPOConfig(TrainingArguments):
    """Settings of PPO beside HF's own (learning_rate, max_grad_norm, bf16, seed, save_steps, ...).

    The length of training is `updates` x `num_ppo_epochs` x `num_mini_batches` optimiser steps;
    max_steps, logging_steps (one row an update) and per_device_train_batch_size follow from it.
    `rollouts` and the minibatches are global: how many processes share them, and in how many
    gradient_accumulation_steps, changes no result beyond float rounding.

    Raises:
        ValueError: a value out of range, or batches that do not divide.
    """

    # Prompts
    max_prompt_length: int | None = setting(
        None, "Tokens; longer text prompts lose their beginning. None: they are an error."
    )
    truncate_at: str = setting(
        "whitespace", "Where a prompt may be cut: whitespace, newline or token (mid-word)."
    )
    strip_prompts: bool = setting(
        True, "Drop whitespace at a text prompt's end, so that completions begin with the space."
    )
    reshuffle_prompts: bool = setting(True, "Shuffle anew each time the prompts are exhausted.")
    # Rollout
    updates: int = setting(100, "Rollout phases.")
    rollouts: int = setting(512, "Completions per rollout phase, over all processes.")
    rollout_batch_size: int | None = setting(
        None, "Completions sampled and scored at once on a process. None: all of its share."
    )
    max_completion_length: int = setting(53, "Tokens sampled at most, EOS included.")
    temperature: float = setting(1.0, "Divides the logits in rollout, reference and update alike.")
    top_k: int = setting(0, "Sample from the likeliest tokens only; 0: from all.")
    top_p: float = setting(1.0, "Sample from the nucleus of this share only; 1: from all.")
    stop_at_eos: bool = setting(True, "A completion ends with its first EOS.")
    skip_padding: bool = setting(True, "Position ids count real tokens only.")
    keyed_noise: bool = setting(
        True, "Key the sampling noise by global prompt index; False: by process and local index."
    )
    # Reward
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Of the reward functions; None: 1 each."}
    )
    reward_reads_prompt: bool = setting(True, "The reward model reads prompt and completion.")
    missing_eos_score: float | None = setting(
        None, "Replaces the score of a completion without EOS; -1 in Stiennon et al. 2020."
    )
    missing_eos_penalty: float | None = setting(
        None, "Subtracted from the score of a completion without EOS."
    )
    whiten_rewards: bool = setting(False, "Divide token rewards by their std, mean kept.")
    # KL
    kl_coef: float = setting(0.05, "Coefficient of the KL penalty, per nat; where adaptive starts.")
    kl_control: str = setting("fixed", "fixed, or adaptive (Ziegler et al. 2019).")
    kl_target: float = setting(6.0, "Of adaptive control: nats per sequence.")
    kl_horizon: float = setting(10_000, "Of adaptive control: sequences.")
    kl_in: str = setting("reward", "The penalty is in the reward, or else in the loss.")
    clamp_kl: bool = setting(False, "Clamp each token's KL term at 0 from below (biased).")
    ema_reference: float | None = setting(
        None, "After each update: reference <- d reference + (1 - d) policy. None: it is frozen."
    )
    # Advantages
    gamma: float = setting(1.0, "Discount per token.")
    lam: float = setting(0.95, "Lambda of GAE.")
    whiten_advantages: bool = setting(True, "To mean 0 and std 1 over the real tokens.")
    value_after_end: bool = setting(
        False,
        "As in Huang et al. 2024 and TRL (which looks at the batch's longest completion instead of "
        "max_completion_length): the state after an early end has a value, and the score.",
    )
    normalise_values: bool = setting(False, "The critic predicts returns to mean 0 and std 1.")
    # Update
    num_ppo_epochs: int = setting(4, "Passes over each rollout.")
    num_mini_batches: int = setting(4, "Optimiser steps per pass.")
    reshuffle_minibatches: bool = setting(True, "Shuffle the rollout anew in each pass.")
    cliprange: float = setting(0.2, "Clip range of the policy's ratio.")
    cliprange_value: float | None = setting(0.2, "Clip range of the value. None: not clipped.")
    vf_coef: float = setting(0.1, "Weight of the value loss.")
    share_trunk: bool = setting(
        False, "The critic is a zero-initialised head on the policy's trunk, not a network."
    )
    critic_warmup: int = setting(0, "First updates in which only the critic learns.")
    ratio_threshold: float | None = setting(
        None, "Skip the rest of an update once a minibatch's mean ratio exceeds this."
    )
    ratio_tolerance: float | None = setting(
        None, "How far off 1 the first ratio may be. None: 1e-4, or 0.3 in bf16."
    )
    disable_dropout: bool = setting(True, "Dropout off everywhere; on, the first ratio is not 1.")
    learning_rate: float = setting(3e-6, "AdamW's start; linear to 0 by default.")
    adam_epsilon: float = setting(1e-5, "AdamW's.")
    logging_nan_inf_filter: bool = setting(False, "A loss that is NaN must be seen.")
    # Logs
    log_completions: bool = setting(
        False, "Each update: print a sample table and write it to completions/ (and wandb)."
    )
    num_completions_to_print: int = setting(5, "Rows of the sample table.")
    model_init_kwargs: dict | None = field(
        default=None, metadata={"help": "For from_pretrained, where the model is given by name."}
    )

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: must be {' or '.join(choices)}"
                )
        for name in (*POSITIVE, *POSITIVE_OR_NONE):
            value = getattr(self, name)
            if not (value is None and name in POSITIVE_OR_NONE) and not value > 0:
                raise ValueError(f"{name} = {value}: must be above 0")
        for name in ("kl_coef", "vf_coef", "top_k", "critic_warmup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 0")
        for name in ("gamma", "lam", "top_p", "ema_reference"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be between 0 and 1")
        if self.missing_eos_score is not None and self.missing_eos_penalty is not None:
            raise ValueError("set missing_eos_score or missing_eos_penalty, not both")
        if self.kl_control == "adaptive" and self.kl_coef == 0:
            raise ValueError("kl_coef = 0: adaptive control multiplies it, start above 0")
        steps = self.updates * self.steps_per_update
        if self.max_steps not in (-1, steps):
            raise ValueError(
                "the length of training is `updates`: max_steps follows from it, leave it at -1"
            )
        if self.fp16:
            raise ValueError("fp16 overflows in PPO's ratios: use bf16, or fp32")
        if self.eval_strategy != "no":
            raise ValueError("PPOTrainer does not evaluate: evaluate the saved policies")
        if self.save_strategy == "best":
            raise ValueError("save_strategy = 'best' needs an evaluation: use steps or epoch")
        self.max_steps = steps
        # What is logged are means over an update: one row for each.
        self.logging_strategy, self.logging_first_step = "steps", False
        self.logging_steps = self.steps_per_update
        self.remove_unused_columns = False
        super().__post_init__()
        parts = self.num_mini_batches * self.gradient_accumulation_steps * self.world_size
        if self.rollouts % parts:
            raise ValueError(
                f"rollouts = {self.rollouts} must be a multiple of {parts} = num_mini_batches "
                f"{self.num_mini_batches} x gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps} x {self.world_size} processes"
            )
        if not self.skip_padding and (self.rollout_batch_size or self.world_size > 1):
            raise ValueError(
                "skip_padding = False makes positions depend on the batch: use one process and no "
                "rollout_batch_size"
            )
        self.per_device_train_batch_size = self.rollouts // parts

    @property
    def steps_per_update(self) -> int:
        """Optimiser steps between two rollout phases."""
        return self.num_ppo_epochs * self.num_mini_batches
