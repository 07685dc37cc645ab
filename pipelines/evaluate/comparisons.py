"""Pairs of completions of one prompt, to be judged by a language model or by people.

Both read the same table of texts and write the same table of verdicts (schema JUDGEMENTS), which
names evaluations and samples, never arms: whoever judges sees neither.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipelines.evaluate.schema import SAMPLES, conform
from pipelines.shared.preferences import simulated_labels
from pipelines.shared.specs import LabelsSpec

CHOSEN_SEED = 0
COMPARISON = (
    "prompt_id",
    "prompt",
    "run_a",
    "sample_a",
    "completion_a",
    "run_b",
    "sample_b",
    "completion_b",
)
VERDICTS = ("a", "b", "tie")  # of one look at a pair
OUTCOMES = (*VERDICTS, "inconsistent", "unparsable")  # of both orders together


def comparisons(
    samples: pd.DataFrame, pairs: Sequence[tuple[str, str]], prompts: int
) -> pd.DataFrame:
    """The texts of two evaluations side by side, the first sample of each prompt.

    The same prompts for every pair: the first `prompts` by prompt_id, which is a hash, so that they
    are no particular ones.

    Args:
        samples: SAMPLES of the study.
        pairs: (run_a, run_b), first 8 hex digits of the evaluations' fingerprints.
        prompts: at most so many.

    Returns:
        COMPARISON, sorted by prompt and pair.

    Raises:
        ValueError: a run has no samples.
    """
    first = samples.sort_values("sample").drop_duplicates(["run", "prompt_id"])
    known = set(first["run"])
    missing = sorted({run for pair in pairs for run in pair} - known)
    if missing:
        raise ValueError(f"no samples of run {', '.join(missing)}")
    chosen = sorted(first["prompt_id"].unique())[:prompts]
    first = first[first["prompt_id"].isin(chosen)]
    parts = [
        _side(first, a, "a").merge(_side(first, b, "b"), on=["prompt_id", "prompt"])
        for a, b in pairs
    ]
    table = pd.concat(parts, ignore_index=True)[list(COMPARISON)]
    return table.sort_values(["prompt_id", "run_a", "run_b"], ignore_index=True)


def _side(samples: pd.DataFrame, run: str, side: str) -> pd.DataFrame:
    """One run's samples, with the columns of a side."""
    own = samples[samples["run"] == run]
    names = {name: f"{name}_{side}" for name in ("run", "sample", "completion")}
    return own[["prompt_id", "prompt", "run", "sample", "completion"]].rename(columns=names)


def chosen_samples(
    texts: pd.DataFrame, scores: pd.DataFrame, labels: LabelsSpec, run: str, eos_id: int
) -> pd.DataFrame:
    """A chosen completion for each evaluation prompt: whom policies are judged against.

    Of the SFT model's first two reference samples of a prompt, the one that the simulated labeller
    of the pairs prefers; its labels are drawn anew, for these prompts.

    Args:
        texts: prompt_id, sample, completion_ids, prompt and completion of the reference samples.
        scores: REFERENCE_SCORES of the same.
        run: first 8 hex digits of their fingerprint.

    Returns:
        SAMPLES, one row a prompt; logp, ref_logp and reward_proxy are null.
    """
    both = texts[texts["sample"] < 2].merge(
        scores, on=["prompt_id", "sample"], validate="one_to_one"
    )
    both = both.sort_values(["prompt_id", "sample"])
    first, second = (both[both["sample"] == sample] for sample in (0, 1))
    prefers_second = simulated_labels(
        first["reward_gold"].to_numpy(),
        second["reward_gold"].to_numpy(),
        labels.temperature,
        labels.noise,
        np.random.default_rng(CHOSEN_SEED),
    )
    chosen = both[both["sample"].to_numpy() == np.repeat(prefers_second, 2)]
    chosen = chosen.assign(
        run=run,
        n_tokens=chosen["completion_ids"].map(len),
        finished=chosen["completion_ids"].map(lambda ids: ids[-1] == eos_id),
        logp=np.nan,
        ref_logp=np.nan,
        reward_proxy=np.nan,
    )
    return conform(chosen[list(SAMPLES)], "samples")


def peoples_choices(pairs: pd.DataFrame, prompts: pd.Series, run: str) -> pd.DataFrame:
    """For each of some prompts the completion that people preferred, of its first pair.

    Args:
        pairs: prompt_id, prompt, chosen, chosen_ids and line.
        prompts: prompt_ids; one without a pair has no row.
        run: what the judges know them by; see `chosen_samples`.

    Returns:
        SAMPLES, one row a prompt; the rewards and log-probs are null.
    """
    first = pairs.sort_values("line").drop_duplicates("prompt_id")
    chosen = first[first["prompt_id"].isin(set(prompts))].sort_values("prompt_id")
    unknown = dict.fromkeys(("logp", "ref_logp", "reward_proxy", "reward_gold"), np.nan)
    table = chosen.assign(
        run=run,
        sample=0,
        completion=chosen["chosen"],
        n_tokens=chosen["chosen_ids"].map(len),
        finished=True,
        **unknown,
    )
    return conform(table[list(SAMPLES)], "samples")


def both_orders(verdict_ab: str | None, verdict_ba: str | None) -> str:
    """What a judge says of a pair that it saw in both orders.

    Args:
        verdict_ab: a, b or tie, with a shown first; None where the answer could not be parsed.
        verdict_ba: the same with b shown first; it too names the completion, not the place.

    Returns:
        Their common verdict; "inconsistent" where they differ, "unparsable" where one is missing.
    """
    if verdict_ab is None or verdict_ba is None:
        return "unparsable"
    return verdict_ab if verdict_ab == verdict_ba else "inconsistent"
