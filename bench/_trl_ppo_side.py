"""TRL's side of `parity_trl_ppo.py`: one update of the real `PPOTrainer.train()`, read in passing.

Runs in the environment that the parent script builds, never in the project's. No code of TRL is
replaced. Two sources of chance are: `torch.multinomial` draws the given completions while TRL
generates, and `numpy.random.permutation` gives the given order of the minibatches. What TRL
computes is read from the local variables of `train()` whenever it calls `accelerator.backward`.
"""

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

ROLLOUT = (
    "query_responses",
    "logprobs",
    "ref_logprobs",
    "scores",
    "rewards",
    "values",
    "advantages",
    "returns",
    "padding_mask",
    "padding_mask_p1",
)
STEP = ("new_logprobs", "vpred", "pg_loss", "vf_loss", "micro_batch_inds")


class Chance:
    """The given completions and minibatch orders, in the place of TRL's random draws.

    Args:
        rows: prompts and completions, token ids; the prompts are all different.
        orders: (epochs, rows) permutations, in the numbering of `rows`.
    """

    def __init__(self, rows: list[dict[str, list[int]]], orders: list[list[int]]) -> None:
        self.row_of = {tuple(row["prompt"]): number for number, row in enumerate(rows)}
        self.completions = [row["completion"] for row in rows]
        self.orders = iter(orders)
        self.order: list[int] = []  # self.order[i] is the given number of TRL's row i

    def permutation(self, size: int) -> np.ndarray:
        """The next given order, in TRL's numbering: (rows,)."""
        place = {number: i for i, number in enumerate(self.order)}
        given = next(self.orders)
        assert len(given) == size == len(place)
        return np.array([place[number] for number in given])

    def generate(self, real: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's `generate` for one chunk of rows, with the given completions as its draws."""
        queries, pad = args[1], args[2]
        chunk = [self.row_of[tuple(row[row != pad].tolist())] for row in queries]
        self.order += chunk
        step = -1

        def multinomial(probabilities: torch.Tensor, num_samples: int, **_: Any) -> torch.Tensor:
            nonlocal step
            step += 1
            assert num_samples == 1 and len(probabilities) == len(chunk)
            ids = [self.completions[n][step : step + 1] or [pad] for n in chunk]
            return torch.tensor(ids)

        with replaced(torch, "multinomial", multinomial):
            return real(*args, **kwargs)


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Any:
    """`module.name` is `value` inside the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def numpy_of(value: Any) -> np.ndarray:
    return value.detach().numpy().copy() if isinstance(value, torch.Tensor) else np.array(value)


def one_update(job: dict[str, Any], case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every intermediate of one update.

    Returns:
        `rollout/<name>` in TRL's order of rows, `order`, and `step<i>/<name>` for each minibatch,
        the gradient of every parameter among them (`step<i>/grad/<parameter>`).
    """
    folder, shared, own = Path(job["models"]), job["settings"], case["settings"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        for name in ("policy", "reference")
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(folder / name, dtype=torch.float32)
        for name in ("reward", "value")
    )
    data = Dataset.from_dict({"input_ids": [row["prompt"] for row in case["rows"]]})
    args = PPOConfig(
        output_dir=str(folder / "trl-out"),
        per_device_train_batch_size=shared["rollouts"],
        gradient_accumulation_steps=1,
        num_mini_batches=shared["num_mini_batches"],
        num_ppo_epochs=shared["num_ppo_epochs"],
        total_episodes=shared["rollouts"],
        local_rollout_forward_batch_size=shared["chunk"],
        response_length=own["max_completion_length"],
        learning_rate=shared["learning_rate"],
        adam_epsilon=shared["adam_epsilon"],
        lr_scheduler_type="constant",
        stop_token="eos",
        temperature=own["temperature"],
        whiten_rewards=own["whiten_rewards"],
        missing_eos_penalty=own["missing_eos_penalty"],
        gamma=own["gamma"],
        lam=own["lam"],
        kl_coef=own["kl_coef"],
        cliprange=shared["cliprange"],
        cliprange_value=shared["cliprange_value"],
        vf_coef=shared["vf_coef"],
        num_sample_generations=0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
    )
    chance = Chance(case["rows"], case["orders"])
    read: dict[str, np.ndarray] = {}
    steps = 0
    backward = trainer.accelerator.backward

    def reading_backward(loss: torch.Tensor, **kwargs: Any) -> None:
        nonlocal steps
        found = sys._getframe(1).f_locals
        if steps == 0:
            for name in ROLLOUT:
                read[f"rollout/{name}"] = numpy_of(found[name])
            read["rollout/context_length"] = np.array(found["context_length"])
        for name in STEP:
            read[f"step{steps}/{name}"] = numpy_of(found[name])
        backward(loss, **kwargs)
        for name, parameter in found["model"].named_parameters():
            if parameter.grad is not None:
                read[f"step{steps}/grad/{name}"] = numpy_of(parameter.grad)
        steps += 1

    real = ppo_trainer.generate
    with (
        replaced(trainer.accelerator, "backward", reading_backward),
        replaced(np.random, "permutation", chance.permutation),
        replaced(ppo_trainer, "generate", lambda *a, **k: chance.generate(real, *a, **k)),
    ):
        trainer.train()
    read["order"], read["steps"] = np.array(chance.order), np.array(steps)
    return read


def main() -> None:
    """Run every case of the job file, one .npz each, and write the versions used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    job = json.loads(parser.parse_args().job.read_text())
    torch.set_num_threads(1)
    out = Path(job["out"])
    for case in job["cases"]:
        np.savez(out / f"{case['name']}.npz", **one_update(job, case))
    versions = {module.__name__: module.__version__ for module in (trl, transformers, torch)}
    (out / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
