"""The samples of the SFT model that the optimum and best-of-n are estimated from, as matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipelines.evaluate.schema import FRONTIER, conform


def reference_matrices(reference: pd.DataFrame, columns: Sequence[str]) -> tuple[Any, ...]:
    """Prompt ids (P) and the wanted columns of the reference samples, (P, N) each.

    Raises:
        ValueError: prompts do not have equally many samples.
    """
    rows = reference.sort_values(["prompt_id", "sample"], kind="stable")
    counts = rows.groupby("prompt_id").size()
    if counts.nunique() != 1:
        raise ValueError("reference samples are not equally many for each prompt")
    shape = (len(counts), int(counts.iloc[0]))
    return counts.index, *(rows[name].to_numpy(float).reshape(shape) for name in columns)


def sft_rewards(reference: pd.DataFrame) -> pd.Series:
    """The SFT model's mean gold reward on each prompt, of its reference samples, by prompt_id."""
    return reference.groupby("prompt_id")["reward_gold"].mean()


def reference_rows(
    rows: Sequence[Mapping[str, Any]], reference: pd.DataFrame, run: str
) -> pd.DataFrame:
    """Rows made from the reference samples as FRONTIER, with what they all share filled in."""
    prompts = reference["prompt_id"].nunique()
    table = pd.DataFrame(rows).reindex(columns=list(FRONTIER))
    return conform(
        table.assign(
            seed=0,
            step=0,
            n_prompts=prompts,
            n_samples=len(reference) // prompts,
            run=run,
            temperature=reference["temperature"].mean(),
            stage="reference-samples",
            variant="",
            final=True,
            entropy=np.nan,
        ),
        "frontier",
    )
