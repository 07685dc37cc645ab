"""Reward model, PPO and DPO on the enumerable task, through the trainers of every other study."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.special import expit
from trl import DPOConfig, RewardConfig

from pipelines.dpo.dpo import SoftLabelDPOTrainer, dpo_arguments
from pipelines.dpo.specs import DPOSpec
from pipelines.evaluate.kl import divergence
from pipelines.evaluate.schema import ENUMERATED, conform
from pipelines.exact.ablations import BROKEN, STOPPED_BY
from pipelines.exact.enumeration import every_pair, sequence_logprobs
from pipelines.exact.specs import AblationSpec, OracleLabelsSpec
from pipelines.exact.task import Task
from pipelines.rlhf.ppo_config import PPOConfig
from pipelines.rlhf.ppo_stage import ppo_arguments
from pipelines.rlhf.reward_model import SoftLabelRewardTrainer, normalise, reward_arguments
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import target_logits
from pipelines.shared.models import (
    load_policy,
    load_reward_model,
    load_tokenizer,
    new_reward_model,
    rewards,
)
from pipelines.shared.specs import RewardModelSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import PolicyWriter, StepCallback, trainer_arguments

LABEL_STREAM = 5
METER_TOLERANCE = 1e-4  # nats per sequence, between two ways to compute them in fp32


def comparisons(task: Task, spec: OracleLabelsSpec, seed: int) -> pd.DataFrame:
    """Pairs of completions with the probability that the first is preferred.

    exact: every pair of every prompt once (or `at_most` pairs drawn evenly from them), preference =
    sigmoid((r - r') / temperature). sampled: pairs of draws from the reference, the preferred one
    (drawn with that probability) first.

    Returns:
        prompt, chosen, rejected (numbers), preference.
    """
    generator = np.random.default_rng([seed, LABEL_STREAM])
    if spec.kind == "exact":
        table = _all_pairs(task) if not spec.at_most else _some_pairs(task, spec, generator)
        return table.assign(preference=_preference(task, table, spec.temperature))
    rows = generator.integers(len(task.prompts), size=spec.pairs)
    p = np.exp(task.ref_logp)
    p /= p.sum(-1, keepdims=True)
    drawn = np.array([generator.choice(p.shape[1], size=2, p=p[row]) for row in rows])
    table = pd.DataFrame({"prompt": rows, "chosen": drawn[:, 0], "rejected": drawn[:, 1]})
    flip = generator.random(spec.pairs) > _preference(task, table, spec.temperature)
    table.loc[flip, ["chosen", "rejected"]] = drawn[flip][:, ::-1]
    return table.assign(preference=1.0)


def _all_pairs(task: Task) -> pd.DataFrame:
    first, second = np.triu_indices(len(task.completions), 1)
    return pd.DataFrame(
        {
            "prompt": np.repeat(np.arange(len(task.prompts)), len(first)),
            "chosen": np.tile(first, len(task.prompts)),
            "rejected": np.tile(second, len(task.prompts)),
        }
    )


def _some_pairs(task: Task, spec: OracleLabelsSpec, generator: np.random.Generator) -> pd.DataFrame:
    count = len(task.completions)
    first = generator.integers(count, size=spec.at_most)
    second = (first + generator.integers(1, count, size=spec.at_most)) % count  # another one
    prompts = generator.integers(len(task.prompts), size=spec.at_most)
    return pd.DataFrame({"prompt": prompts, "chosen": first, "rejected": second})


def _preference(task: Task, pairs: pd.DataFrame, temperature: float) -> np.ndarray:
    chosen, rejected = (task.rewards[pairs["prompt"], pairs[side]] for side in SIDES)
    return expit((chosen - rejected) / temperature)


SIDES = ("chosen", "rejected")


def train_reward_model(context: Context) -> None:
    """Step: Bradley-Terry on the comparisons. Writes checkpoint/."""
    spec: RewardModelSpec = context.spec("reward_model")
    folder = context.inputs["task"]
    task, tokenizer = Task(folder), load_tokenizer(folder / "checkpoint")
    pairs = comparisons(task, context.spec("labels"), context.seed)
    model: Any = new_reward_model(folder / "checkpoint", spec.init)
    if spec.normalise == "gain-bias":
        model.score.weight.data /= moments(model, task, tokenizer.pad_token_id, context.ledger)[1]
    columns = {
        f"{side}_ids": [
            [*task.prompts[x], *task.completions[y]]
            for x, y in zip(pairs["prompt"], pairs[side], strict=True)
        ]
        for side in SIDES
    }
    trainer = SoftLabelRewardTrainer(
        model=model,
        args=RewardConfig(
            **trainer_arguments(context),
            **reward_arguments(spec),
            remove_unused_columns=False,  # the probability stays
            logging_steps=50,
        ),
        train_dataset=Dataset.from_dict({**columns, "preference": pairs["preference"].tolist()}),
        processing_class=tokenizer,
        callbacks=[StepCallback(context)],
    )
    trainer.account(context.ledger, "reward model")
    with context.ledger.phase("train"):
        trainer.train()
    mean, std = moments(model, task, tokenizer.pad_token_id, context.ledger)
    normalise(model, mean, std, spec.normalise)
    model.save_pretrained(context.path / "checkpoint")
    tokenizer.save_pretrained(context.path / "checkpoint")
    scores = scores_of(model, task, tokenizer.pad_token_id, context.ledger)
    context.log(calibration(task, scores))


@torch.no_grad()
def scores_of(model: Any, task: Task, pad_id: int, ledger: Ledger) -> np.ndarray:
    """A reward model's score of every completion, (X, Y)."""
    model.eval()
    every = every_pair(task.prompts, task.completions, pad_id)
    ledger.add(flops=ModelCost.of(model).forward(*every.shape, 0, read=len(every.input_ids)))
    return rewards(model, every).double().numpy().reshape(task.rewards.shape)


def moments(model: Any, task: Task, pad_id: int, ledger: Ledger) -> tuple[float, float]:
    """Exact mean and standard deviation of the scores of the reference's completions."""
    scores = scores_of(model, task, pad_id, ledger)
    p = np.exp(task.ref_logp) / len(task.prompts)
    mean = float((p * scores).sum())
    return mean, float(np.sqrt((p * (scores - mean) ** 2).sum()))


def calibration(task: Task, scores: np.ndarray) -> dict[str, float]:
    """How a reward model judges pairs of the reference's completions, by enumeration: accuracy
    against the truth, and its expected |sigmoid(s - s') - sigmoid(r - r')|."""
    right = judged = error = 0.0
    for p, score, reward in zip(np.exp(task.ref_logp), scores, task.rewards, strict=True):
        weights = p[:, None] * p[None, :] / len(task.prompts)
        margin, truth = (values[:, None] - values[None, :] for values in (score, reward))
        right += float(weights[(margin > 0) & (truth > 0)].sum())
        judged += float(weights[truth > 0].sum())
        error += float((weights * np.abs(expit(margin) - expit(truth))).sum())
    return {"accuracy": right / judged, "calibration_error": error}


def ablate(context: Context) -> None:
    """Step: a PPO run with a detail changed, and its exact distribution. Writes policy.parquet.

    If the check that this change should trip stops it, or training diverges, the error is logged as
    `stopped` and the table is empty; any other error is an error.
    """
    ablation: AblationSpec = context.spec("ablation")
    expected: tuple[type[Exception], ...] = (
        FloatingPointError,
        *STOPPED_BY.get(ablation.broken, ()),
    )
    try:
        train_ppo(context)
    except expected as error:
        context.log({"stopped": str(error)})
        empty = pd.DataFrame({name: [] for name in ENUMERATED})
        conform(empty, "enumerated").to_parquet(context.path / "policy.parquet")
        shutil.rmtree(context.path / "trainer", ignore_errors=True)
        return
    enumerate_policy(context, context.path)


def train_ppo(context: Context) -> None:
    """Step: one PPO run, on the true reward, or on the reward model where it has one upstream."""
    spec: PPOSpec = context.spec("ppo")
    folder = context.inputs["task"]
    task, tokenizer = Task(folder), load_tokenizer(folder / "checkpoint")
    policy = load_policy(folder / "checkpoint")
    writer = PolicyWriter(context, policy, tokenizer)
    learnt = "reward_model" in context.inputs
    ablation: AblationSpec = context.spec("ablation")
    trainer = BROKEN[ablation.broken](
        model=policy,
        ref_model=load_policy(folder / "checkpoint"),
        args=PPOConfig(
            **trainer_arguments(context),
            **ppo_arguments(spec),
            max_completion_length=max(map(len, task.completions)),
            temperature=ablation.temperature,
        ),
        train_dataset=Dataset.from_dict({"prompt_ids": task.prompts}),
        processing_class=tokenizer,
        reward_model=load_reward_model(context.inputs["reward_model"] / "checkpoint")
        if learnt
        else None,
        reward_funcs=None if learnt else task.reward,
        callbacks=[StepCallback(context, writer, spec.snapshots)],
        ledger=context.ledger,
    )
    with context.ledger.phase("update"):
        trainer.train()
    writer.finish()


def train_dpo(context: Context) -> None:
    """Step: one DPO run on the comparisons."""
    spec: DPOSpec = context.spec("dpo")
    folder = context.inputs["task"]
    task, tokenizer = Task(folder), load_tokenizer(folder / "checkpoint")
    pairs = comparisons(task, context.spec("labels"), context.seed)
    model = load_policy(folder / "checkpoint")
    writer = PolicyWriter(context, model, tokenizer)
    columns: dict[str, list] = {
        "prompt_ids": [task.prompts[x] for x in pairs["prompt"]],
        "preference": pairs["preference"].tolist(),
    }
    for side in SIDES:
        columns[f"{side}_ids"] = [task.completions[y] for y in pairs[side]]
        columns[f"ref_{side}_logps"] = task.ref_logp[pairs["prompt"], pairs[side]].tolist()
    trainer = SoftLabelDPOTrainer(
        model=model,
        args=DPOConfig(
            **trainer_arguments(context),
            **dpo_arguments(spec),
            remove_unused_columns=False,  # the probability stays
            logging_steps=50,
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[StepCallback(context, writer, spec.snapshots)],
    )
    trainer.account(context.ledger)
    with context.ledger.phase("train"):
        trainer.train()
    writer.finish()


def evaluate(context: Context) -> None:
    """Step: the exact distribution of the policy of another step. Writes policy.parquet."""
    enumerate_policy(context, context.inputs["policy"])


@torch.no_grad()
def enumerate_policy(context: Context, run: Path) -> None:
    """A policy's exact distribution, with the KL meter's reading of every completion.

    Writes policy.parquet (schema ENUMERATED), one row per prompt and completion. The log-probs are
    not the meter's own, so that the meter is held against something.

    Raises:
        RuntimeError: the meter's log-probs are other ones.
    """
    folder = context.inputs["task"]
    task, tokenizer = Task(folder), load_tokenizer(folder / "checkpoint")
    policy, reference = load_policy(run / "checkpoint"), load_policy(folder / "checkpoint")
    pad_id = tokenizer.pad_token_id
    logp = sequence_logprobs(policy, task.prompts, task.completions, pad_id).numpy().ravel()
    every = every_pair(task.prompts, task.completions, pad_id)
    mask, shape = every.completion_mask, every.shape
    logits, ref_logits = (
        target_logits(model, every.model_inputs(), every.targets).double()
        for model in (policy, reference)
    )
    # The policy once for its distribution, policy and reference for the meter.
    context.ledger.add(flops=3 * ModelCost.of(policy).forward(*shape, len(logits)))
    meter = divergence(logits, ref_logits, every.completion_ids[mask], mask)
    for name, own in (("logp", logp), ("ref_logp", task.ref_logp.ravel())):
        worst = float(np.abs(getattr(meter, name).numpy() - own).max())
        if not worst < METER_TOLERANCE:
            raise RuntimeError(
                f"the KL meter's {name} is off the enumerated one by {worst:.1e} nats"
            )
    x, y = task.rewards.shape
    table = pd.DataFrame(
        {
            "prompt": np.repeat(np.arange(x), y),
            "completion": np.tile(np.arange(y), x),
            "reward": task.rewards.ravel(),
            "logp": logp,
            "ref_logp": task.ref_logp.ravel(),
            **{name: getattr(meter, name).numpy() for name in ("kl_k1", "kl_k3", "kl_rb")},
        }
    )
    conform(table, "enumerated").to_parquet(context.path / "policy.parquet")
