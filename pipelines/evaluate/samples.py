"""Evaluation of a run: every saved policy on the same held-out prompts, under one meter."""

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from pipelines.evaluate.kl import divergence
from pipelines.evaluate.schema import REFERENCE_SCORES, SAMPLES, SCORES, conform
from pipelines.shared.corpus import TEXTS, prompts_of
from pipelines.shared.generation import generate, packed_batches
from pipelines.shared.gold import load_gold
from pipelines.shared.judges import Judge, learnt_judge
from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import target_logits
from pipelines.shared.models import load_policy, load_reward_model, load_tokenizer, rewards
from pipelines.shared.specs import EvaluationSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import saved_policies

EVALUATION_STREAM = 2
REFERENCE_STREAM = 3
REFERENCE_TEXT = ["prompt_id", "sample", "prompt_ids", "completion_ids"]


def evaluation_prompts(context: Context) -> pd.DataFrame:
    """The held-out prompts that every arm is judged on."""
    spec: EvaluationSpec = context.spec("evaluation")
    reviews = pd.read_parquet(context.inputs["corpus"] / TEXTS)
    return prompts_of(reviews, spec.split, spec.prompts, spec.at_most)


class Evaluator:
    """What every policy of a run is judged by, loaded once: prompts, reference, proxy and gold."""

    def __init__(self, context: Context) -> None:
        self.context, self.device = context, context.runtime.device
        self.prompts = evaluation_prompts(context)
        checkpoint = context.inputs["sft"] / "checkpoint"
        self.tokenizer = load_tokenizer(checkpoint)
        self.reference = load_policy(checkpoint, self.device)
        self.gold = load_gold(context.inputs["gold"], self.device)

    def complete(
        self, policy: PreTrainedModel, samples: int, stream: int, temperature: float
    ) -> pd.DataFrame:
        """Completions of the prompts with length, temperature and gold reward."""
        table = generate(
            policy,
            self.tokenizer,
            self.prompts,
            samples=samples,
            max_new_tokens=self.context.spec("sampling").max_new_tokens,
            temperature=temperature,
            seed=self.context.seed,
            stream=stream,
            context=self.context,
        )
        return table.assign(
            length=table["completion_ids"].map(len),
            temperature=temperature,
            reward_gold=self.gold(table),
        )

    @torch.no_grad()
    def measure(
        self,
        policy: PreTrainedModel,
        proxy: PreTrainedModel,
        table: pd.DataFrame,
        temperature: float,
    ) -> pd.DataFrame:
        """`table` with the divergences to the reference and the proxy's reward.

        Args:
            temperature: above 0, of policy and reference alike.
        """
        cost, proxy_cost = ModelCost.of(policy), ModelCost.of(proxy)
        parts = []
        for places, sequences in packed_batches(table, self.tokenizer.pad_token_id, policy.device):
            inputs, targets = sequences.model_inputs(), sequences.targets
            logits, ref_logits = (
                target_logits(model, inputs, targets, temperature)
                for model in (policy, self.reference)
            )
            ids, mask = sequences.input_ids[targets], sequences.completion_mask
            columns = vars(divergence(logits, ref_logits, ids, mask))
            columns = {**columns, "reward_proxy": rewards(proxy, sequences).double()}
            shape = sequences.shape
            flops = 2 * cost.forward(*shape, len(ids))
            flops += proxy_cost.forward(*shape, 0, read=len(places))
            self.context.ledger.add(flops=flops)
            cells = {name: value.cpu().numpy() for name, value in columns.items()}
            parts.append(pd.DataFrame(cells, index=table.index[places]))
        # The log-probs as sampled give way to those of the measuring pass.
        return table.drop(columns="logp").join(pd.concat(parts))


def evaluate(context: Context) -> None:
    """Step: sample and score each saved policy of the run `policy`.

    Writes scores.parquet (schema SCORES, all snapshots) and samples.parquet (schema SAMPLES less
    `run`, the last policy). Sampling noise is the same for every arm.
    """
    judge = Evaluator(context)
    proxy = load_reward_model(context.inputs["reward_model"] / "checkpoint", judge.device)
    context.ledger.network("reference", judge.reference)
    context.ledger.network("reward model", proxy)
    policies = saved_policies(context.inputs["policy"])
    spec: EvaluationSpec = context.spec("evaluation")
    tables = []
    for done, (step, folder) in enumerate(policies):
        policy = load_policy(folder, judge.device)
        table = judge.complete(policy, spec.samples, EVALUATION_STREAM, spec.temperature)
        with context.ledger.phase("measuring"):
            table = judge.measure(policy, proxy, table, spec.temperature)
        tables.append(table.assign(step=step))
        context.progress(done + 1, len(policies), "policies")
    scores = pd.concat(tables, ignore_index=True)
    conform(scores[list(SCORES)], "scores").to_parquet(context.path / "scores.parquet")
    last = scores[scores["step"] == policies[-1][0]].rename(columns={"length": "n_tokens"})
    columns = [name for name in SAMPLES if name != "run"]
    last[columns].to_parquet(context.path / "samples.parquet")
    context.log(
        {"kl_rb": float(last["kl_rb"].mean()), "reward_gold": float(last["reward_gold"].mean())}
    )


def sample_reference(context: Context) -> None:
    """Step: many samples of the SFT model on the evaluation prompts, scored by the gold reward.

    From them the optimum of the KL-constrained objective and best-of-n are estimated. Writes
    scores.parquet (schema REFERENCE_SCORES) and completions.parquet (prompt_id, sample, prompt_ids,
    completion_ids).
    """
    judge = Evaluator(context)
    spec: EvaluationSpec = context.spec("evaluation")
    samples, temperature = spec.reference_samples, spec.temperature
    table = judge.complete(judge.reference, samples, REFERENCE_STREAM, temperature)
    table[REFERENCE_TEXT].to_parquet(context.path / "completions.parquet")
    table = conform(table[list(REFERENCE_SCORES)], "reference_scores")
    table.to_parquet(context.path / "scores.parquet")


def score_reference(context: Context) -> None:
    """Step: what a reward model says of the reference samples: best-of-n by proxy.

    Writes scores.parquet (schema PROXY_SCORES), one row for each reference sample.
    """
    device = context.runtime.device
    checkpoint = context.inputs["reward_model"] / "checkpoint"
    judge = learnt_judge(load_reward_model(checkpoint, device), context.ledger)
    table = pd.read_parquet(context.inputs["reference_samples"] / "completions.parquet")
    pad_id = load_tokenizer(context.inputs["sft"] / "checkpoint").pad_token_id
    with context.ledger.phase("scoring"):
        scores = scored(judge, table, pad_id, torch.device(device), context)
    table = table[["prompt_id", "sample"]].assign(reward_proxy=scores)
    conform(table, "proxy_scores").to_parquet(context.path / "scores.parquet")


def scored(
    judge: Judge, table: pd.DataFrame, pad_id: int, device: torch.device, context: Context
) -> np.ndarray:
    """A judge's score of each completion, (N,) fp64."""
    scores, done = np.empty(len(table)), 0
    for places, sequences in packed_batches(table, pad_id, device):
        scores[places] = judge(sequences).double().cpu()
        done += len(places)
        context.progress(done, len(table), "completions")
    return scores
