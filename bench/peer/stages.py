"""The stages of study_peer.py that run on TRL's current release: what a careful researcher writes.

Trainers as they come, `generate` of Transformers for all sampling, plain log-softmaxes for the KL.
Data, gold reward and labels are the project's, for TRL has none; so are all settings.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from pipelines.dpo.dpo import dpo_arguments
from pipelines.dpo.specs import DPOSpec
from pipelines.rlhf.reward_model import exact_ids, reward_arguments
from pipelines.shared.corpus import prompts_of
from pipelines.shared.gold import load_gold
from pipelines.shared.models import new_policy, new_reward_model
from pipelines.shared.preferences import all_pairs, simulated_labels, swapped
from pipelines.shared.specs import SimulatedProtocol
from pipelines.shared.training import POLICIES, saved_policies, snapshot_steps

BATCH = 256  # sequences sampled or measured at once
SEED = 0


def load_policy(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def arguments(folder: Path) -> dict[str, Any]:
    """What every trainer is told: bf16 and gradient checkpointing, TRL's defaults, cost 15x or an
    error on a CPU."""
    return {
        "output_dir": str(folder / "trainer"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": SEED,
    }


class Saver(TrainerCallback):
    """Saves the policy at evenly spaced steps, the last one included; nothing else of the run."""

    def __init__(self, model: Any, folder: Path, snapshots: int) -> None:
        self.model, self.folder, self.snapshots = model, folder, snapshots
        self.written: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in snapshot_steps(state.max_steps, self.snapshots):
            name = f"step-{state.global_step}"
            self.model.save_pretrained(self.folder / name)
            self.written.append({"step": state.global_step, "folder": name})
            (self.folder / POLICIES).write_text(json.dumps(self.written))


def train(trainer: Any) -> None:
    """Train, its logs kept in its state and not printed."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()


# The stages that all runs share


