"""PPO as a step: policy and reference from the SFT model, critic from the reward model."""

import pandas as pd
from datasets import Dataset

from pipelines.rlhf.ppo import PPOConfig, PPOTrainer
from pipelines.shared.corpus import prompts_of
from pipelines.shared.models import load_policy, load_reward_model, load_tokenizer
from pipelines.shared.specs import PPOSpec, SamplingSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import PolicyWriter, StepCallback, trainer_arguments


def train(context: Context) -> None:
    """Step: one PPO run on the pairs' prompts. Writes checkpoint/, snapshots/, policies.json."""
    spec: PPOSpec = context.spec("ppo")
    sampling: SamplingSpec = context.spec("sampling")
    sft, device = context.inputs["sft"] / "checkpoint", context.runtime.device
    tokenizer = load_tokenizer(sft)
    reviews = pd.read_parquet(context.inputs["corpus"] / "reviews.parquet")
    prompts = prompts_of(reviews, "preference", sampling.prompts)
    policy = load_policy(sft)
    writer = PolicyWriter(context, policy, tokenizer)
    trainer = PPOTrainer(
        model=policy,
        ref_model=load_policy(sft, device),
        reward=load_reward_model(context.inputs["reward_model"] / "checkpoint", device),
        value_model=load_reward_model(context.inputs["reward_model"] / "checkpoint"),
        args=PPOConfig(
            **trainer_arguments(context),
            kl_coef=spec.kl_coef,
            updates=spec.updates,
            rollouts=spec.rollouts,
            num_ppo_epochs=spec.ppo_epochs,
            num_mini_batches=spec.minibatches,
            max_completion_length=sampling.max_new_tokens,
            temperature=sampling.temperature,
            cliprange=spec.clip_range,
            cliprange_value=spec.clip_range_value,
            vf_coef=spec.vf_coef,
            gamma=spec.gamma,
            lam=spec.gae_lambda,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="linear",
            adam_epsilon=spec.adam_epsilon,
            max_grad_norm=spec.max_grad_norm,
        ),
        train_dataset=Dataset.from_dict({"prompt_ids": prompts["prompt_ids"].map(list).tolist()}),
        processing_class=tokenizer,
        callbacks=[StepCallback(context, writer, spec.snapshots)],
        ledger=context.ledger,
    )
    with context.ledger.phase("update"):
        trainer.train()
    writer.finish()
