"""Preference pairs: completions of the SFT model, compared by a simulated labeller.

A pair holds the exact token ids that were sampled. Every trainer and the reward model use these
ids: decoding and tokenizing again changes about a quarter of the completions, and an EOS appended
to a completion that was cut off teaches the models an ending that nobody sampled.
"""

import itertools

import numpy as np
import pandas as pd

from pipelines.shared.corpus import TEXTS, prompts_of
from pipelines.shared.specs import LabelsSpec, SamplingSpec
from pipelines.shared.steps import Context

NOISE_STREAM = 1
PAIR_COLUMNS = (
    "prompt_id",
    "prompt",
    "chosen",
    "rejected",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "chosen_finished",
    "rejected_finished",
    "chosen_reward",
    "rejected_reward",
    "chosen_sample",
    "rejected_sample",
)
MARGIN_COLUMNS = ("chosen_reward", "rejected_reward")  # real people give none


def complete(context: Context) -> None:
    """Step: sample completions for the preference prompts from the SFT model.

    Writes completions.parquet: prompt_id, prompt, prompt_ids, sample, completion, completion_ids,
    finished, reward (gold, log-odds).
    """
    from pipelines.shared.generation import generate
    from pipelines.shared.gold import load_gold
    from pipelines.shared.models import load_policy, load_tokenizer

    spec: SamplingSpec = context.spec("sampling")
    reviews = pd.read_parquet(context.inputs["corpus"] / TEXTS)
    checkpoint = context.inputs["sft"] / "checkpoint"
    table = generate(
        load_policy(checkpoint, context.runtime.device),
        load_tokenizer(checkpoint),
        prompts_of(reviews, "preference", spec.prompts),
        samples=spec.completions,
        max_new_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        seed=context.seed,
        stream=NOISE_STREAM,
        context=context,
    )
    table["reward"] = load_gold(context.inputs["gold"], context.runtime.device)(table)
    table.to_parquet(context.path / "completions.parquet")
    context.log(
        {
            "completions": len(table),
            "finished": float(table["finished"].mean()),
            "reward_mean": float(table["reward"].mean()),
            "reward_std": float(table["reward"].std()),
        }
    )


def label(context: Context) -> None:
    """Step: compare all pairs of completions of a prompt.

    Writes pairs.parquet (`PAIR_COLUMNS`, without `MARGIN_COLUMNS` where the labels keep none).
    """
    spec: LabelsSpec = context.spec("labels")
    completions = pd.read_parquet(context.inputs["completions"] / "completions.parquet")
    pairs = all_pairs(completions)
    swap = simulated_labels(
        pairs["chosen_reward"].to_numpy(),
        pairs["rejected_reward"].to_numpy(),
        spec.temperature,
        spec.noise,
        np.random.default_rng(context.seed),
    )
    pairs = swapped(pairs, swap)
    kept = pairs if spec.margins else pairs.drop(columns=list(MARGIN_COLUMNS))
    kept.to_parquet(context.path / "pairs.parquet")
    agree = pairs["chosen_reward"] > pairs["rejected_reward"]
    context.log({"pairs": len(pairs), "agree_with_gold": float(agree.mean())})


def all_pairs(completions: pd.DataFrame) -> pd.DataFrame:
    """Every pair of one prompt's completions, the earlier sample first (as "chosen", yet
    unlabelled).
    """
    rows = []
    for _, group in completions.groupby("prompt_id", sort=True):
        for first, second in itertools.combinations(
            group.sort_values("sample").to_dict("records"), 2
        ):
            rows.append(
                {
                    "prompt_id": first["prompt_id"],
                    "prompt": first["prompt"],
                    "prompt_ids": first["prompt_ids"],
                    **_side("chosen", first),
                    **_side("rejected", second),
                }
            )
    return pd.DataFrame(rows)[list(PAIR_COLUMNS)]


def _side(name: str, completion: dict) -> dict:
    return {
        name: completion["completion"],
        f"{name}_ids": completion["completion_ids"],
        f"{name}_finished": completion["finished"],
        f"{name}_reward": completion["reward"],
        f"{name}_sample": completion["sample"],
    }


def simulated_labels(
    first: np.ndarray,
    second: np.ndarray,
    temperature: float,
    noise: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Bradley-Terry labels: True where the second completion is preferred.

    P(first preferred) = sigmoid((r_first - r_second) / temperature) (Bradley & Terry 1952); then a
    share `noise` of the labels, drawn at random, is flipped (AlpacaFarm, Dubois et al. 2023).

    Args:
        first, second: (pairs,) gold rewards.
    """
    margin = (first - second) / temperature
    prefers_second = generator.random(len(margin)) >= 1 / (1 + np.exp(-margin))
    flipped = generator.random(len(margin)) < noise
    return prefers_second ^ flipped


def swapped(pairs: pd.DataFrame, swap: np.ndarray) -> pd.DataFrame:
    """`pairs` with chosen and rejected exchanged where `swap` is True."""
    result = pairs.copy()
    for column in PAIR_COLUMNS:
        if "chosen" in column:
            other = column.replace("chosen", "rejected")
            result[column] = pairs[column].where(~swap, pairs[other])
            result[other] = pairs[other].where(~swap, pairs[column])
    return result
