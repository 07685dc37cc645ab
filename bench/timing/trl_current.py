"""A worker in an environment with TRL 1.16.0: its DPOTrainer, its RewardTrainer, and `generate` of
the Transformers beside it.

TRL takes DPO's pairs as text, tokenizes them and appends EOS. The preparation of the data is
replaced so that both sides train on the same ids; everything else is TRL's.
"""

from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from timing.gate import Gate, repeat
from timing.job import Job, start


class GivenIds(DPOTrainer):
    """DPOTrainer on token ids."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def dpo(job: Job) -> None:
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(job.folder / name, dtype=torch.float32)
        for name in ("policy", "reference")
    )
    trainer = GivenIds(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            **job.pair_arguments(),
            beta=0.1,
            precompute_ref_log_probs=job.side == "trl-precomputed",
        ),
        train_dataset=Dataset.from_dict(job.data("prompt_ids", "chosen_ids", "rejected_ids")),
        processing_class=AutoTokenizer.from_pretrained(job.folder / "tokenizer"),
    )
    job.run(trainer, Gate(job.line))


def reward(job: Job) -> None:
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            job.folder / "reward", num_labels=1, dtype=torch.float32
        ),
        args=RewardConfig(**job.pair_arguments(), max_length=None),
        train_dataset=Dataset.from_dict(job.rewards_data()),
        processing_class=AutoTokenizer.from_pretrained(job.folder / "tokenizer"),
    )
    job.run(trainer, Gate(job.line))


def decode(job: Job) -> None:
    case = job.case
    ids = torch.tensor(job.data("prompts")["prompts"][: case.rows])
    model = AutoModelForCausalLM.from_pretrained(job.folder / "policy", dtype=torch.float32)
    # Without an EOS there is no length to enforce: min_new_tokens costs nothing.
    model.eval().generation_config.eos_token_id = None

    def tick() -> None:
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            min_new_tokens=case.completion,
            max_new_tokens=case.completion,
            pad_token_id=model.config.pad_token_id,
        )
        assert made.shape[1] == case.prompt + case.completion

    repeat(Gate(job.line), tick)


if __name__ == "__main__":
    told = start()
    {"dpo": dpo, "reward": reward, "decode": decode}[told.task](told)
