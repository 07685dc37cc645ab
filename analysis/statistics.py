"""Means and intervals of samples that come in clusters: several completions share a prompt.

Completions of one prompt are alike, so prompts and not completions are the unit: every mean here is
the mean of per-prompt means and every standard error is theirs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

KEYS = ["arm", "setting", "seed", "variant", "run", "stage"]
POLICY = ["arm", "setting", "variant"]
CONFIDENCE = 0.95


def finals(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last snapshot: the policy at the end of training."""
    return scores[scores["step"] == scores.groupby("run")["step"].transform("max")]


def prompt_means(scores: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Mean over the samples of each prompt: one row per (run, step, prompt).

    A value missing in any sample makes the mean missing: a mean over some of them would pass for
    one over all.
    """
    keys = [*KEYS, "step", "prompt_id"]
    return scores.groupby(keys, dropna=False)[columns].mean(skipna=False).reset_index()


def standard_error(values: Any) -> float:
    """Standard error of the mean of per-prompt values: std(ddof=1) / sqrt(prompts); nan for one."""
    values = np.asarray(values, dtype=float)
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def margin(error: Any, n: Any) -> Any:
    """Half-width of the 95% interval of a mean of n values: Student's t_{n-1} times its error."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% confidence interval, in the unit of the values."""

    mean: float
    se: float
    low: float
    high: float
    seeds: int
    prompts: int


def interval(values: pd.DataFrame, column: str) -> Interval:
    """Mean of `column` and its 95% interval over prompts and, with two or more of them, over seeds.

    half-width = sqrt((t_{P-1} SE_prompts)^2 + (t_{S-1} SE_seeds)^2), with SE_prompts of the
    per-prompt means over seeds and SE_seeds of the per-seed means over prompts: prompts and seeds
    are crossed, and their interaction is counted in both, so it errs on the wide side. With one
    seed the second term is missing: the interval then says nothing of what a rerun of the training
    would change.

    Args:
        values: columns seed, prompt_id and `column`, one row per (seed, prompt).
    """
    by_prompt = values.groupby("prompt_id")[column].mean(skipna=False)
    by_seed = values.groupby("seed")[column].mean(skipna=False)
    prompts, seeds = len(by_prompt), len(by_seed)
    errors = [standard_error(by_prompt)] + ([standard_error(by_seed)] if seeds > 1 else [])
    widths = [margin(error, n) for error, n in zip(errors, (prompts, seeds), strict=False)]
    mean, half = float(by_prompt.mean(skipna=False)), float(np.hypot.reduce(widths))
    return Interval(mean, float(np.hypot.reduce(errors)), mean - half, mean + half, seeds, prompts)
