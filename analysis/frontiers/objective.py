"""J = E[r] - c KL(pi || SFT) with r the gold reward: what methods with the coefficient c aim at.

Most do not see r: PPO maximises the learned proxy, DPO its implicit reward. PPO's kl_coef and DPO's
beta are the same c, so at equal c the two are tried on the same objective, whose optimum is known:
c log Z. How much of the way from SFT to there does each get? An arm whose setting is something else
(a target KL, a margin) aims at no such J, and has none here.
"""

from collections.abc import Collection

import numpy as np
import pandas as pd

from analysis.formats import agree
from analysis.frontiers.frontier import optimum_per_prompt
from analysis.statistics import KEYS, POLICY, finals, interval, prompt_means, standard_error
from analysis.studies.reference import sft_rewards
from pipelines.evaluate.schema import OBJECTIVE, conform

# Nats. Float32 log-probabilities summed over some tens of tokens differ by this much from rounding
# alone.
ROUNDING = 1e-4
AGREEMENT = 3.0


def gain_per_prompt(
    scores: pd.DataFrame, reference: pd.DataFrame, aimed: Collection[str]
) -> pd.DataFrame:
    """J of the final policies of the arms that aim at it, prompt by prompt.

    J(x) = mean gold reward - setting * mean kl_rb over the prompt's samples; gain(x) = J(x) - the
    mean reward of the SFT model's reference samples of x (whose KL is 0).

    Args:
        aimed: arms whose setting is the coefficient of J (see `Catalogue.aimed`).

    Returns:
        arm, setting, seed, variant, run, stage, prompt_id, reward_gold, kl, objective,
        objective_sft and gain (reward units; KL in nats).
    """
    trained = finals(scores)
    trained = trained[trained["setting"].notna() & trained["arm"].isin(list(aimed))]
    table = prompt_means(trained, ["reward_gold", "kl_rb"]).rename(columns={"kl_rb": "kl"})
    base = sft_rewards(reference)
    table["objective"] = table["reward_gold"] - table["setting"] * table["kl"]
    table["objective_sft"] = table["prompt_id"].map(base).astype(float)
    return table.assign(gain=table["objective"] - table["objective_sft"]).drop(columns="step")


