"""Runs of TRL 1.12.0's PPOTrainer for study_peer.py, in the environment that has it.

Told by a job file; imports nothing of the project. A run's folder has its saved policies,
policies.json and seconds.json, and appears when the run is finished.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Saver(TrainerCallback):
    """Saves the policy after the given updates; nothing else of the run."""

    def __init__(self, policy: Any, folder: Path, updates: list[int]) -> None:
        self.policy, self.folder, self.updates = policy, folder, updates
        self.written: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.updates:
            name = f"step-{state.global_step}"
            self.policy.save_pretrained(self.folder / name)
            self.written.append({"step": state.global_step, "folder": name})
            (self.folder / "policies.json").write_text(json.dumps(self.written))


def scorer(folder: Path, mean: float) -> Any:
    """The reward model with its mean score taken off; TRL reads the head's output as it is."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    head = torch.nn.Linear(model.score.in_features, 1)
    head.weight.data.copy_(model.score.weight.data)
    head.bias.data.fill_(-mean)
    model.score = head
    return model


def train(job: dict[str, Any], run: dict[str, Any], folder: Path) -> None:
    """One run, its policies saved in `folder`."""
    set_seed(run["arguments"]["seed"])  # its minibatches are in the order of numpy's generator
    start, judge = Path(job["start"]), Path(job["reward_model"])
    tokenizer = AutoTokenizer.from_pretrained(start, padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32) for _ in range(2)
    )
    prompts = Dataset.from_dict({"input_ids": job["prompts"]})
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "trainer"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            num_sample_generations=0,
            stop_token="eos",
            **run["arguments"],
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=scorer(judge, job["reward_mean"]),
        value_model=scorer(judge, job["reward_mean"]),
        train_dataset=prompts,
        eval_dataset=prompts,
        callbacks=[Saver(policy, folder, run["save_after"])],
    )
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("job", type=Path)
    job = json.loads(parser.parse_args().job.read_text())
    assert trl.__version__ == job["trl"], f"this environment has trl {trl.__version__}"
    torch.set_num_threads(job["threads"])
    for run in job["runs"]:
        partial, started = Path(run["partial"]), time.perf_counter()
        train(job, run, partial)
        seconds = time.perf_counter() - started
        (partial / "seconds.json").write_text(json.dumps({"seconds": seconds}))
        partial.rename(run["folder"])
        print(f"FINISHED {run['label']}", flush=True)


if __name__ == "__main__":
    main()
