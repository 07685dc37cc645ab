"""RLOO and GRPO as steps: policy and reference from the SFT model, no critic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig, RLOOConfig

from pipelines.rlhf.group import ExactIdsGRPOTrainer, ExactIdsRLOOTrainer
from pipelines.rlhf.specs import GroupSpec, GRPOSpec, RLOOSpec
from pipelines.shared.adapters import adapted
from pipelines.shared.corpus import training_prompts
from pipelines.shared.judges import Judge, judge_of
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.specs import SamplingSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import PolicyWriter, StepCallback, trainer_arguments

TRAINERS: dict[str, tuple[Any, Any]] = {
    "rloo": (ExactIdsRLOOTrainer, RLOOConfig),
    "grpo": (ExactIdsGRPOTrainer, GRPOConfig),
}


def train_rloo(context: Context) -> None:
    """Step: one RLOO run on the pairs' prompts. Writes checkpoint/, snapshots/, policies.json."""
    train(context, "rloo")


def train_grpo(context: Context) -> None:
    """Step: one GRPO run on the pairs' prompts. Writes checkpoint/, snapshots/, policies.json."""
    train(context, "grpo")


def train(context: Context, method: str) -> None:
    """One run against the judge that is upstream."""
    sampling: SamplingSpec = context.spec("sampling")
    fit(
        context,
        method,
        context.inputs["sft"] / "checkpoint",
        training_prompts(context),
        judge_of(context),
        max_completion_length=sampling.max_new_tokens,
        temperature=sampling.temperature,
    )


def fit(
    context: Context,
    method: str,
    start: Path,
    prompts: Sequence[Sequence[int]],
    judge: Judge,
    **sampling: Any,
) -> None:
    """Train the policy in `start`, which is the reference as well, and save it.

    Args:
        method: rloo or grpo; the section of its spec.
        sampling: max_completion_length (tokens) and temperature.
    """
    spec: GroupSpec = context.spec(method)
    kind, config = TRAINERS[method]
    tokenizer, policy = load_tokenizer(start), adapted(context, load_policy(start))
    writer = PolicyWriter(context, policy, tokenizer)
    trainer = kind(
        model=policy,
        judge=judge,
        args=config(**trainer_arguments(context), **group_arguments(spec), **sampling),
        prompts=prompts,
        tokenizer=tokenizer,
        callbacks=[StepCallback(context, writer, spec.snapshots)],
        ledger=context.ledger,
    )
    with context.ledger.phase("update"):
        trainer.train()
    writer.finish()


# What would change the mathematics, and what TRL may one day have other defaults for. Sampling is
# the project's, of which TRL's options know nothing: they are at what it does.
PLAIN: dict[str, Any] = {
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "gradient_accumulation_steps": 1,
    "logging_first_step": False,
    "disable_dropout": True,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "epsilon_high": None,
    "mask_truncated_completions": False,
    "sync_ref_model": False,
    "reward_weights": None,
    "pad_to_multiple_of": None,
    "remove_unused_columns": False,
    "use_vllm": False,
}
PLAIN_GRPO: dict[str, Any] = {
    "importance_sampling_level": "token",
    "delta": None,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
    "multi_objective_aggregation": "sum_then_normalize",
    "use_bias_correction_kl": False,  # Shao et al. 2024; TRL's default weighs k3 with the ratio
    "cast_lm_head_to_fp32": False,
}


def group_arguments(spec: GroupSpec) -> dict[str, Any]:
    """`spec` as arguments of RLOOConfig or GRPOConfig; one row is logged for each update."""
    steps = spec.epochs * spec.minibatches
    arguments = {
        **PLAIN,
        "beta": spec.kl_coef,
        "num_generations": spec.group,
        "num_iterations": spec.epochs,
        "steps_per_generation": spec.minibatches,
        "per_device_train_batch_size": spec.rollouts // spec.minibatches,
        "max_steps": spec.updates * steps,
        "logging_steps": steps,
        "learning_rate": spec.learning_rate,
        "epsilon": spec.clip_range,
        "max_grad_norm": spec.max_grad_norm,
    }
    if isinstance(spec, RLOOSpec):
        own: dict[str, Any] = {
            "normalize_advantages": spec.normalise_advantages,
            "reward_clip_range": None,
        }
    elif isinstance(spec, GRPOSpec):
        own = {**PLAIN_GRPO, "scale_rewards": spec.scale_rewards, "loss_type": spec.loss_type}
    else:
        raise TypeError(f"neither RLOO nor GRPO: {type(spec).__name__}")
    return {**arguments, **own}
