"""A small DPO run as a program, for tests of several processes.

python dpo_run.py FOLDER [--batch PAIRS A PROCESS] [--accumulation N]

Writes FOLDER/losses.json on the main process: the logged rows.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from trl import DPOConfig

from pipelines.dpo.family import PairTrainer
from pipelines.dpo.specs import DPOSpec
from pipelines.shared.corpus import train_tokenizer
from pipelines.shared.ledger import Ledger
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec

TEXTS = ["a fine, funny and moving film", "a dull film that goes nowhere", "neither here nor there"]


def pairs(tokenizer) -> Dataset:
    """48 pairs of unequal lengths; the reference log-probs are made up, but are everyone's."""
    draw = torch.Generator().manual_seed(0)

    def ids(most: int) -> list[int]:
        length = int(torch.randint(1, most, (), generator=draw))
        return torch.randint(2, len(tokenizer), (length,), generator=draw).tolist()

    rows = [{"prompt_ids": ids(6), "chosen_ids": ids(9), "rejected_ids": ids(9)} for _ in range(48)]
    for row in rows:
        for side in ("chosen", "rejected"):
            row[f"ref_{side}_logps"] = -5.0 * len(row[f"{side}_ids"])
    return Dataset.from_list(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--accumulation", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, vocab_size=280)
    model = new_policy(ModelSpec(layers=2, width=32, heads=2, context=24), tokenizer)
    trainer = PairTrainer(
        spec=DPOSpec(beta=0.1),
        model=model,
        args=DPOConfig(
            str(given.folder),
            precompute_ref_log_probs=True,
            num_train_epochs=3,
            per_device_train_batch_size=given.batch,
            gradient_accumulation_steps=given.accumulation,
            learning_rate=1e-3,
            max_length=None,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            seed=0,
        ),
        train_dataset=pairs(tokenizer),
        processing_class=tokenizer,
    )
    trainer.account(Ledger())
    own = trainer.accelerator
    (given.folder / f"rank-{own.process_index}-of-{own.num_processes}").touch()
    trainer.train()
    if trainer.is_world_process_zero():
        (given.folder / "losses.json").write_text(json.dumps(trainer.state.log_history))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)  # all is written; gloo's threads sometimes abort an ordinary exit


if __name__ == "__main__":
    main()
