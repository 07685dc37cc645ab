"""PPO as a step: policy and reference from the SFT model, critic from the reward model."""

import dataclasses
from typing import Any

from datasets import Dataset

from pipelines.rlhf.actor_critic import new_critic
from pipelines.rlhf.ppo import PPOTrainer
from pipelines.rlhf.ppo_config import PPOConfig
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.adapters import adapted, weights_of
from pipelines.shared.corpus import training_prompts
from pipelines.shared.gold import load_gold
from pipelines.shared.judges import as_table
from pipelines.shared.models import load_policy, load_reward_model, load_tokenizer
from pipelines.shared.specs import SamplingSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import (
    PolicyWriter,
    StepCallback,
    micro_batched,
    trainer_arguments,
)


def train(context: Context) -> None:
    """Step: one PPO run on the pairs' prompts. Writes checkpoint/, snapshots/, policies.json."""
    run(context, context.spec("ppo"))


def run(context: Context, spec: PPOSpec) -> None:
    """PPO by `spec`, against the reward model or, where there is none upstream, the gold reward."""
    sampling: SamplingSpec = context.spec("sampling")
    sft, device = context.inputs["sft"] / "checkpoint", context.runtime.device
    tokenizer = load_tokenizer(sft)
    policy = adapted(context, load_policy(sft))
    reference, critic = None, None
    if not weights_of(context).lora_rank:
        reference = load_policy(sft, device)  # else it is the policy below its adapters
    elif not spec.share_trunk:
        critic = adapted(context, new_value_model(context))
    writer = PolicyWriter(context, policy, tokenizer)
    parts = micro_batched(context, spec.rollouts // spec.minibatches)
    trainer = PPOTrainer(
        model=policy,
        ref_model=reference,
        **rewarded_by(context, tokenizer),
        value_model=critic,
        args=PPOConfig(
            **trainer_arguments(context),
            **ppo_arguments(spec),
            gradient_accumulation_steps=parts["gradient_accumulation_steps"],
            rollout_batch_size=parts["per_device_train_batch_size"] if context.parts > 1 else None,
            max_completion_length=sampling.max_new_tokens,
            temperature=sampling.temperature,
        ),
        train_dataset=Dataset.from_dict({"prompt_ids": training_prompts(context)}),
        processing_class=tokenizer,
        callbacks=[StepCallback(context, writer, spec.snapshots)],
        ledger=context.ledger,
    )
    with context.ledger.phase("update"):
        trainer.train()
    writer.finish()


def new_value_model(context: Context) -> Any:
    """A critic of its own: the reward model, or else the SFT model's trunk with a head of zeros."""
    if "reward_model" in context.inputs:
        return load_reward_model(context.inputs["reward_model"] / "checkpoint")
    return new_critic(load_policy(context.inputs["sft"] / "checkpoint"))


def rewarded_by(context: Context, tokenizer: Any) -> dict[str, Any]:
    """The argument of PPOTrainer that says what is rewarded."""
    if "reward_model" in context.inputs:
        folder = context.inputs["reward_model"] / "checkpoint"
        return {"reward_model": load_reward_model(folder, context.runtime.device)}
    gold = load_gold(context.inputs["gold"], context.runtime.device)

    def gold_reward(
        prompt_ids: list[list[int]], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        return gold(as_table(prompt_ids, completion_ids, tokenizer)).tolist()

    return {"reward_funcs": gold_reward}


# Names of PPOConfig where PPOSpec has other ones: the command line's are the project's, the
# trainer's are TRL's.
RENAMED = {
    "ppo_epochs": "num_ppo_epochs",
    "minibatches": "num_mini_batches",
    "clip_range": "cliprange",
    "clip_range_value": "cliprange_value",
    "gae_lambda": "lam",
    "lr_schedule": "lr_scheduler_type",
}
OFF = {"clip_range_value": 0.0, "ratio_threshold": 0.0, "ema_reference": 1.0}
HANDLED = ("snapshots", "missing_eos", "missing_eos_value")  # below, or by the step


def ppo_arguments(spec: PPOSpec) -> dict[str, Any]:
    """`spec` as arguments of PPOConfig; a Spec has no None, so that some values stand for it."""
    arguments = {
        RENAMED.get(name, name): None if name in OFF and value == OFF[name] else value
        for name, value in dataclasses.asdict(spec).items()
        if name not in HANDLED
    }
    if spec.missing_eos == "replace":
        arguments["missing_eos_score"] = spec.missing_eos_value
    if spec.missing_eos == "subtract":
        arguments["missing_eos_penalty"] = -spec.missing_eos_value
    return arguments
