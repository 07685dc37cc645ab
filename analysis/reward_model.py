"""How good is the proxy (the learned reward model) that PPO climbs, as a stand-in for the gold
reward?

Measured on completions of the SFT model for held-out prompts, none of which the reward model has
seen.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis.statistics import finals, standard_error

COLUMNS = (
    "seed",
    "variant",
    "run",
    "pairwise_accuracy",
    "pairwise_accuracy_se",
    "n_pairs",
    "n_prompts",
)
CORRELATIONS = ("pearson", "spearman")


def proxy_quality(scores: pd.DataFrame) -> pd.DataFrame:
    """Agreement of the proxy with the gold reward on the sft arm's samples, one row per seed.

    pairwise_accuracy: of the pairs of samples of one prompt with unequal gold reward, the share
    that the proxy orders the same way (an equal proxy counts one half); mean of per-prompt shares,
    standard error over prompts. Chance is 0.5. pearson and spearman are over all samples, between
    prompts too.

    Returns:
        seed, variant, run, pairwise_accuracy, pairwise_accuracy_se, n_pairs, n_prompts (with a
        pair), pearson, spearman. No rows where there is no sft arm or it has no proxy rewards.
    """
    rows = []
    sft = finals(scores)
    sft = sft[(sft["arm"] == "sft") & sft["reward_proxy"].notna()]
    for (seed, variant, run), group in sft.groupby(["seed", "variant", "run"]):
        by_prompt = [
            pair_agreement(samples["reward_proxy"], samples["reward_gold"])
            for _, samples in group.groupby("prompt_id")
        ]
        shares = [agreed.mean() for agreed in by_prompt if len(agreed)]
        pairs = sum(len(agreed) for agreed in by_prompt)
        accuracy = float(np.mean(shares)) if shares else np.nan
        row = (seed, variant, run, accuracy, standard_error(shares), pairs, len(shares))
        rows.append((*row, *_correlations(group["reward_proxy"], group["reward_gold"])))
    return pd.DataFrame(rows, columns=[*COLUMNS, *CORRELATIONS])


def pair_agreement(proxy: Sequence[float], gold: Sequence[float]) -> np.ndarray:
    """For each pair with unequal gold: 1 where the proxy agrees, 0 where not, 1/2 for its tie."""
    judged, true = np.asarray(proxy, float), np.asarray(gold, float)
    first, second = np.triu_indices(len(true), k=1)
    agreed = np.sign(judged[first] - judged[second]) * np.sign(true[first] - true[second])
    return (agreed[true[first] != true[second]] + 1) / 2


def _correlations(proxy: pd.Series, gold: pd.Series) -> tuple[float, float]:
    """Pearson's and Spearman's; nan where either is constant, for which they are undefined."""
    if proxy.nunique() < 2 or gold.nunique() < 2:
        return np.nan, np.nan
    return float(stats.pearsonr(proxy, gold).statistic), float(
        stats.spearmanr(proxy, gold).statistic
    )
