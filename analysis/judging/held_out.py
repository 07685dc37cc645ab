"""Do policies and rewards order completions as people did, on pairs that nothing was trained on?

It is the one measurement on somebody's own pairs that needs no model of what people like.
"""

import numpy as np
import pandas as pd

from analysis.statistics import POLICY, interval
from analysis.studies.held_out import PAIR
from pipelines.evaluate.schema import HELD_OUT_ACCURACY, conform

# Who orders the two completions of a pair, by the column that is above 0 where it agrees.
JUDGES = {
    "policy": "log_ratio",
    "reward-model": "reward_proxy",
    "gold": "reward_gold",
    "length": "length",  # always the longer one: what no judge should be worse than
}


def held_out_accuracy(pairs: pd.DataFrame) -> pd.DataFrame:
    """Share of the pairs that each judge orders as people did; equal counts one half.

    A policy orders by log pi - log ref of whole completions. The mean is over prompts of each
    prompt's share, and the interval `statistics.interval`'s over prompts and, for policies and
    reward models, over seeds; cut at 0 and 1. Chance is 0.5.

    Args:
        pairs: see `studies.held_out.read_held_out`.

    Returns:
        HELD_OUT_ACCURACY: a row for each trained policy, for the reward models, for the gold
        reward, and for always choosing the longer completion.
    """
    rows = []
    for judge, column in JUDGES.items():
        whose = POLICY if judge == "policy" else ["judge"]
        table = pairs.assign(judge=judge, right=np.sign(pairs[column]) / 2 + 0.5)
        if judge == "policy":
            table = table[table["arm"] != "sft"]
        else:  # the same in the rows of every policy that has them in common
            keys = ["reward_model", *PAIR] if judge == "reward-model" else PAIR
            table = table.drop_duplicates(keys)
        if judge == "reward-model" and table.groupby("seed")["reward_model"].nunique().max() > 1:
            whose = ["judge", "variant"]
        for key, group in table.groupby(whose, dropna=False):
            shares = group.groupby(["seed", "prompt_id"])["right"].mean().reset_index()
            found = interval(shares, "right")
            named = dict(zip(whose, key, strict=True))
            rows.append(
                {
                    "arm": None,
                    "setting": np.nan,
                    "variant": "",
                    **named,
                    "judge": judge,
                    "accuracy": found.mean,
                    "ci_low": np.maximum(found.low, 0),
                    "ci_high": np.minimum(found.high, 1),
                    "pairs": len(group) // found.seeds,
                    "prompts": found.prompts,
                    "seeds": found.seeds,
                }
            )
    table = pd.DataFrame(rows, columns=list(HELD_OUT_ACCURACY))
    return conform(table, "held_out_accuracy")
