"""What policies and rewards think of pairs that people compared and that nothing is trained on."""

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from pipelines.data.corpus import pairs_of, sided
from pipelines.data.pairs import SIDES
from pipelines.evaluate.samples import scored
from pipelines.evaluate.schema import HELD_OUT_LOGPROBS, HELD_OUT_REWARDS, conform
from pipelines.shared.gold import load_gold
from pipelines.shared.judges import Judge, learnt_judge
from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import Sequences, completion_logprobs
from pipelines.shared.models import load_policy, load_reward_model, load_tokenizer
from pipelines.shared.steps import Context
from pipelines.shared.training import saved_policies


def log_probs(context: Context) -> None:
    """Step: write scores.parquet (schema HELD_OUT_LOGPROBS) of a run's final policy.

    A policy that was trained against the SFT model has the implicit reward beta log pi / ref
    (Rafailov et al. 2023, section 4); how it orders two completions does not depend on beta.
    """
    _, folder = saved_policies(context.inputs["policy"])[-1]
    judge = logprob_judge(load_policy(folder, context.runtime.device), context)
    pairs = pairs_of(context, context.spec("evaluation").split)
    columns = {f"logp_{side}": judged(judge, pairs, side, context) for side in SIDES}
    table = pairs[["prompt_id", "line"]].assign(**columns)
    conform(table[list(HELD_OUT_LOGPROBS)], "held_out_logprobs").to_parquet(
        context.path / "scores.parquet"
    )


def rewards(context: Context) -> None:
    """Step: write scores.parquet (schema HELD_OUT_REWARDS): a reward model and the gold reward."""
    device = context.runtime.device
    proxy = learnt_judge(
        load_reward_model(context.inputs["reward_model"] / "checkpoint", device), context.ledger
    )
    gold = load_gold(context.inputs["gold"], device)
    pairs = pairs_of(context, context.spec("evaluation").split)
    found = {
        "reward_proxy": [judged(proxy, pairs, side, context) for side in SIDES],
        "reward_gold": [gold(sided(pairs, side)) for side in SIDES],
        "length": [pairs[f"{side}_ids"].map(len).to_numpy() for side in SIDES],
    }
    apart = {name: chosen - rejected for name, (chosen, rejected) in found.items()}
    table = pairs[["prompt_id", "line"]].assign(**apart)
    conform(table[list(HELD_OUT_REWARDS)], "held_out_rewards").to_parquet(
        context.path / "scores.parquet"
    )


def judged(judge: Judge, pairs: pd.DataFrame, side: str, context: Context) -> np.ndarray:
    """A judge's score of one side of each pair, (pairs,) fp64."""
    pad_id = load_tokenizer(context.inputs["sft"] / "checkpoint").pad_token_id
    device = torch.device(context.runtime.device)
    return scored(judge, sided(pairs, side), pad_id, device, context)


def logprob_judge(model: PreTrainedModel, context: Context) -> Judge:
    """Log-probs (nats) of whole completions, at temperature 1, their cost booked."""
    cost = ModelCost.of(model)

    @torch.no_grad()
    def judge(sequences: Sequences) -> torch.Tensor:
        context.ledger.add(flops=cost.forward(*sequences.shape, sequences.tokens))
        return completion_logprobs(model, sequences).double().sum(-1)

    return judge
