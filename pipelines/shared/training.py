"""What every trainer of the project shares: arguments, cost, progress, saved policies."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipelines.shared.adapters import merged, weights_of
from pipelines.shared.ledger import Ledger, ModelCost, trained_share
from pipelines.shared.model_card import CARD, model_card
from pipelines.shared.specs import WeightsSpec
from pipelines.shared.steps import Context, write_json

POLICIES = "policies.json"
LOOKED_AT = 1024  # rows of its data on which an arm's loss is compared before and after


def trainer_arguments(context: Context) -> dict[str, Any]:
    """Arguments that all trainers get: none changes a result but seed and precision.

    bf16 and gradient checkpointing, on by default in TRL, cost 15x or an error on a CPU.
    """
    weights: WeightsSpec = weights_of(context)
    return {
        "output_dir": str(context.path / "trainer"),
        "use_cpu": context.runtime.device == "cpu",
        "bf16": weights.precision == "bf16",
        "gradient_checkpointing": context.runtime.gradient_checkpointing,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "logging_nan_inf_filter": False,  # a loss that is NaN must be seen
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": context.seed,
    }


def micro_batched(context: Context, batch_size: int) -> dict[str, Any]:
    """A batch as arguments of a Trainer, in as many parts as the step was told to take it in.

    The gradients of the parts add up to the batch's, so that a result does not depend on them
    beyond float rounding where a loss is a mean over rows (KTO's is not); but for an epoch's last
    batch where that is smaller and its parts are unequal, whose rows weigh a little differently.
    """
    least = min(context.micro_batches, batch_size)
    parts = next(each for each in range(least, batch_size + 1) if batch_size % each == 0)
    context.parts = max(context.parts, parts)
    context.divisible |= parts < batch_size
    return {
        "per_device_train_batch_size": batch_size // parts,
        "gradient_accumulation_steps": parts,
    }


class Accounted:
    """Mixin for a Trainer: books the FLOPs and tokens of every step in a ledger.

    Call `account` before training. A backward pass costs a forward pass for the gradients of the
    activations, and another for those of the weights, as far as they are trained.
    """

    ledger: Ledger
    cost: ModelCost
    passes: float = 3.0
    model: Any

    def account(self, ledger: Ledger, name: str = "policy") -> None:
        """Book in this ledger from now on; what is trained is noted there as the network `name`."""
        self.ledger, self.cost = ledger, ModelCost.of(self.model)
        self.passes = 2 + trained_share(self.model)
        ledger.network(name, self.model, trained=True)

    def forward_flops(self, inputs: dict[str, Any]) -> int:
        """Of the forward pass over a batch; each trainer knows what it computes."""
        raise NotImplementedError

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        tokens = int(inputs["attention_mask"].sum())
        flops = round(self.passes * self.forward_flops(inputs))
        self.ledger.add(flops=flops, tokens_trained=tokens)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.ledger.add(flops=self.forward_flops(inputs))
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]


def with_preference(collator: Callable[[list], dict]) -> Callable[[list], dict]:
    """A collator of pairs that also passes on their column `preference`, (B,) fp32."""

    def collate(rows: list) -> dict:
        preference = torch.tensor([row["preference"] for row in rows], dtype=torch.float32)
        return {**collator(rows), "preference": preference}

    return collate


def log_training_loss(trainer: Any, context: Context, data: Any, at: str) -> None:
    """Log the loss that a trainer minimises, on the first `LOOKED_AT` rows of its data.

    It is a look from outside, not work of the method: neither its cost nor the random numbers that
    follow feel it.

    Args:
        at: start or end (of the training).
    """
    with context.ledger.aside("look"), torch.random.fork_rng():
        loss = trainer.evaluate(data.select(range(min(len(data), LOOKED_AT))))["eval_loss"]
    context.log({"training_loss": finite(loss), "at": at})


def fit(trainer: Any, context: Context, writer: "PolicyWriter", data: Any) -> None:
    """Train an `Accounted` trainer on `data`, its loss looked at before and after, and write the
    policy."""
    trainer.account(context.ledger)
    reference = getattr(trainer, "ref_model", None)  # TRL keeps none where its log-probs are given
    if reference is not None:
        context.ledger.network("reference", reference)
    log_training_loss(trainer, context, data, "start")
    with context.ledger.phase("train"):
        trainer.train()
    log_training_loss(trainer, context, data, "end")
    writer.finish()


class StepCallback(TrainerCallback):
    """Sends a trainer's progress and logs to its step, and saves policies on the way.

    Raises:
        FloatingPointError: the loss is not finite; training on would waste the rest of the run.
    """

    def __init__(
        self, context: Context, save: Callable[[int], None] | None = None, snapshots: int = 1
    ):
        self.context = context
        self.save = save
        self.snapshots = snapshots

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.context.progress(state.global_step, state.max_steps, "steps")
        if self.save and state.global_step in snapshot_steps(state.max_steps, self.snapshots):
            self.save(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(float(loss)):
            raise FloatingPointError(
                f"loss is {loss} at step {state.global_step}: lower the learning rate"
            )
        row = {key: finite(value) for key, value in (logs or {}).items() if key != "total_flos"}
        self.context.log({"step": state.global_step, **row})


def finite(value: Any) -> float | None:
    """`value` as a float, None where it is not finite (JSON has no NaN)."""
    number = float(value)
    return number if math.isfinite(number) else None


def snapshot_steps(total: int, snapshots: int) -> set[int]:
    """Evenly spaced steps, the last one included."""
    return {round(total * part / snapshots) for part in range(1, snapshots + 1)} - {0}


class PolicyWriter:
    """Saves policies of one run: checkpoint/ for the last step, snapshots/step-N/ before it."""

    def __init__(self, context: Context, model: Any, tokenizer: Any):
        self.path, self.model, self.tokenizer = context.path, model, tokenizer
        self.card = model_card(context.step)
        self.written: list[dict[str, Any]] = []

    def __call__(self, step: int) -> None:
        """Save the policy as it is now.

        Raises:
            FloatingPointError: a weight is not finite; such a policy must never count as a result.
        """
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise FloatingPointError(
                f"the weights are not finite at step {step}: training diverged"
            )
        folder = f"snapshots/step-{step}"
        merged(self.model).save_pretrained(self.path / folder)
        self.written.append({"step": step, "folder": folder})

    def finish(self) -> None:
        """Make the last saved policy the checkpoint, with its tokenizer and its card; write
        policies.json."""
        last = self.written[-1]
        shutil.move(self.path / last["folder"], self.path / "checkpoint")
        last["folder"] = "checkpoint"
        self.tokenizer.save_pretrained(self.path / "checkpoint")
        (self.path / "checkpoint" / CARD).write_text(self.card)
        write_json(self.path / POLICIES, self.written)
        for leftover in ("trainer", "snapshots"):
            folder = self.path / leftover
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def saved_policies(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of each policy that a run saved, the last one at the end."""
    return [
        (row["step"], folder / row["folder"]) for row in json.loads((folder / POLICIES).read_text())
    ]
