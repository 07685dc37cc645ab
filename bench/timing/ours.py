"""A worker in the project's environment: our side of each task.

DPO's reference log-probs are computed before the first tick: they are made once for an SFT model
and its pairs, and every run on them shares the file.
"""

import itertools
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, RewardConfig

from pipelines.dpo.family import PairTrainer
from pipelines.dpo.specs import DPOSpec
from pipelines.rlhf.ppo import PPOTrainer
from pipelines.rlhf.ppo_config import PPOConfig
from pipelines.rlhf.reward_model import AccountedRewardTrainer
from pipelines.shared.ledger import Ledger
from pipelines.shared.logprobs import completion_logprobs, pack
from pipelines.shared.models import (
    load_policy,
    load_reward_model,
    load_tokenizer,
    new_reward_model,
)
from pipelines.shared.sampling import keyed_uniforms, sample
from timing.gate import Gate, repeat
from timing.gemms import Recorder
from timing.job import STEPS, Job, start


def dpo(job: Job) -> None:
    tokenizer = load_tokenizer(job.folder / "tokenizer")
    data = job.data("prompt_ids", "chosen_ids", "rejected_ids")
    reference = load_policy(job.folder / "reference")
    for side in ("chosen", "rejected"):
        data[f"ref_{side}_logps"] = logprobs(
            reference,
            data["prompt_ids"],
            data[f"{side}_ids"],
            tokenizer.pad_token_id,
            job.case.pairs,
        )
    del reference
    trainer = PairTrainer(
        spec=DPOSpec(beta=0.1),
        model=load_policy(job.folder / "policy"),
        args=DPOConfig(
            **job.pair_arguments(),
            precompute_ref_log_probs=True,
            beta=0.1,
            loss_type=["sigmoid"],
            max_length=None,
        ),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
    )
    trainer.account(Ledger())
    job.run(trainer, Gate(job.line, recorder=Recorder()))


@torch.no_grad()
def logprobs(model: Any, prompts: list, completions: list, pad_id: int, size: int) -> list[Any]:
    """Log-probs (nats) of whole completions, `size` at a time."""
    parts = []
    for begin in range(0, len(prompts), size):
        rows = slice(begin, begin + size)
        sequences = pack(prompts[rows], completions[rows], pad_id)
        parts.append(completion_logprobs(model, sequences).sum(-1))
    return torch.cat(parts).tolist()


def reward(job: Job) -> None:
    torch.manual_seed(0)  # of the head
    trainer = AccountedRewardTrainer(
        model=new_reward_model(job.folder / "policy"),
        args=RewardConfig(**job.pair_arguments(), max_length=None),
        train_dataset=Dataset.from_dict(job.rewards_data()),
        processing_class=load_tokenizer(job.folder / "tokenizer"),
    )
    trainer.account(Ledger())
    job.run(trainer, Gate(job.line, recorder=Recorder()))


def ppo(job: Job) -> None:
    """With a critic of its own, or with a head on the policy's trunk (ours-shared)."""
    case, shared = job.case, job.side == "ours-shared"
    ledger = Ledger()
    trainer = PPOTrainer(
        model=load_policy(job.folder / "policy"),
        ref_model=load_policy(job.folder / "reference"),
        reward_model=load_reward_model(job.folder / "reward"),
        value_model=None if shared else load_reward_model(job.folder / "reward"),
        args=PPOConfig(
            **job.arguments(),
            updates=STEPS,
            rollouts=case.rollouts,
            num_ppo_epochs=case.epochs,
            num_mini_batches=case.minibatches,
            max_completion_length=case.completion,
            stop_at_eos=False,
            share_trunk=shared,
            max_grad_norm=0.0,  # TRL's does not clip
        ),
        train_dataset=Dataset.from_dict(
            {"prompt_ids": job.data("prompts")["prompts"][: case.rollouts]}
        ),
        processing_class=load_tokenizer(job.folder / "tokenizer"),
        ledger=ledger,
    )

    def counters() -> dict[str, float]:
        return {"rollout": ledger.phases().get("rollout", {}).get("seconds", 0.0)}

    job.run(trainer, Gate(job.line, trainer.args.steps_per_update, Recorder(), counters))


def decode(job: Job) -> None:
    case = job.case
    prompts = job.data("prompts")["prompts"][: case.rows]
    model = load_policy(job.folder / "policy")
    pad_id = load_tokenizer(job.folder / "tokenizer").pad_token_id
    stream = itertools.count()

    def tick() -> None:
        noise = keyed_uniforms(0, next(stream), range(case.rows), case.completion)
        sample(model, prompts, noise, eos_id=None, pad_id=pad_id)

    repeat(Gate(job.line, recorder=Recorder()), tick)


if __name__ == "__main__":
    told = start()
    {"dpo": dpo, "reward": reward, "ppo": ppo, "decode": decode}[told.task](told)
