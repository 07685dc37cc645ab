"""What compute buys: reward and objective of each policy, and what it had cost by then.

Cost is FLOPs (and seconds) beyond the SFT model, which every arm stands on, without the preference
data: an arm's own training, its reward model, its reference log-probs. Where a snapshot was taken
at step s of S, its cost is what the training stood on, and s/S of the training's own: a step is
taken to cost as much as any other.
"""

import numpy as np
import pandas as pd

from analysis.statistics import KEYS, POLICY, interval, prompt_means
from analysis.studies.reference import sft_rewards
from analysis.studies.study import Study
from pipelines.evaluate.schema import MATCHED, REWARD_PER_COMPUTE, conform

PFLOP = 1e15
TRAINING = ("train", "update")  # phases of a training step that grow with its optimiser steps
UNITS = ["flops", "seconds"]
WHOSE = ["arm", "setting", "seed", "variant"]
BEYOND = ["flops_beyond_sft", "seconds_beyond_sft"]
MEASURED = ["reward_gold", "kl"]


def reward_gains(scores: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Reward, KL and gain over the SFT model of every trained policy and snapshot, by prompt.

    Step 0 of a run is the SFT model: it has the mean reward of the prompt's reference samples, from
    which all gains are taken, and no KL.

    Args:
        scores: see `Study.scores`.
        reference: REFERENCE_SCORES.

    Returns:
        arm, setting, seed, variant, run, stage, step, prompt_id, reward_gold, kl (nats, rb),
        reward_gain; the arm sft is left out.
    """
    columns = ["reward_gold", "kl_rb"]
    reached = prompt_means(scores[scores["arm"] != "sft"], columns).rename(columns={"kl_rb": "kl"})
    base = sft_rewards(reference)
    start = reached[KEYS].drop_duplicates("run").assign(step=0, kl=0.0)
    table = pd.concat([reached, start.merge(base.reset_index(), how="cross")], ignore_index=True)
    base_of = table["prompt_id"].map(base).astype(float)
    return table.assign(reward_gain=table["reward_gold"] - base_of)


def matched(study: Study, compute: pd.DataFrame, gains: pd.DataFrame) -> pd.DataFrame:
    """Reward, KL and J of every policy and snapshot with what it had cost by then.

    Of a training step's seconds those of its phases `TRAINING` grow with the optimiser steps, all
    of them where it has no such phase; the rest is start-up. All of its FLOPs grow.

    Args:
        compute: COMPUTE of the study.
        gains: see `reward_gains`.

    Returns:
        MATCHED: FLOPs, seconds, KL in nats (rb).
    """
    reached = gains.groupby([*KEYS, "step"], dropna=False)[MEASURED].mean(skipna=False)
    table = reached.reset_index().merge(_costs(study, compute), on="run")
    last = table.groupby("run")["step"].transform("max")
    for unit in UNITS:
        table[unit] = table[unit] - table[f"{unit}_scaling"] * (1 - table["step"] / last)
        table[f"{unit}_beyond_sft"] = table[unit] - table[f"{unit}_sft"]
    aims = table["arm"].isin(list(study.catalogue.aimed))
    objective = (table["reward_gold"] - table["setting"] * table["kl"]).where(aims)
    table = table.assign(final=table["step"] == last, objective=objective)[list(MATCHED)]
    return conform(table, "matched").sort_values([*WHOSE, "step"], ignore_index=True)


def _costs(study: Study, compute: pd.DataFrame) -> pd.DataFrame:
    """Of every trained policy: flops and seconds without preference data, with _sft those of the
    SFT model it starts from, and with _scaling those that grow with its optimiser steps."""
    rows = []
    for arm in study.manifest["arms"]:
        sft = study.records[arm["evaluation"]]["identity"]["upstream"]["sft"]
        if arm["policy"] == sft:
            continue
        record = study.records[arm["policy"]]
        phases = record.get("phases", {})
        trained = [phases[name]["seconds"] for name in TRAINING if name in phases]
        shared = [study.records[step]["cost"] for step in study.closure(sft)]
        row = {name: arm[name] for name in WHOSE} | {"run": arm["evaluation"][:8]}
        row |= {f"{unit}_sft": sum(cost[unit] for cost in shared) for unit in UNITS}
        row |= {f"{unit}_scaling": record["cost"][unit] for unit in UNITS}
        rows.append(row | ({"seconds_scaling": sum(trained)} if trained else {}))
    parts = [f"{unit}_{part}" for unit in UNITS for part in ("sft", "scaling")]
    table = pd.DataFrame(rows, columns=[*WHOSE, "run", *parts]).astype({"setting": "float64"})
    totals = compute.loc[compute["stage"] == "total", [*WHOSE, *UNITS]]
    return table.merge(totals, on=WHOSE).drop(columns=WHOSE)


def reward_per_compute(gains: pd.DataFrame, matched: pd.DataFrame) -> pd.DataFrame:
    """What the training of every policy gained for each 10^15 FLOPs beyond the SFT model.

        gain = gold reward - the SFT model's, mean over prompts (paired) and seeds

    with its 95% interval (see `statistics.interval`), divided by the mean FLOPs over the seeds,
    which are taken as exact. A gain is bought with KL as well, so that kl stands beside it, and the
    gain in J = reward - setting x KL where the arm aims at it.

    Args:
        gains: see `reward_gains`.
        matched: MATCHED.

    Returns:
        REWARD_PER_COMPUTE; null per FLOP where none were spent.
    """
    ends = matched[matched["final"]]
    last = gains.merge(ends[["run", "step", "objective", *BEYOND]], on=["run", "step"])
    rows = []
    for key, group in last.groupby(POLICY, dropna=False):
        found = interval(group, "reward_gain")
        means = group[[*BEYOND, "kl", "objective"]].mean(skipna=False)
        row = dict(zip(POLICY, key, strict=True)) | means.drop("objective").to_dict()
        row |= {"gain": found.mean, "gain_low": found.low, "gain_high": found.high}
        # J of the SFT model is its reward.
        sft = (group["reward_gold"] - group["reward_gain"]).mean()
        row |= {"objective_gain": means["objective"] - sft, "seeds": found.seeds}
        rows.append(row)
    names = [name for name in REWARD_PER_COMPUTE if "_per_" not in name]
    table = pd.DataFrame(rows, columns=names)
    pflops = (table["flops_beyond_sft"] / PFLOP).replace(0.0, np.nan)
    for name in ("gain", "objective_gain"):
        table[f"{name}_per_pflop"] = table[name] / pflops
    for end in ("low", "high"):
        table[f"gain_per_pflop_{end}"] = table[f"gain_{end}"] / pflops
    table = conform(table[list(REWARD_PER_COMPUTE)], "reward_per_compute")
    return table.sort_values(POLICY, ignore_index=True)
