"""What a policy cost, with everything that had to be made for it.

PPO pays for SFT, the reward model and its rollouts; DPO for SFT and itself. Both need preference
pairs, which are bought rather than made in most projects: so there is a total without and one with.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.best_of_n import sizes
from analysis.catalogue import BEST_OF_N, GOLD, OPTIMUM, Catalogue
from analysis.study import Study
from pipelines.evaluate.schema import COMPUTE, conform

PREFERENCE_DATA = frozenset({"gold", "completions", "pairs"})
TOTALS = ("total", "total_with_pairs")
METRICS = {"seconds": "wall-clock time", "flops": "FLOPs", "peak_memory_bytes": "peak memory"}
COUNTED = ("flops", "tokens_generated", "tokens_trained")
SUMMED = ("seconds", *COUNTED)
# The phase of a step that is paid at inference; the rest of it is start-up.
AT_INFERENCE = {"reference-samples": "sampling", "proxy-scores": "scoring"}


def compute(study: Study) -> pd.DataFrame:
    """The cost of every arm's policy by stage, and its totals.

    Seconds, FLOPs and tokens are summed over the steps of a stage, peak memory is the largest.
    stage="total" leaves out making the preference data (gold, completions, pairs);
    "total_with_pairs" has every step of the policy's dependency closure. A shared step (SFT) counts
    in full for every arm. Where the gold reward is the judge that an arm trains on or chooses by
    (see `judged_by_gold`), making it is no preference data, and is in both totals.

    Best-of-n (setting n) and the optimum train nothing. Their cost beyond what they stand on is at
    inference, for the prompts of the evaluation, in the stages reference-samples and proxy-scores.
    One completion is what every policy gives, so that best of n costs n - 1 further ones, (n-1)/N
    of the sampling of the N a prompt that were made, and for n > 1 n scores of the reward model,
    n/N of its scoring; n = 1 costs what the SFT model does. Of these steps' seconds only those of
    the phase (sampling, scoring) count, not the process's start; where a record has not timed that
    phase, all of them do. The optimum is charged with all N.

    Returns:
        COMPUTE; seconds of wall clock, FLOPs, tokens, bytes.

    Raises:
        UserError: a step of the closure has no record.
    """
    rows = []
    for arm in study.manifest["arms"]:
        whose = {name: arm[name] for name in ("arm", "setting", "seed", "variant")}
        steps = _costs(study, arm["policy"], {})
        rows += _by_stage(whose, steps, judged_by_gold(study.catalogue, arm["arm"]))
    total = int(study.reference.groupby("prompt_id").size().iloc[0])
    for row in study.manifest["estimates"]:
        whose = {name: row[name] for name in ("arm", "seed", "variant")}
        for n in sizes(total) if row["arm"] in BEST_OF_N else (None,):
            steps = _costs(study, row["step"], {} if n is None else _shares(n, total))
            judged = n != 1 and judged_by_gold(study.catalogue, row["arm"])
            rows += _by_stage({**whose, "setting": n}, steps, judged)
    table = conform(pd.DataFrame(rows)[list(COMPUTE)], "compute")
    # Stable: stages stay in the order of their dependencies, totals last.
    return table.sort_values(
        ["arm", "setting", "seed", "variant"], ignore_index=True, kind="stable"
    )


def judged_by_gold(catalogue: Catalogue, arm: str) -> bool:
    """Whether an arm uses the gold reward itself, beyond labels: to train on, or to choose by."""
    return arm in (GOLD, OPTIMUM) or catalogue.trains_on(arm) == "gold"


def _shares(n: int, total: int) -> dict[str, float]:
    """What best of n takes of the stages at inference: n - 1 further completions, n scores."""
    return {"reference-samples": (n - 1) / total, "proxy-scores": n / total if n > 1 else 0.0}


def _costs(study: Study, fingerprint: str, shares: Mapping[str, float]) -> pd.DataFrame:
    """Stage and cost of all that a step stands on.

    Args:
        shares: what counts of the stages at inference; 1 where it names none.
    """
    rows = []
    for step in study.closure(fingerprint):
        record = study.records[step]
        stage, cost = record["stage"], record["cost"]
        if stage in AT_INFERENCE:
            timed = record.get("phases", {}).get(AT_INFERENCE[stage], {}).get("seconds")
            whole = {**cost, "seconds": timed or cost["seconds"]}
            part = {name: whole[name] * shares.get(stage, 1.0) for name in SUMMED}
            cost = {**cost, **part, **{name: round(part[name]) for name in COUNTED}}
        rows.append({"stage": stage, **cost})
    return pd.DataFrame(rows)


def _by_stage(whose: Mapping[str, Any], steps: pd.DataFrame, judged: bool) -> list[dict[str, Any]]:
    """The rows of one policy: each stage and the two totals.

    Args:
        judged: the gold reward is its judge, and no part of the preference data.
    """
    bought = PREFERENCE_DATA - {"gold"} if judged else PREFERENCE_DATA
    parts = {str(stage): group for stage, group in steps.groupby("stage", sort=False)}
    parts["total"] = steps[~steps["stage"].isin(bought)]
    parts["total_with_pairs"] = steps
    return [
        {
            **whose,
            "stage": stage,
            **group[list(SUMMED)].sum(),
            "peak_memory_bytes": group["peak_memory_bytes"].max(),
        }
        for stage, group in parts.items()
    ]


def typical(compute: pd.DataFrame) -> pd.DataFrame:
    """The median cost over an arm's settings, seeds and variants, by stage, in the table's order.

    Of best-of-n only the largest n counts: its cost grows with n, and a median of the ns that were
    tried would say nothing.

    Returns:
        arm, stage, seconds, flops, peak_memory_bytes.
    """
    largest = compute.groupby("arm")["setting"].transform("max")
    compute = compute[~compute["arm"].isin(BEST_OF_N) | (compute["setting"] == largest)]
    return compute.groupby(["arm", "stage"], sort=False)[list(METRICS)].median().reset_index()


def ratios(compute: pd.DataFrame, arm_a: str = "ppo", arm_b: str = "dpo") -> pd.DataFrame:
    """Cost of one arm over another's, by totals (median over settings and seeds of each).

    Returns:
        basis (total, total_with_pairs), metric (seconds, flops, peak_memory_bytes), arm_a, arm_b,
        cost_a, cost_b, ratio; null ratio where cost_b is 0; no rows where an arm is absent.
    """
    costs = typical(compute).set_index(["arm", "stage"])
    rows = []
    for basis in TOTALS:
        if (arm_a, basis) not in costs.index or (arm_b, basis) not in costs.index:
            continue
        for metric in METRICS:
            a, b = (
                float(costs.loc[(arm_a, basis), metric]),
                float(costs.loc[(arm_b, basis), metric]),
            )
            rows.append((basis, metric, arm_a, arm_b, a, b, a / b if b else float("nan")))
    names = ["basis", "metric", "arm_a", "arm_b", "cost_a", "cost_b", "ratio"]
    return pd.DataFrame(rows, columns=names)
