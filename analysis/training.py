"""Did training do what it was for? Each policy's own objective, before and after.

This is the method's own aim (its loss, or the reward it was given less its KL penalty), not the
gold reward that all are judged by: a method can improve the one and lose the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics import finals, standard_error
from analysis.study import Study
from pipelines.evaluate.schema import TRAINING, conform

KL_COEFFICIENT = "objective/kl_coef"  # of a PPO update, in its metrics log
SCORED_BY = {
    "proxy": ("reward_proxy", "reward model score - c KL"),
    "scaled-proxy": ("reward_proxy", "reward model score / its SD within a prompt - c KL"),
    "gold": ("reward_gold", "gold reward - c KL"),
}


def training_objectives(study: Study) -> pd.DataFrame:
    """Own objective of every trained policy at the start and the end of its training.

    Arms that minimise a loss: the loss on a fixed part of the training data, as their log has it.
    Arms that maximise a reward: the mean over held-out prompts of E[reward - c kl_rb], with the
    reward that they were given; the start is the SFT model's, whose KL is 0, judged by the same
    reward model. c is the setting where that is the coefficient, else the last that the log has.
    An arm that standardises its rewards (GRPO) is held to them divided by their standard deviation
    within a prompt, the root mean square over prompts, at the start.

    Returns:
        TRAINING, one row per policy, in the manifest's order; `change_se` is the standard error of
        end - start over prompts (null for losses, where there are none). What a log or the scores
        do not tell is null. Arms that train on nothing have no row.
    """
    last = finals(study.scores)
    by_run = {str(run): rows for run, rows in last.groupby("run")}
    rows = []
    for arm in study.manifest["arms"]:
        kind = study.catalogue.trains_on(arm["arm"])
        if not kind:
            continue
        whose = {name: arm[name] for name in ("arm", "setting", "seed", "variant")}
        made = (
            _by_loss(study.metrics[arm["policy"]])
            if kind == "loss"
            else _by_reward(study, arm, kind, by_run)
        )
        improved = None
        if not np.isnan(made["start"]) and not np.isnan(made["end"]):
            gained = made["end"] - made["start"]
            improved = bool(gained > 0 if made["better"] == "higher" else gained < 0)
        rows.append({**whose, **made, "improved": improved, "run": arm["evaluation"][:8]})
    return conform(pd.DataFrame(rows, columns=list(TRAINING)), "training")


def _by_loss(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The training loss before and after."""
    looks = {row["at"]: row["training_loss"] for row in log if "training_loss" in row}
    ends = {at: _number(looks.get(at)) for at in ("start", "end")}
    return {"objective": "loss", "better": "lower", **ends, "change_se": np.nan}


def _by_reward(
    study: Study, arm: Mapping[str, Any], kind: str, by_run: Mapping[str, pd.DataFrame]
) -> dict[str, Any]:
    """Reward less c KL before and after, paired by prompt."""
    column, objective = SCORED_BY[kind]
    made: dict[str, Any] = {"objective": objective, "better": "higher"}
    made |= {"start": np.nan, "end": np.nan, "change_se": np.nan}
    coefficient = _coefficient(study, arm)
    base = _start_run(study, arm)
    scale = 1.0
    if kind == "scaled-proxy":
        within = None if base is None else by_run[base].groupby("prompt_id")[column].var(ddof=1)
        scale = np.nan if within is None else float(np.sqrt(within.mean(skipna=False)))
    own = by_run[arm["evaluation"][:8]].groupby("prompt_id")[[column, "kl_rb"]].mean(skipna=False)
    end = own[column] / scale - coefficient * own["kl_rb"]
    made["end"] = end.mean(skipna=False)
    if base is not None:
        start = by_run[base].groupby("prompt_id")[column].mean(skipna=False) / scale
        made["start"] = start.mean(skipna=False)
        made["change_se"] = standard_error(end - start)
    return made


def _coefficient(study: Study, arm: Mapping[str, Any]) -> float:
    """The c of a policy's KL penalty; nan where neither its setting nor its log tells."""
    if arm["arm"] in study.catalogue.aimed:
        return _number(arm["setting"])
    logged = [row[KL_COEFFICIENT] for row in study.metrics[arm["policy"]] if KL_COEFFICIENT in row]
    return _number(logged[-1]) if logged else np.nan


def _start_run(study: Study, arm: Mapping[str, Any]) -> str | None:
    """The SFT model's run that the arm's own reward model judged; None where there is none."""

    def judge(evaluation: str) -> Any:
        return study.records[evaluation]["identity"]["upstream"].get("reward_model")

    found = [
        row["evaluation"][:8]
        for row in study.manifest["arms"]
        if row["arm"] == "sft"
        and row["seed"] == arm["seed"]
        and judge(row["evaluation"]) == judge(arm["evaluation"])
    ]
    return found[0] if found else None


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
