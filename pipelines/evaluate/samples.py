"""Evaluation of a run: every saved policy on the same held-out prompts, under one meter."""

from pathlib import Path

import pandas as pd
import torch

from pipelines.evaluate.kl import divergence
from pipelines.evaluate.schema import conform
from pipelines.shared.corpus import prompts_of
from pipelines.shared.generation import BATCH, generate
from pipelines.shared.gold import GoldReward
from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import completion_logits, pack
from pipelines.shared.models import load_policy, load_reward_model, load_tokenizer, rewards
from pipelines.shared.specs import EvaluationSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import saved_policies

EVALUATION_STREAM = 2
REFERENCE_STREAM = 3


def evaluation_prompts(context: Context) -> pd.DataFrame:
    """The held-out prompts that every arm is judged on."""
    spec: EvaluationSpec = context.spec("evaluation")
    reviews = pd.read_parquet(context.inputs["corpus"] / "reviews.parquet")
    return prompts_of(reviews, spec.split, spec.prompts)


def evaluate(context: Context) -> None:
    """Step: sample and score each saved policy of the run `policy`.

    Writes scores.parquet (schema SCORES, all snapshots) and samples.parquet (schema SAMPLES less
    `run`, the last policy). Sampling noise is the same for every arm.
    """
    prompts = evaluation_prompts(context)
    policies = saved_policies(context.inputs["policy"])
    tables = []
    for done, (step, folder) in enumerate(policies):
        tables.append(_score(context, folder, prompts).assign(step=step))
        context.progress(done + 1, len(policies), "policies")
    scores = pd.concat(tables, ignore_index=True)
    scores["temperature"] = context.spec("evaluation").temperature
    scores["length"] = scores["completion_ids"].map(len)
    columns = "prompt_id sample step temperature kl_k1 kl_k3 kl_rb entropy length finished".split()
    conform(scores[[*columns, "reward_gold", "reward_proxy"]], "scores").to_parquet(
        context.path / "scores.parquet"
    )
    last = scores[scores["step"] == policies[-1][0]].rename(columns={"length": "n_tokens"})
    columns = "prompt_id sample prompt completion n_tokens finished logp ref_logp".split()
    last[[*columns, "reward_proxy", "reward_gold"]].to_parquet(context.path / "samples.parquet")
    context.log(
        {"kl_rb": float(last["kl_rb"].mean()), "reward_gold": float(last["reward_gold"].mean())}
    )


def _score(context: Context, folder: Path, prompts: pd.DataFrame) -> pd.DataFrame:
    """Completions of one policy with their divergences and rewards."""
    spec: EvaluationSpec = context.spec("evaluation")
    device = context.runtime.device
    tokenizer = load_tokenizer(context.inputs["sft"] / "checkpoint")
    policy = load_policy(folder, device)
    table = generate(
        policy,
        tokenizer,
        prompts,
        samples=spec.samples,
        max_new_tokens=context.spec("sampling").max_new_tokens,
        temperature=spec.temperature,
        seed=context.seed,
        stream=EVALUATION_STREAM,
        context=context,
    ).drop(columns="logp")
    reference = load_policy(context.inputs["sft"] / "checkpoint", device)
    proxy = load_reward_model(context.inputs["reward_model"] / "checkpoint", device)
    pad_id = tokenizer.pad_token_id
    with context.ledger.phase("measuring"):
        parts = [
            _measure(policy, reference, proxy, table.iloc[start : start + BATCH], pad_id, context)
            for start in range(0, len(table), BATCH)
        ]
    table = table.join(pd.concat(parts))
    table["reward_gold"] = GoldReward(context.inputs["gold"])(table["prompt"] + table["completion"])
    return table


@torch.no_grad()
def _measure(
    policy, reference, proxy, rows: pd.DataFrame, pad_id: int, context: Context
) -> pd.DataFrame:
    """Divergence and proxy reward of one batch of completions."""
    temperature = context.spec("evaluation").temperature
    sequences = pack(
        rows["prompt_ids"].tolist(), rows["completion_ids"].tolist(), pad_id, policy.device
    )
    logits, ref_logits = (
        completion_logits(model, sequences, temperature) for model in (policy, reference)
    )
    measured = divergence(logits, ref_logits, sequences.completion_ids, sequences.completion_mask)
    proxy_scores = rewards(proxy, sequences)
    batch, length = sequences.input_ids.shape
    flops = 2 * ModelCost.of(policy).forward(batch, length, logits.shape[0] * (logits.shape[1] + 1))
    context.ledger.add(flops=flops + ModelCost.of(proxy).forward(batch, length))
    columns = {name: value.cpu().numpy() for name, value in vars(measured).items()}
    return pd.DataFrame(
        {**columns, "reward_proxy": proxy_scores.double().cpu().numpy()}, index=rows.index
    )


def sample_reference(context: Context) -> None:
    """Step: many samples of the SFT model on the evaluation prompts, scored by the gold reward.

    From them the optimum of the KL-constrained objective and best-of-n are estimated. Writes
    scores.parquet (schema REFERENCE_SCORES).
    """
    spec: EvaluationSpec = context.spec("evaluation")
    checkpoint = context.inputs["sft"] / "checkpoint"
    table = generate(
        load_policy(checkpoint, context.runtime.device),
        load_tokenizer(checkpoint),
        evaluation_prompts(context),
        samples=spec.reference_samples,
        max_new_tokens=context.spec("sampling").max_new_tokens,
        temperature=spec.temperature,
        seed=context.seed,
        stream=REFERENCE_STREAM,
        context=context,
    )
    table["reward_gold"] = GoldReward(context.inputs["gold"])(table["prompt"] + table["completion"])
    table["length"] = table["completion_ids"].map(len)
    table["temperature"] = spec.temperature
    columns = "prompt_id sample temperature length reward_gold".split()
    conform(table[columns], "reference_scores").to_parquet(context.path / "scores.parquet")
