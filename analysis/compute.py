"""What a policy cost, with everything that had to be made for it.

PPO pays for SFT, the reward model and its rollouts; DPO for SFT and itself. Both need preference
pairs, which are bought rather than made in most projects: so there is a total without and one with.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.best_of_n import sizes
from analysis.catalogue import BEST_OF_N
from analysis.study import Study
from pipelines.evaluate.schema import COMPUTE, conform

PREFERENCE_DATA = frozenset({"gold", "completions", "pairs"})
TOTALS = ("total", "total_with_pairs")
METRICS = {"seconds": "wall-clock time", "flops": "FLOPs", "peak_memory_bytes": "peak memory"}
COUNTED = ("flops", "tokens_generated", "tokens_trained")
SUMMED = ("seconds", *COUNTED)
AT_INFERENCE = frozenset({"reference-samples", "proxy-scores"})


def compute(study: Study) -> pd.DataFrame:
    """The cost of every arm's policy by stage, and its totals.

    Seconds, FLOPs and tokens are summed over the steps of a stage, peak memory is the largest.
    stage="total" leaves out making the preference data (gold, completions, pairs);
    "total_with_pairs" has every step of the policy's dependency closure. A shared step (SFT) counts
    in full for every arm.

    Best-of-n (setting n) and the optimum train nothing. Their cost beyond what they stand on is at
    inference: n completions for one, and their scores. It is in the stages reference-samples and
    proxy-scores: of the N completions a prompt that were made, n/N of the step's seconds, FLOPs and
    tokens for best-of-n at n, and all of it for the optimum; for the prompts of the evaluation.

    Returns:
        COMPUTE; seconds of wall clock, FLOPs, tokens, bytes.

    Raises:
        UserError: a step of the closure has no record.
    """
    rows = []
    for arm in study.manifest["arms"]:
        whose = {name: arm[name] for name in ("arm", "setting", "seed", "variant")}
        rows += _by_stage(whose, _costs(study, arm["policy"], 1.0))
    total = int(study.reference.groupby("prompt_id").size().iloc[0])
    for row in study.manifest["estimates"]:
        whose = {name: row[name] for name in ("arm", "seed", "variant")}
        for n in sizes(total) if row["arm"] in BEST_OF_N else (None,):
            steps = _costs(study, row["step"], 1.0 if n is None else n / total)
            rows += _by_stage({**whose, "setting": n}, steps)
    table = conform(pd.DataFrame(rows)[list(COMPUTE)], "compute")
    # Stable: stages stay in the order of their dependencies, totals last.
    return table.sort_values(
        ["arm", "setting", "seed", "variant"], ignore_index=True, kind="stable"
    )


def _costs(study: Study, fingerprint: str, share: float) -> pd.DataFrame:
    """Stage and cost of all that a step stands on; of what is done at inference, this share."""
    rows = []
    for step in study.closure(fingerprint):
        stage, cost = study.records[step]["stage"], study.records[step]["cost"]
        if stage in AT_INFERENCE:
            part = {name: cost[name] * share for name in SUMMED}
            cost = {**cost, **part, **{name: round(part[name]) for name in COUNTED}}
        rows.append({"stage": stage, **cost})
    return pd.DataFrame(rows)


def _by_stage(whose: Mapping[str, Any], steps: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of one policy: each stage and the two totals."""
    parts = {str(stage): group for stage, group in steps.groupby("stage", sort=False)}
    parts["total"] = steps[~steps["stage"].isin(PREFERENCE_DATA)]
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

    Of best-of-n only the largest n counts: its cost is proportional to n, and a median of the ns
    that were tried would say nothing.

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