def sft(folder: Path, protocol: SimulatedProtocol, corpus: Path) -> None:
    """Writes checkpoint/ and validation.json (loss, nats per token)."""
    spec, length = protocol.sft, protocol.model.context
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    tokenizer.model_max_length = length
    reviews = pd.read_parquet(corpus / "texts.parquet")
    reviews["row"] = [[*ids, tokenizer.eos_token_id][:length] for ids in reviews["ids"]]

    def split(name: str) -> Dataset:
        rows = reviews.loc[reviews["split"] == name, "row"].tolist()
        return Dataset.from_dict({"input_ids": rows, "labels": rows})

    model = new_policy(protocol.model, tokenizer)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments(folder),
            num_train_epochs=spec.epochs,
            per_device_train_batch_size=spec.batch_size,
            per_device_eval_batch_size=BATCH,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=spec.warmup,
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            max_length=None,
            logging_steps=50,
        ),
        train_dataset=split("sft"),
        eval_dataset=split("validation"),
        processing_class=tokenizer,
    )
    train(trainer)
    loss = trainer.evaluate()["eval_loss"]
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    (folder / "validation.json").write_text(json.dumps({"loss": loss}))


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: pd.DataFrame,
    samples: int,
    protocol: SimulatedProtocol,
    heat: float,
) -> pd.DataFrame:
    """`samples` completions of each prompt by Transformers' own sampling.

    Args:
        prompts: columns prompt_id, prompt, prompt_ids; all of one length.
        heat: the temperature.

    Returns:
        one row a completion: prompt_id, prompt, prompt_ids, sample, completion (text),
        completion_ids (EOS included, padding not), finished.
    """
    rows = prompts.loc[prompts.index.repeat(samples)].reset_index(drop=True)
    rows["sample"] = rows.groupby("prompt_id", sort=False).cumcount()
    ids = torch.tensor(np.stack(rows["prompt_ids"].tolist()))
    completions: list[list[int]] = []
    for batch in ids.split(BATCH):
        drawn = model.generate(
            input_ids=batch,
            attention_mask=torch.ones_like(batch),
            do_sample=True,
            temperature=heat,
            top_k=0,
            top_p=1.0,
            max_new_tokens=protocol.sampling.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        completions += [
            until_end(row, tokenizer.eos_token_id) for row in drawn[:, batch.shape[1] :].tolist()
        ]
    return rows.assign(
        completion_ids=completions,
        completion=tokenizer.batch_decode(completions, skip_special_tokens=True),
        finished=[row[-1] == tokenizer.eos_token_id for row in completions],
    )


def until_end(ids: list[int], eos_id: int) -> list[int]:
    """`ids` up to the first EOS, which is kept."""
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids


def sample_pairs(
    folder: Path, protocol: SimulatedProtocol, corpus: Path, gold: Path, start: Path
) -> None:
    """Writes completions.parquet: what the SFT model makes of the preference prompts, with the
    gold reward."""
    set_seed(SEED)
    spec, tokenizer = protocol.sampling, AutoTokenizer.from_pretrained(start)
    reviews = pd.read_parquet(corpus / "texts.parquet")
    prompts = prompts_of(reviews, "preference", spec.prompts)
    table = generate(
        load_policy(start), tokenizer, prompts, spec.completions, protocol, spec.temperature
    )
    table["reward"] = load_gold(gold)(table)
    table.to_parquet(folder / "completions.parquet")


def label(folder: Path, protocol: SimulatedProtocol, completions: Path) -> None:
    """Writes pairs.parquet, labelled as the project does."""
    spec = protocol.labels
    pairs = all_pairs(pd.read_parquet(completions / "completions.parquet"))
    rewards = (pairs[f"{side}_reward"].to_numpy() for side in ("chosen", "rejected"))
    swap = simulated_labels(*rewards, spec.temperature, spec.noise, np.random.default_rng(SEED))
    swapped(pairs, swap).to_parquet(folder / "pairs.parquet")


def reward_model(
    folder: Path, protocol: SimulatedProtocol, start: Path, completions: Path, pairs: Path
) -> None:
    """Writes checkpoint/ and mean.json: the mean score of the SFT model's completions, which is
    taken off every score (its scale is left alone, whatever reward_model.normalise says)."""
    set_seed(SEED)
    spec, tokenizer = protocol.reward_model, AutoTokenizer.from_pretrained(start)
    model: Any = new_reward_model(start, spec.init)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments(folder), **reward_arguments(spec), logging_steps=10),
        train_dataset=exact_ids(pd.read_parquet(pairs / "pairs.parquet")),
        processing_class=tokenizer,
    )
    train(trainer)
    model.eval()
    table = pd.read_parquet(completions / "completions.parquet")
    scores = [score(model, *batch) for *batch, _ in batches(table, tokenizer.pad_token_id)]
    (folder / "mean.json").write_text(json.dumps({"mean": float(torch.cat(scores).mean())}))
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")


# DPO


class GivenIdsDPOTrainer(DPOTrainer):
    """DPOTrainer on the very ids that were sampled: by itself it tokenizes text anew and appends
    EOS to completions that were cut off."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def dpo(folder: Path, spec: DPOSpec, start: Path, pairs: Path) -> None:
    """Writes the saved policies. The reference's log-probs are computed in every step, as is TRL's
    default."""
    set_seed(SEED)
    table, model = pd.read_parquet(pairs / "pairs.parquet"), load_policy(start)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer = GivenIdsDPOTrainer(
        model=model,
        ref_model=load_policy(start),
        args=DPOConfig(
            **arguments(folder),
            **(dpo_arguments(spec) | {"precompute_ref_log_probs": False}),
            logging_steps=10,
        ),
        train_dataset=Dataset.from_dict({name: table[name].tolist() for name in names}),
        processing_class=AutoTokenizer.from_pretrained(start),
        callbacks=[Saver(model, folder, spec.snapshots)],
    )
    train(trainer)


# Evaluation


def batches(table: pd.DataFrame, pad_id: int) -> Any:
    """Input ids (B, T), attention mask (B, T) and prompt length of each batch; prompts are of one
    length, completions padded on the right."""
    for start in range(0, len(table), BATCH):
        part = table.iloc[start : start + BATCH]
        rows = [
            [*prompt, *completion]
            for prompt, completion in zip(part["prompt_ids"], part["completion_ids"], strict=True)
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        yield ids, mask, len(part["prompt_ids"].iloc[0])


@torch.no_grad()
def score(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Raw scores (B,) of a reward model."""
    return model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).double()


