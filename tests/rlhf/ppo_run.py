"""A small PPO run as a program, for tests of several processes and of resuming.

python ppo_run.py FOLDER [--updates N] [--accumulation N] [--resume] [--die-at STEP]

Writes FOLDER/losses.json on the main process: the logged rows, and FOLDER/weights.pt.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback

from pipelines.rlhf import PPOConfig, PPOTrainer
from pipelines.shared.corpus import train_tokenizer

TEXTS = ["a fine, funny and moving film", "a dull film that goes nowhere", "neither here nor there"]
PROMPTS = ["a fine", "a dull film", "it is", "nor", "a film that", "goes", "moving", "and here it"]


class DieAt(TrainerCallback):
    """SIGKILL at a step: nothing can be tidied up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--rollout-batch", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die-at", type=int, default=-1)
    parser.add_argument("--settings", type=json.loads, default={})
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, vocab_size=280)
    size = {"n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 2}
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = GPT2Config(vocab_size=len(tokenizer), bos_token_id=None, **tokens, **size)
    policy = GPT2LMHeadModel(shape)
    for weight in policy.parameters():
        weight.data.mul_(3)
    # An EOS that the model likes: completions of many lengths, so that parts must be padded.
    start = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    with torch.no_grad():
        liked = int(policy.eval()(start).logits[0, -1].argmax())
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(liked)
    policy.lm_head.weight.data[liked] *= 3
    shape.num_labels = 1
    judge = GPT2ForSequenceClassification(shape)
    settings = {
        "kl_coef": 0.05,
        "kl_control": "adaptive",
        "kl_target": 0.5,
        "normalise_values": True,
        "ema_reference": 0.9,
    } | given.settings
    trainer = PPOTrainer(
        policy,
        args=PPOConfig(
            str(given.folder),
            updates=given.updates,
            rollouts=32,
            rollout_batch_size=given.rollout_batch,
            num_ppo_epochs=2,
            num_mini_batches=2,
            gradient_accumulation_steps=given.accumulation,
            max_completion_length=6,
            learning_rate=1e-3,
            save_strategy="steps",
            save_steps=3,  # not a whole number of updates: the checkpoint waits for the boundary
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            seed=0,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        reward_model=judge,
        reward_funcs=lambda completion_ids, **_: [
            sum(token % 2 == 0 for token in ids) for ids in completion_ids
        ],
        callbacks=[DieAt(given.die_at)],
    )
    networks, write = trainer._networks, trainer._networks.save

    def save(folder: Path) -> None:
        with (given.folder / "saved_by.txt").open("a") as file:
            file.write(f"{trainer.accelerator.process_index}\n")
        write(folder)

    networks.save = save
    own = trainer.accelerator
    (given.folder / f"rank-{own.process_index}-of-{own.num_processes}").touch()
    trainer.train(resume_from_checkpoint=given.resume)
    if trainer.is_world_process_zero():
        (given.folder / "losses.json").write_text(json.dumps(trainer.state.log_history))
        torch.save(trainer._networks.state_dict(), given.folder / "weights.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)  # all is written; gloo's threads sometimes abort an ordinary exit


if __name__ == "__main__":
    main()
