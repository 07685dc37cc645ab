"""Win rates against the sampling temperature: does a method's advantage hang on how it is sampled?

After Rafailov et al. 2023, figures 2 (right) and 3 (left): each final policy is sampled at several
temperatures and compared with (i) what the labeller chose, an opponent that is the same for all
temperatures, and (ii) the SFT model at the same temperature. Judges are the gold reward and the
reward model.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.formats import agree, policy_name
from analysis.judging.contests import CHOSEN, REWARDS, SFT, Contest, check_complete
from analysis.judging.temperature_opponents import (
    Opponent,
    Samples,
    against_fixed,
    against_paired,
    labellers_choice,
    reward_model_of,
)
from analysis.judging.win_rates import estimate
from analysis.statistics import POLICY, interval
from analysis.studies.reference import reference_matrices
from analysis.studies.study import Study
from pipelines.evaluate.schema import TEMPERATURES, conform
from pipelines.shared.errors import UserError

MEASURED = {"kl": "kl_rb", "reward_gold": "reward_gold", "length": "length"}
WHOSE = [*POLICY, "seed", "temperature", "prompt_id"]


def win_rates(study: Study) -> pd.DataFrame:
    """Win rates, KL and reward of each policy at each temperature, prompt by prompt.

    A comparison's value v is 1 where the policy's sample has the higher reward, 1/2 where the two
    are equal and 0 else. Per prompt, with S samples y_s of the policy,

        against chosen:  mean_s sum_n w_n v(y_s, z_n)      z_n of the SFT model at evaluation's
                                                            temperature, w_n: see `chosen_weights`
        against sft:     mean over s != t of v(y_s, z_t)    z_t of the SFT model at the same one

    Policy and SFT model draw by the same rows of noise. At low temperatures they then often write
    the same text, so only s != t are the independent draws that a win rate is about. At temperature
    0 there is one sample, and no noise.

    Returns:
        arm, setting, variant, seed, temperature, prompt_id, opponent, judge, win_rate, kl (nats,
        Rao-Blackwellised), reward_gold, length (tokens). Against chosen, the reward model judges
        only where it has scored the reference samples (arm best-of-n-proxy). The SFT model is not
        compared with itself. No rows where the study has no sweep.

    Raises:
        UserError: a reward is missing, or no sweep of the SFT model has a policy's seed and reward
            model.
    """
    names = [*WHOSE, "opponent", "judge", "win_rate", *MEASURED]
    if study.temperatures is None:
        return pd.DataFrame(columns=names)
    tables = {str(run): rows for run, rows in study.temperatures.groupby("run", sort=False)}
    swept = study.manifest["temperatures"]
    judges = {row["step"]: reward_model_of(study, row["step"]) for row in swept}
    starts = {
        (row["seed"], judges[row["step"]]): _by_temperature(tables[row["step"][:8]])[1]
        for row in swept
        if row["arm"] == SFT[0]
    }
    fixed = {judge: labellers_choice(study, judge) for judge in sorted(set(judges.values()))}
    parts = []
    for row in swept:
        judge, name = judges[row["step"]], policy_name(row, True)
        if (row["seed"], judge) not in starts:
            raise UserError(
                f"no sweep of temperatures of the SFT model has the seed of {name} and is judged "
                f"by its reward model {judge[:8]}: run the experiment again"
            )
        own = tables[row["step"][:8]]
        for column in REWARDS.values():
            where = f"{column} of {name} (runs/{row['step'][:8]}.parquet)"
            check_complete(own[column].to_numpy(), where, "sweep it again")
        whose = {column: row[column] for column in (*POLICY, "seed")}
        start = None if row["arm"] == SFT[0] else starts[row["seed"], judge]
        parts += [
            pd.DataFrame({**whose, **columns}) for columns in _compared(own, start, fixed[judge])
        ]
    return pd.concat(parts, ignore_index=True)[names].astype({"setting": float})


def _compared(
    own: pd.DataFrame, start: Samples | None, fixed: Opponent | None
) -> Iterator[dict[str, Any]]:
    """The columns of each temperature, opponent and judge.

    Args:
        start: the SFT model's samples; None where it is itself compared.
    """
    prompts, drawn = _by_temperature(own)
    rates = {} if fixed is None else against_fixed(drawn, fixed)
    for temperature, values in drawn.items():
        row = {"temperature": temperature, "prompt_id": prompts}
        row |= {name: values[column].mean(axis=1) for name, column in MEASURED.items()}
        for judge, column in REWARDS.items():
            if judge in rates:
                rate = rates[judge][temperature]
                yield {**row, "opponent": CHOSEN[0], "judge": judge, "win_rate": rate}
            if start is not None:
                rate = against_paired(values[column], start[temperature][column])
                yield {**row, "opponent": SFT[0], "judge": judge, "win_rate": rate}


def _by_temperature(scores: pd.DataFrame) -> tuple[Any, Samples]:
    """Prompt ids (P), and what is compared or averaged, (P, S), at each temperature."""
    columns = list(dict.fromkeys([*REWARDS.values(), *MEASURED.values()]))
    found: Samples = {}
    for temperature, rows in scores.groupby("temperature"):
        prompts, *values = reference_matrices(rows, columns)
        found[temperature] = dict(zip(columns, values, strict=True))
    return prompts, found


def temperatures(values: pd.DataFrame) -> pd.DataFrame:
    """Means and 95% intervals over prompts and seeds (see `statistics.interval`; of win rates,
    `win_rates.estimate`).

    Args:
        values: see `win_rates`.

    Returns:
        TEMPERATURES, one row per policy, temperature, opponent and judge.
    """
    rows = []
    for key, group in values.groupby([*POLICY, "temperature"], dropna=False):
        row = dict(zip([*POLICY, "temperature"], key, strict=True))
        by_judge = list(group.groupby(["opponent", "judge"]))
        # What does not depend on the opponent is the same in each of them.
        kl, reward = (interval(by_judge[0][1], name) for name in ("kl", "reward_gold"))
        row |= {"kl": kl.mean, "kl_low": kl.low, "kl_high": kl.high}
        row |= {"reward_gold": reward.mean, "reward_low": reward.low, "reward_high": reward.high}
        row |= {"length": group["length"].mean(skipna=False)}
        for (opponent, judge), compared in by_judge:
            rate, low, high = _rate(compared)
            rates = {"win_rate": rate, "ci_low": low, "ci_high": high}
            counts = {"seeds": reward.seeds, "prompts": reward.prompts}
            rows.append({**row, "opponent": opponent, "judge": judge, **rates, **counts})
    table = conform(pd.DataFrame(rows, columns=list(TEMPERATURES)), "temperatures")
    order = [*POLICY, "opponent", "judge", "temperature"]
    return table.sort_values(order, ignore_index=True)


def _rate(compared: pd.DataFrame) -> tuple[float, float, float]:
    """Win rate and the ends of its interval; every seed and prompt counts alike."""
    table = compared.pivot(index="seed", columns="prompt_id", values="win_rate")
    points = table.to_numpy(float)
    unread: dict[str, Any] = {"a": SFT, "b": SFT, "judge": "", "longer": np.zeros_like(points)}
    unread |= dict.fromkeys(("wins", "ties", "losses"), np.nan)
    seeds, prompts = list(table.index), list(table.columns)
    total = np.ones_like(points)
    return estimate(Contest(seeds=seeds, prompts=prompts, points=points, total=total, **unread))


def losses(values: pd.DataFrame, cold: float = 0.0, hot: float = 1.0) -> pd.DataFrame:
    """What each policy's win rate loses from one temperature to another, prompt by prompt.

    Args:
        values: see `win_rates`.

    Returns:
        arm, setting, variant, seed, opponent, judge, prompt_id, loss = win rate at `cold` less that
        at `hot`; no rows where one of them was not sampled.
    """
    keys = [*POLICY, "seed", "opponent", "judge", "prompt_id"]
    sides = [values.loc[values["temperature"] == at, [*keys, "win_rate"]] for at in (cold, hot)]
    table = sides[0].merge(sides[1], on=keys, suffixes=("_cold", "_hot"))
    return table.assign(loss=table["win_rate_cold"] - table["win_rate_hot"])[[*keys, "loss"]]


def compare_losses(lost: pd.DataFrame, arm_a: str, arm_b: str) -> pd.DataFrame:
    """How much more of its win rate arm_a loses than arm_b, at each setting that both have.

    Paired by seed and prompt; variants as in `objective.compare`.

    Args:
        lost: see `losses`.

    Returns:
        setting, arm_a, variant_a, arm_b, variant_b, opponent, judge, difference (of win rates),
        ci_low, ci_high (95%), seeds, prompts.
    """
    on = ["setting", "seed", "opponent", "judge", "prompt_id"]
    a, b = (lost.loc[lost["arm"] == arm, [*on, "variant", "loss"]] for arm in (arm_a, arm_b))
    pair = a.merge(b, on=on, suffixes=("_a", "_b"))
    pair["difference"] = pair["loss_a"] - pair["loss_b"]
    keys = ["setting", "variant_a", "variant_b", "opponent", "judge"]
    rows = []
    for key, group in pair.groupby(keys):
        setting, variant_a, variant_b, opponent, judge = key
        if not agree(variant_a, variant_b):
            continue
        found = interval(group, "difference")
        rows.append(
            (
                *(setting, arm_a, variant_a, arm_b, variant_b, opponent, judge),
                *(found.mean, found.low, found.high, found.seeds, found.prompts),
            )
        )
    names = ["setting", "arm_a", "variant_a", "arm_b", "variant_b", "opponent", "judge"]
    names += ["difference", "ci_low", "ci_high", "seeds", "prompts"]
    return pd.DataFrame(rows, columns=names)
