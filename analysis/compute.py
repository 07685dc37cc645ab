"""What a policy cost, with everything that had to be made for it.

PPO pays for SFT, the reward model and its rollouts; DPO for SFT and itself. Both need preference
pairs, which are bought rather than made in most projects: so there is a total without and one with.
"""

import pandas as pd

from analysis.study import Study, dependencies
from pipelines.evaluate.schema import COMPUTE, conform

PREFERENCE_DATA = frozenset({"gold", "completions", "pairs"})
TOTALS = ("total", "total_with_pairs")
METRICS = {"seconds": "wall-clock time", "flops": "FLOPs", "peak_memory_bytes": "peak memory"}
SUMMED = ("seconds", "flops", "tokens_generated", "tokens_trained")


def compute(study: Study) -> pd.DataFrame:
    """The cost of every arm's policy by stage, and its totals.

    Seconds, FLOPs and tokens are summed over the steps of a stage, peak memory is the largest.
    stage="total" leaves out making the preference data (gold, completions, pairs);
    "total_with_pairs" has every step of the policy's dependency closure. A shared step (SFT) counts
    in full for every arm.

    Returns:
        COMPUTE; seconds of wall clock, FLOPs, tokens, bytes.

    Raises:
        UserError: a step of the closure has no record.
    """
    rows = []
    for arm in study.manifest["arms"]:
        whose = {name: arm[name] for name in ("arm", "setting", "seed", "variant")}
        steps = pd.DataFrame(
            {"stage": study.records[step]["stage"], **study.records[step]["cost"]}
            for step in dependencies(study.records, arm["policy"])
        )
        parts = {stage: group for stage, group in steps.groupby("stage", sort=False)}
        parts["total"] = steps[~steps["stage"].isin(PREFERENCE_DATA)]
        parts["total_with_pairs"] = steps
        for stage, group in parts.items():
            peak = group["peak_memory_bytes"].max()
            rows.append(
                {**whose, "stage": stage, **group[list(SUMMED)].sum(), "peak_memory_bytes": peak}
            )
    table = conform(pd.DataFrame(rows)[list(COMPUTE)], "compute")
    # Stable: stages stay in the order of their dependencies, totals last.
    return table.sort_values(
        ["arm", "setting", "seed", "variant"], ignore_index=True, kind="stable"
    )


def typical(compute: pd.DataFrame) -> pd.DataFrame:
    """The median cost over an arm's settings, seeds and variants, by stage, in the table's order.

    Returns:
        arm, stage, seconds, flops, peak_memory_bytes.
    """
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
