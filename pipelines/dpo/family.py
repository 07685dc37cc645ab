"""DPO's family: one trainer on the same pairs, one loss for each arm.

`LOSSES` has all the arithmetic on one screen. A step's recipe has the settings of one arm, and
their section names the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from trl import DPOConfig

from pipelines.dpo.dpo import COLUMNS, ExactIdsDPOTrainer, pair_arguments
from pipelines.dpo.losses import (
    dpo_loss,
    hinge_loss,
    implicit_reward,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
    unlikelihood_loss,
)
from pipelines.dpo.reference import with_reference
from pipelines.dpo.specs import PairSpec
from pipelines.shared.adapters import adapted
from pipelines.shared.errors import UserError
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.preferences import MARGIN_COLUMNS
from pipelines.shared.reading import unwrapped
from pipelines.shared.steps import Context
from pipelines.shared.training import (
    PolicyWriter,
    StepCallback,
    fit,
    micro_batched,
    trainer_arguments,
)

NO_REFERENCE = frozenset({"simpo", "orpo", "unlikelihood"})  # sections whose loss reads none
MARGIN = "margin"  # a column of pairs
MISMATCHED = "mismatched_"  # of a batch's keys: prompts with completions of other prompts

Sides = tuple[torch.Tensor, torch.Tensor]  # (B,) of the chosen, (B,) of the rejected completions


@dataclass(frozen=True)
class PairLogprobs:
    """What a loss may ask of a batch of B pairs. Axis 0 of its tensors is (chosen, rejected).

    Attributes:
        tokens: (2, B, T) log-probs (nats) of the completions' tokens, 0 elsewhere.
        mask: (2, B, T) bool, True at these tokens.
        reference: (2, B) log-probs of the completions under the reference; 0 where there is none.
        mismatched: (N,) log-ratios of prompts with completions of other prompts; for KTO.
        margins: (B,) the labeller's reward of the chosen less that of the rejected completion;
            only where the data has them.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    reference: torch.Tensor | float
    mismatched: torch.Tensor
    margins: torch.Tensor | None = None

    @property
    def logprobs(self) -> torch.Tensor:
        """(2, B) of whole completions."""
        return self.tokens.sum(-1)

    @property
    def lengths(self) -> torch.Tensor:
        """(2, B) tokens."""
        return self.mask.sum(-1)

    def rewards(self, beta: float) -> Sides:
        """Implicit rewards."""
        return sides(implicit_reward(self.logprobs, self.reference, beta))

    def log_ratios(self) -> Sides:
        """log pi - log ref of whole completions; log pi where there is no reference."""
        return sides(self.logprobs - self.reference)

    def mean_log_ratios(self) -> Sides:
        """Log-ratios per token."""
        return sides((self.logprobs - self.reference) / self.lengths)

    def mean_logprobs(self) -> Sides:
        """Log-probs per token."""
        return sides(self.logprobs / self.lengths)


def sides(values: torch.Tensor) -> Sides:
    """(2, ...) as chosen and rejected."""
    return values[0], values[1]


Loss = Callable[[Any, PairLogprobs], torch.Tensor]  # (settings, pairs) -> (B,)

LOSSES: dict[str, Loss] = {  # by section
    "dpo": lambda spec, pairs: dpo_loss(*pairs.rewards(spec.beta)),
    "dpo_conservative": lambda spec, pairs: dpo_loss(
        *pairs.rewards(spec.beta), preference=1 - spec.label_smoothing
    ),
    "dpo_robust": lambda spec, pairs: robust_dpo_loss(
        *pairs.rewards(spec.beta), spec.label_smoothing
    ),
    "dpo_hinge": lambda spec, pairs: hinge_loss(*pairs.rewards(spec.beta)),
    "ipo": lambda spec, pairs: ipo_loss(*pairs.log_ratios(), spec.beta),
    "ipo_mean": lambda spec, pairs: ipo_loss(*pairs.mean_log_ratios(), spec.beta),
    "kto": lambda spec, pairs: kto_loss(
        *pairs.log_ratios(),
        kto_reference_point(pairs.mismatched),
        spec.beta,
        spec.desirable_weight,
        spec.undesirable_weight,
    ),
    "simpo": lambda spec, pairs: simpo_loss(
        *pairs.mean_logprobs(), spec.beta, gamma=spec.gamma_ratio * spec.beta
    ),
    "orpo": lambda spec, pairs: orpo_loss(*pairs.mean_logprobs(), spec.weight),
    "unlikelihood": lambda spec, pairs: unlikelihood_loss(
        *sides(pairs.tokens), pairs.mask[1], spec.alpha
    ),
}