def objective(per_prompt: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """J, its gain over SFT and the share of the possible gain, for every policy that has a J.

        gain = mean_x gain(x), standard error over prompts (paired)
        objective_optimum = mean_x setting * log mean_i exp(r_i(x) / setting)
        closed_share = gain / (objective_optimum - objective_sft)

    The optimum is estimated from N reference samples and is low on average (Jensen), so
    closed_share is too far from 0: where `ess`, the median effective sample size, is below 10, a
    positive share is an upper bound; a negative one is a lower bound, and only says that nothing is
    closed. At setting 0 optimum, share and ess are null.

    Args:
        per_prompt: see `gain_per_prompt`.
        reference: REFERENCE_SCORES.

    Returns:
        OBJECTIVE, sorted.
    """
    rows = []
    for key, group in per_prompt.groupby(KEYS, dropna=False):
        row = dict(zip(KEYS, key, strict=True))
        gain, gain_se = group["gain"].mean(skipna=False), standard_error(group["gain"])
        sft = group["objective_sft"].mean()
        best, ess = np.nan, np.nan
        if row["setting"] > 0:
            possible = optimum_per_prompt(reference, row["setting"])
            best, ess = possible["objective"].mean(), possible["ess"].median()
        room = best - sft
        rows.append(
            {
                **row,
                **group[["reward_gold", "kl", "objective"]].mean(skipna=False),
                "gain": gain,
                "gain_se": gain_se,
                "objective_sft": sft,
                "objective_optimum": best,
                "closed_share": gain / room if room > 0 else np.nan,
                "ess": ess,
                "above_sft": bool(gain > 2 * gain_se),
            }
        )
    table = pd.DataFrame(rows, columns=[*KEYS, *[name for name in OBJECTIVE if name not in KEYS]])
    order = ["arm", "setting", "seed", "variant"]
    return conform(table[list(OBJECTIVE)], "objective").sort_values(order, ignore_index=True)


def gains(per_prompt: pd.DataFrame) -> pd.DataFrame:
    """Gain over SFT with its 95% interval, over all seeds of a policy (see `statistics.interval`).

    Args:
        per_prompt: see `gain_per_prompt`.

    Returns:
        arm, setting, variant, gain, ci_low, ci_high, seeds.
    """
    rows = []
    for key, group in per_prompt.groupby(POLICY):
        found = interval(group, "gain")
        rows.append((*key, found.mean, found.low, found.high, found.seeds))
    return pd.DataFrame(rows, columns=[*POLICY, "gain", "ci_low", "ci_high", "seeds"])


def compare(per_prompt: pd.DataFrame, arm_a: str, arm_b: str) -> pd.DataFrame:
    """J of one arm minus J of another at each setting that both have, paired by prompt and seed.

    Variants are compared where the options that both name have equal values: the same labels, say,
    but every learning rate of one with every learning rate of the other.

    Args:
        per_prompt: see `gain_per_prompt`.

    Returns:
        setting, arm_a, variant_a, arm_b, variant_b, difference (reward units), ci_low, ci_high
        (95%, see `statistics.interval`), seeds, prompts, higher: the arm with the higher J,
        "none shown" where the interval covers 0, null where a J was not measured.
    """
    columns = ["setting", "seed", "prompt_id", "variant", "objective"]
    pair = per_prompt.loc[per_prompt["arm"] == arm_a, columns].merge(
        per_prompt.loc[per_prompt["arm"] == arm_b, columns],
        on=["setting", "seed", "prompt_id"],
        suffixes=("_a", "_b"),
    )
    pair["difference"] = pair["objective_a"] - pair["objective_b"]
    rows = []
    for (setting, variant_a, variant_b), group in pair.groupby(
        ["setting", "variant_a", "variant_b"]
    ):
        if not agree(variant_a, variant_b):
            continue
        found = interval(group, "difference")
        higher: str | None = "none shown"
        if np.isnan(found.mean):
            higher = None
        elif found.low > 0 or found.high < 0:
            higher = arm_a if found.low > 0 else arm_b
        rows.append(
            (
                *(setting, arm_a, variant_a, arm_b, variant_b),
                *(found.mean, found.low, found.high, found.seeds, found.prompts, higher),
            )
        )
    names = ["setting", "arm_a", "variant_a", "arm_b", "variant_b"]
    names += ["difference", "ci_low", "ci_high", "seeds", "prompts", "higher"]
    return pd.DataFrame(rows, columns=names)


def agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Do the three KL estimators agree on each final policy?

    k1, k3 and rb estimate one number from the same samples, so their differences, paired by prompt,
    should be 0 within their standard errors. A difference below 1e-4 nats counts as 0: float32
    rounding makes that much (the SFT model's KL to itself is 0 with a standard error of 0).

    Returns:
        arm, setting, seed, variant, run; kl_k1, kl_k3, kl_rb with _se (nats); for each pair
        k1_minus_k3, k1_minus_rb, k3_minus_rb with _se; largest_z = max |difference| / se;
        agree = largest_z <= 3, nullable: both are null where an estimate is; k3_skewness, of the
        prompts' k3 - rb; n_prompts.
    """
    names = ["k1", "k3", "rb"]
    means = prompt_means(finals(scores), [f"kl_{name}" for name in names])
    rows = []
    for key, group in means.groupby(KEYS, dropna=False):
        row, scales = dict(zip(KEYS, key, strict=True)), []
        for name in names:
            row[f"kl_{name}"] = group[f"kl_{name}"].mean(skipna=False)
            row[f"kl_{name}_se"] = standard_error(group[f"kl_{name}"])
        for a, b in (("k1", "k3"), ("k1", "rb"), ("k3", "rb")):
            difference = group[f"kl_{a}"] - group[f"kl_{b}"]
            mean, error = difference.mean(skipna=False), standard_error(difference)
            row[f"{a}_minus_{b}"], row[f"{a}_minus_{b}_se"] = mean, error
            scales.append(_scale(mean, error))
        largest = float(np.max(scales))  # nan where one of them is
        row |= {"largest_z": largest, "agree": None if np.isnan(largest) else largest <= AGREEMENT}
        row["k3_skewness"] = (group["kl_k3"] - group["kl_rb"]).skew()
        rows.append({**row, "n_prompts": len(group)})
    order = ["arm", "setting", "seed", "variant"]
    table = pd.DataFrame(rows).drop(columns="stage").astype({"agree": "boolean"})
    return table.sort_values(order, ignore_index=True)


def _scale(difference: float, error: float) -> float:
    """|difference| in standard errors; 0 for a difference that rounding alone can make."""
    if np.isnan(difference) or abs(difference) < ROUNDING:
        return 0.0 if not np.isnan(difference) else np.nan
    return abs(difference) / error if error > 0 else np.inf
