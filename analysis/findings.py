"""What the numbers say, in a table and in sentences that follow them.

No figure and no verdict is typed in here: every sentence is put together from the tables, and says
"no difference shown" where an interval covers 0.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.compute import METRICS
from analysis.formats import MINUS, arm_name, fixed, number
from analysis.frontier import TRUSTED_ESS
from analysis.objective import AGREEMENT
from analysis.statistics import POLICY, pool_seeds

if TYPE_CHECKING:
    from analysis.study import Study


def headline(
    frontier: pd.DataFrame, objective: pd.DataFrame, gains: pd.DataFrame, compute: pd.DataFrame
) -> pd.DataFrame:
    """One row per policy at the end of training, averaged over seeds, sft first.

    Returns:
        arm, setting, variant, seeds, kl and kl_se (nats, rb), reward_gold and reward_gold_se, gain
        with ci_low and ci_high (J over SFT, 95%), closed_share (null where the ESS is below 10 and
        the share would be an upper bound at most), ess, seconds and flops (totals without
        preference data).
    """
    last = frontier[frontier["final"] & (frontier["kl_estimator"] == "rb")]
    table = pool_seeds(last, ["kl", "reward_gold"]).drop(columns="step")
    share = objective.groupby(POLICY)[["closed_share", "ess"]].mean(skipna=False).reset_index()
    share.loc[~(share["ess"] >= TRUSTED_ESS), "closed_share"] = np.nan
    total = compute[compute["stage"] == "total"]
    total = total.groupby(POLICY, dropna=False)[["seconds", "flops"]].median().reset_index()
    for part in (gains.drop(columns="seeds"), share, total):
        # The sft arm's setting is null, which merges with null.
        table = table.merge(part, on=POLICY, how="left")
    table["first"] = table["arm"] != "sft"
    table = table.sort_values(["first", *POLICY], ignore_index=True)
    columns = [*POLICY, "seeds", "kl", "kl_se", "reward_gold", "reward_gold_se"]
    columns += ["gain", "ci_low", "ci_high", "closed_share", "ess", "seconds", "flops"]
    return table[columns]


def sentences(
    comparison: pd.DataFrame,
    headline: pd.DataFrame,
    ratios: pd.DataFrame,
    agreement: pd.DataFrame,
    objective: pd.DataFrame,
) -> list[str]:
    """The study's answer, computed: who is higher, how near the optimum, at what cost?"""
    found = [
        *compared(comparison),
        *against_sft(headline),
        *closed(headline, objective),
        *costs(ratios),
        meter(agreement),
    ]
    return [sentence for sentence in found if sentence]


def compared(comparison: pd.DataFrame) -> list[str]:
    """Which arm has the higher objective at each setting, with the differences' intervals."""
    if comparison.empty:
        return []
    a, b = comparison["arm_a"].iloc[0], comparison["arm_b"].iloc[0]
    names, parts = (arm_name(a), arm_name(b)), []
    for winner, loser in ((a, b), (b, a)):
        rows = comparison[comparison["higher"] == winner]
        if len(rows):
            sign = 1 if winner == a else -1
            differences = ", ".join(
                f"{fixed(sign * row.difference)} [{_range(row, sign)}] at {_setting(row)}"
                for row in rows.itertuples()
            )
            parts.append(f"{arm_name(winner)} is above {arm_name(loser)} by {differences}")
    rows = comparison[comparison["higher"] == "none shown"]
    if len(rows):
        differences = ", ".join(
            f"{_setting(row)} ({names[0]} {MINUS} {names[1]}: "
            f"{fixed(row.difference)} [{_range(row, 1)}])"
            for row in rows.itertuples()
        )
        parts.append(f"no difference shown between {names[0]} and {names[1]} at {differences}")
    return [
        f"In the objective J = reward {MINUS} c\u00b7KL at equal coefficient c: {'; '.join(parts)} "
        "(95% intervals)."
    ]


def _range(row: Any, sign: int) -> str:
    low, high = sorted((sign * row.ci_low, sign * row.ci_high))
    return f"{fixed(low)} to {fixed(high)}"


def _setting(row: Any) -> str:
    """ "c = 0.1", with the variants where there are any."""
    variants = " vs ".join(dict.fromkeys(v for v in (row.variant_a, row.variant_b) if v))
    return f"c = {row.setting:g}" + (f" ({variants})" if variants else "")


def against_sft(headline: pd.DataFrame) -> list[str]:
    """Policies whose objective is not shown to be above the SFT model's: training did not pay."""
    trained = headline[headline["gain"].notna()]
    if trained.empty:
        return []
    below = trained[trained["ci_high"] < 0]
    unclear = trained[(trained["ci_low"] <= 0) & (trained["ci_high"] >= 0)]
    parts = []
    if len(below):
        parts.append(f"J is below the SFT model's for {_names(below)}")
    if len(unclear):
        parts.append(f"no difference from the SFT model is shown for {_names(unclear)}")
    if not parts:
        return [f"All {len(trained)} trained policies have a higher J than the SFT model."]
    above = len(trained) - len(below) - len(unclear)
    return [
        f"{above} of {len(trained)} trained policies have a higher J than SFT; {'; '.join(parts)}."
    ]