class PairTrainer(ExactIdsDPOTrainer):
    """TRL's DPOTrainer with a loss of `LOSSES`, in training and in evaluation.

    Logs, besides the loss, means over pairs: `logps/chosen` and `logps/rejected`, log-probs (nats)
    of whole completions; with a reference `log_ratios/chosen` and `log_ratios/rejected`, how far
    these are from the reference's (nats); `margin`, the difference of their log-ratios, or of their
    log-probs where the arm has no reference (nats, not times beta, so that arms compare);
    `accuracy`, the share of pairs with a positive margin; and KTO's `kl`, its reference point z0
    (nats).

    Args:
        spec: the arm's settings; the section names the loss.
        ref_model: the reference; for KTO alone, whose mismatched completions nobody has scored.
        loss: another one, for an arm that is not in `LOSSES`.
        reference: whether the loss has a reference; None: as the section says.
    """

    def __init__(
        self,
        *args: Any,
        spec: PairSpec,
        loss: Loss | None = None,
        reference: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.spec = spec
        self.loss = loss or LOSSES[spec.section]
        self.reference = spec.section not in NO_REFERENCE if reference is None else reference
        self.columns = columns_of(self.reference)
        super().__init__(*args, **kwargs)
        data: Any = self.train_dataset
        if MARGIN in data.column_names:
            self.data_collator = with_margins(self.data_collator)
        if spec.section == "kto":
            positions = getattr(unwrapped(self.model).config, "max_position_embeddings", None)
            self.data_collator = with_mismatched(self.data_collator, positions)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        tokens = self.token_logprobs(model, inputs)
        reference: torch.Tensor | float = 0.0
        if self.reference:
            reference = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        pairs = PairLogprobs(
            tokens=tokens.unflatten(0, (2, -1)),
            mask=inputs["completion_mask"].bool().unflatten(0, (2, -1)),
            reference=reference,
            mismatched=self._mismatched_log_ratios(model, inputs),
            margins=inputs.get(MARGIN),
        )
        self._log_pairs(pairs, "train" if model.training else "eval")
        return self.loss(self.spec, pairs).mean()

    @torch.no_grad()
    def _mismatched_log_ratios(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """(2B,) nats, or none where the batch has no mismatched completions; books its cost."""
        mismatched = {
            name.removeprefix(MISMATCHED): value
            for name, value in inputs.items()
            if name.startswith(MISMATCHED)
        }
        if not mismatched:
            return torch.empty(0, device=inputs["input_ids"].device)
        # One forward pass of the policy and one of the reference, over as many completions as are
        # trained on.
        self.ledger.add(flops=2 * self.forward_flops(mismatched))
        policy, reference = (
            self.token_logprobs(each, mismatched).sum(-1) for each in (model, self.ref_model)
        )
        return policy - reference

    @torch.no_grad()
    def _log_pairs(self, pairs: PairLogprobs, mode: str) -> None:
        chosen, rejected = pairs.log_ratios()
        row = {
            "logps/chosen": pairs.logprobs[0].mean(),
            "logps/rejected": pairs.logprobs[1].mean(),
            "margin": (chosen - rejected).mean(),
            "accuracy": (chosen > rejected).float().mean(),
        }
        if self.reference:
            row |= {"log_ratios/chosen": chosen.mean(), "log_ratios/rejected": rejected.mean()}
        if self.spec.section == "kto":
            row["kl"] = kto_reference_point(pairs.mismatched)
        if self.accelerator.num_processes > 1:  # each has a part of the batch
            row = {name: self.accelerator.gather(value).mean() for name, value in row.items()}
        for name, value in row.items():
            self._metrics[mode][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Numbers are asked for here and not at every step: an accelerator need not be waited
        for."""
        for means in self._metrics.values():
            for name, values in means.items():
                means[name] = [float(value) for value in values]
        super().log(logs, start_time)


def columns_of(reference: bool) -> tuple[str, ...]:
    """The columns of pairs that a loss reads, with a reference or without."""
    return tuple(name for name in COLUMNS if reference or not name.startswith("ref_"))


def with_margins(collator: Callable[[list], dict]) -> Callable[[list], dict]:
    """A collator of pairs that also passes on their column `MARGIN`, (B,) fp32."""

    def collate(rows: list) -> dict:
        margins = torch.tensor([row[MARGIN] for row in rows], dtype=torch.float32)
        return {**collator(rows), MARGIN: margins}

    return collate


def with_mismatched(
    collator: Callable[[list], dict], positions: int | None = None
) -> Callable[[list], dict]:
    """A collator that also pairs each prompt with the completions, chosen and rejected, of another
    row; their keys begin with `MISMATCHED`.

    Args:
        positions: of the model; a completion that is too long behind another prompt is cut.
    """

    def collate(rows: list) -> dict:
        others = rows_of_other_prompts([list(row["prompt_ids"]) for row in rows])
        mixed = []
        for row, other in zip(rows, others, strict=False):
            room = None if positions is None else positions - len(row["prompt_ids"])
            sides = {name: rows[other][name][:room] for name in ("chosen_ids", "rejected_ids")}
            mixed.append({"prompt_ids": row["prompt_ids"], **sides})
        more = collator(mixed) if mixed else {}
        return {**collator(rows), **{MISMATCHED + name: value for name, value in more.items()}}

    return collate


def rows_of_other_prompts(prompts: list[list[int]]) -> list[int]:
    """For each row the next one, in a circle, that has another prompt; none at all where all rows
    have the same.

    KTO's authors take the next row (their prompts are all different). Here a prompt has several
    pairs, which can be neighbours: its own completions would not be mismatched ones. A batch of one
    prompt, such as a last batch of one pair, has no mismatched completions, and z0 = 0 in it.
    """
    if all(prompt == prompts[0] for prompt in prompts):
        return []
    count = len(prompts)
    return [
        next(
            (row + step) % count
            for step in range(1, count)
            if prompts[(row + step) % count] != prompt
        )
        for row, prompt in enumerate(prompts)
    ]


def train(context: Context) -> None:
    """Step: one run of an arm. Writes checkpoint/, snapshots/ and policies.json.

    The recipe has one arm's settings. Inputs: sft, pairs and, where the loss has a reference,
    reference_logprobs.
    """
    section = settings_of(context).section
    train_pairs(context, LOSSES[section], reference=section not in NO_REFERENCE)


def train_pairs(
    context: Context, loss: Loss, reference: bool = True, margins: bool = False
) -> None:
    """One run with any loss on pairs: what an arm of one's own calls.

    Args:
        reference: the loss has one; the step reads reference_logprobs.
        margins: the loss reads `PairLogprobs.margins`.

    Raises:
        UserError: the pairs have no margins.
    """
    spec: PairSpec = settings_of(context)
    checkpoint = context.inputs["sft"] / "checkpoint"
    tokenizer = load_tokenizer(checkpoint)
    pairs = pd.read_parquet(context.inputs["pairs"] / "pairs.parquet")
    columns = list(columns_of(reference))
    if reference:
        logprobs = pd.read_parquet(context.inputs["reference_logprobs"] / "logprobs.parquet")
        pairs = with_reference(pairs, logprobs)
    if margins:
        pairs[MARGIN] = margins_of(pairs, context.step.stage)
        columns.append(MARGIN)
    data = Dataset.from_dict({name: pairs[name].tolist() for name in columns})
    model = adapted(context, load_policy(checkpoint))
    writer = PolicyWriter(context, model, tokenizer)
    trainer = PairTrainer(
        spec=spec,
        loss=loss,
        reference=reference,
        model=model,
        ref_model=load_policy(checkpoint) if spec.section == "kto" else None,
        args=DPOConfig(
            **trainer_arguments(context),
            **pair_arguments(spec) | whole_or_micro_batched(context, spec),
            remove_unused_columns=not margins,
            logging_steps=10,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[StepCallback(context, writer, spec.snapshots)],
    )
    fit(trainer, context, writer, data)


def whole_or_micro_batched(context: Context, spec: PairSpec) -> dict[str, Any]:
    """See `micro_batched`; KTO's reference point is a mean over a batch, which stays whole."""
    return {} if spec.section == "kto" else micro_batched(context, spec.batch_size)


def settings_of(context: Context) -> PairSpec:
    """The one arm's settings that a step's recipe holds."""
    [spec] = [part for part in context.step.recipe.values() if isinstance(part, PairSpec)]
    return spec


def margins_of(pairs: pd.DataFrame, arm: str) -> pd.Series:
    """The labeller's reward of the chosen completion less that of the rejected one."""
    if not set(MARGIN_COLUMNS) <= set(pairs.columns):
        raise UserError(
            f"arm {arm} needs pairs with margins (columns {', '.join(MARGIN_COLUMNS)}): these have "
            "only labels"
        )
    chosen, rejected = MARGIN_COLUMNS
    return pairs[chosen] - pairs[rejected]