@torch.no_grad()
def divergences(
    policy: Any, reference: Any, ids: torch.Tensor, mask: torch.Tensor, prompt: int
) -> dict[str, torch.Tensor]:
    """Sequence KL (B,) in nats to the reference by k1, k3 and Rao-Blackwellised, from samples."""
    real = mask[:, prompt:].bool()
    logp, ref = (
        model(input_ids=ids, attention_mask=mask).logits[:, prompt - 1 : -1].log_softmax(-1)
        for model in (policy, reference)
    )
    taken = ids[:, prompt:, None]
    ratio = (logp.gather(-1, taken) - ref.gather(-1, taken)).squeeze(-1).double()
    exact = (logp.exp() * (logp - ref)).sum(-1).double()
    return {
        "kl_k1": (ratio * real).sum(-1),
        "kl_k3": ((torch.expm1(-ratio) + ratio) * real).sum(-1),
        "kl_rb": (exact * real).sum(-1),
    }


def evaluate(
    folder: Path,
    protocol: SimulatedProtocol,
    policies: Sequence[tuple[int, Path]],
    given: Mapping[str, Path],
) -> None:
    """Writes scores.parquet: every saved policy (step, folder) on the held-out prompts.

    Args:
        given: folders `corpus`, `gold`, `start` (the SFT model's checkpoint) and `reward_model`.
    """
    set_seed(SEED)
    spec, tokenizer = protocol.evaluation, AutoTokenizer.from_pretrained(given["start"])
    reviews = pd.read_parquet(given["corpus"] / "texts.parquet")
    prompts = prompts_of(reviews, spec.split, spec.prompts)
    reference, gold = load_policy(given["start"]), load_gold(given["gold"])
    judge: Any = AutoModelForSequenceClassification.from_pretrained(
        given["reward_model"] / "checkpoint", dtype=torch.float32
    ).eval()
    mean = json.loads((given["reward_model"] / "mean.json").read_text())["mean"]
    tables = []
    for step, saved in policies:
        policy = load_policy(saved)
        table = generate(policy, tokenizer, prompts, spec.samples, protocol, spec.temperature)
        parts = []
        for ids, mask, prompt in batches(table, tokenizer.pad_token_id):
            columns = divergences(policy, reference, ids, mask, prompt)
            columns["reward_proxy"] = score(judge, ids, mask) - mean
            parts.append(pd.DataFrame({name: value.numpy() for name, value in columns.items()}))
        measured = pd.concat(parts, ignore_index=True)
        tables.append(table.join(measured).assign(step=step, reward_gold=gold(table)))
    pd.concat(tables, ignore_index=True).to_parquet(folder / "scores.parquet")


def evaluate_run(
    folder: Path, protocol: SimulatedProtocol, run: Path, given: Mapping[str, Path]
) -> None:
    """`evaluate` of the policies that a run saved."""
    evaluate(folder, protocol, saved_policies(run), given)


def sample_reference(
    folder: Path, protocol: SimulatedProtocol, corpus: Path, gold: Path, start: Path
) -> None:
    """Writes scores.parquet: many samples of the SFT model on the held-out prompts, with the gold
    reward."""
    set_seed(SEED)
    spec, tokenizer = protocol.evaluation, AutoTokenizer.from_pretrained(start)
    reviews = pd.read_parquet(corpus / "texts.parquet")
    prompts = prompts_of(reviews, spec.split, spec.prompts)
    samples, heat = spec.reference_samples, spec.temperature
    table = generate(load_policy(start), tokenizer, prompts, samples, protocol, heat)
    table["reward_gold"] = load_gold(gold)(table)
    table.to_parquet(folder / "scores.parquet")