def _names(rows: pd.DataFrame) -> str:
    return ", ".join(
        f"{arm_name(row.arm)} {row.setting:g} {row.variant}".strip() for row in rows.itertuples()
    )


def closed(headline: pd.DataFrame, objective: pd.DataFrame) -> list[str]:
    """How much of the way from SFT to the optimum each arm gets, where that can be estimated."""
    found = []
    known = headline[headline["closed_share"].notna()]
    ahead = known[known["closed_share"] > 0]
    if len(ahead):
        shares = ", ".join(
            f"{_names(ahead.loc[[index]])} closes {row['closed_share']:.0%}"
            for index, row in ahead.iterrows()
        )
        found.append(f"Of the gap in J between SFT and the estimated optimum, {shares}.")
    behind = known[known["closed_share"] <= 0]
    if len(behind):
        found.append(
            f"None of the gap in J to the estimated optimum is closed by {_names(behind)}."
        )
    low = sorted(set(objective.loc[objective["ess"] < TRUSTED_ESS, "setting"]))
    if low:
        settings = ", ".join(f"{value:g}" for value in low)
        found.append(
            f"At c = {settings} the effective sample size is below {TRUSTED_ESS:g}: the optimum is "
            "only bounded from below there, and no share is claimed."
        )
    return found


def costs(ratios: pd.DataFrame) -> list[str]:
    """How much more one arm costs than the other, SFT and reward model included."""
    found = []
    for basis, words in (("total", "without"), ("total_with_pairs", "with")):
        rows = ratios[(ratios["basis"] == basis) & ratios["ratio"].notna()]
        if len(rows):
            a, b = rows["arm_a"].iloc[0], rows["arm_b"].iloc[0]
            parts = [
                f"{number(row.ratio, 2)}\u00d7 the {METRICS[row.metric]}"
                for row in rows.itertuples()
            ]
            found.append(
                f"{arm_name(a)} took {', '.join(parts[:-1])} and {parts[-1]} of {arm_name(b)}, "
                f"counting every stage that a policy stands on, {words} making the preference data."
            )
    return found


def meter(agreement: pd.DataFrame) -> str:
    """Whether the three KL estimators tell the same, for all policies."""
    odd = agreement[~agreement["agree"]]
    worst = agreement["largest_z"].max()
    if odd.empty:
        return (
            f"The three KL estimators agree within {AGREEMENT:g} standard errors for all "
            f"{len(agreement)} policies (largest difference: {worst:.1f} standard errors)."
        )
    names = ", ".join(
        f"{arm_name(row.arm)} {'' if pd.isna(row.setting) else format(row.setting, 'g')}".strip()
        for row in odd.itertuples()
    )
    chance = 3 * (2 * stats.t.sf(AGREEMENT, agreement["n_prompts"] - 1)).sum()
    return (
        f"The three KL estimators differ by more than {AGREEMENT:g} standard errors for "
        f"{len(odd)} of {len(agreement)} policies ({names}; largest: {worst:.1f}; expected by "
        f"chance in {number(chance, 1)} of {3 * len(agreement)} differences): their KL is in doubt."
    )


def caveats(study: "Study") -> list[str]:
    """What limits the answer, found in the records: one seed, mixed machines, unequal threads."""
    seeds = sorted({arm["seed"] for arm in study.manifest["arms"]})
    records = study.records
    policies = [records[arm["policy"]] for arm in study.manifest["arms"]]
    found = []
    if len(seeds) == 1:
        found.append(
            f"One seed (seed {seeds[0]}): all intervals are over prompts only. They say how sure "
            "the measurement of these very policies is, not what another training run would give."
        )
    else:
        found.append(
            f"{len(seeds)} seeds: intervals are over prompts and over seeds, the latter "
            f"by Student's t with {len(seeds) - 1} degrees of freedom."
        )
    arms = [record for record in policies if record["stage"] != "sft"]
    setups = {f"{_machine(r['hardware'])}, {r['identity']['threads']} threads" for r in arms}
    if len(setups) > 1:
        found.append(
            f"Policies were trained in different places ({'; '.join(sorted(setups))}): their "
            "seconds are not comparable, their FLOPs are."
        )
    dirty = sorted({records[s]["stage"] for s in records if records[s].get("uncommitted")})
    if dirty:
        found.append(f"Made from uncommitted code: {', '.join(dirty)}.")
    return found


def _machine(hardware: Mapping[str, Any]) -> str:
    return ", ".join(f"{hardware[key]}" for key in sorted(hardware))


def gold_quality(rows: Sequence[Mapping[str, Any]]) -> str:
    """The gold classifier's accuracy on held-out reviews, from its metrics log; "" without one."""
    found = [row for row in rows if row.get("held_out_accuracy") is not None]
    if not found:
        return ""
    last = found[-1]
    text = (
        f"The gold classifier is right on {last['held_out_accuracy']:.1%} of held-out human labels"
    )
    if last.get("held_out_reviews") is not None:
        text += f" ({last['held_out_reviews']:,} reviews)"
    if last.get("held_out_majority") is not None:
        text += f"; always guessing the larger class is right on {last['held_out_majority']:.1%}"
    return text + "."
