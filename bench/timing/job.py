"""What a worker is told at its start, and the arguments that all trainers get."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from timing.cases import LOSS_STEPS, Case, case_of
from timing.gate import Gate, Line, Losses

STEPS = 100_000  # more than are ever ordered; the worker is stopped


@dataclass(frozen=True)
class Job:
    """One side of one measurement.

    Attributes:
        task, side: see `cases.SIDES`.
        folder: of `timing.models`.
        out: a folder of the worker's own.
        losses: train `LOSS_STEPS` steps without a gate and answer with the losses.
    """

    task: str
    side: str
    folder: Path
    out: str
    case: Case
    losses: bool
    line: Line

    def data(self, *columns: str) -> dict[str, list[list[int]]]:
        """Columns of the pairs, or the prompts."""
        data = json.loads((self.folder / "data.json").read_text())
        return {name: data[name] for name in columns}

    def rewards_data(self) -> dict[str, list[list[int]]]:
        """The pairs with their prompts before them."""
        data = self.data("prompt_ids", "chosen_ids", "rejected_ids")
        prompts = data.pop("prompt_ids")
        return {
            name: [prompt + ids for prompt, ids in zip(prompts, rows, strict=True)]
            for name, rows in data.items()
        }

    def arguments(self) -> dict[str, Any]:
        """Of any trainer: fp32, on the CPU, nothing saved or reported."""
        return {
            "output_dir": self.out,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }

    def pair_arguments(self) -> dict[str, Any]:
        """Of a trainer on pairs. TRL's default learning rates would leave the losses that are
        compared where they start."""
        return {
            **self.arguments(),
            "per_device_train_batch_size": self.case.pairs,
            "max_steps": LOSS_STEPS if self.losses else STEPS,
            "logging_steps": 1 if self.losses else 10,
            "learning_rate": 1e-4 if self.losses else 1e-5,
        }

    def run(self, trainer: Any, gate: Gate) -> None:
        """Train under the gate until stopped; or, for its losses, to the end."""
        if not self.losses:
            trainer.add_callback(gate)
            trainer.train()
            return
        losses = Losses()
        trainer.add_callback(losses)
        trainer.train()
        self.line.answer(losses=losses.values)


def start() -> Job:
    """The job of this process: a JSON object, the first argument."""
    line = Line()
    values = json.loads(sys.argv[1])
    torch.set_num_threads(values.pop("threads"))
    values["folder"] = Path(values["folder"])
    values["case"] = case_of(values["case"])
    return Job(**values, line=line)
