"""A worker in an environment with TRL 1.12.0, the last release that has a PPOTrainer."""

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from timing.gate import Gate
from timing.job import STEPS, Job, start


def ppo(job: Job) -> None:
    """One call of `on_step_end` is one update. A batch is a whole rollout, which TRL cuts into
    minibatches of one micro-batch each; without a stop token no completion ends early."""
    case = job.case
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(job.folder / name, dtype=torch.float32)
        for name in ("policy", "reference")
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(
            job.folder / "reward", num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    )
    data = Dataset.from_dict({"input_ids": job.data("prompts")["prompts"][: case.rollouts]})
    trainer = PPOTrainer(
        args=PPOConfig(
            **job.arguments(),
            per_device_train_batch_size=case.rollouts,
            gradient_accumulation_steps=1,
            num_mini_batches=case.minibatches,
            num_ppo_epochs=case.epochs,
            total_episodes=case.rollouts * STEPS,
            local_rollout_forward_batch_size=64,
            response_length=case.completion,
            stop_token=None,
            temperature=1.0,
            num_sample_generations=0,
        ),
        processing_class=AutoTokenizer.from_pretrained(job.folder / "tokenizer"),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
    )
    job.run(trainer, Gate(job.line))


if __name__ == "__main__":
    ppo(start())
