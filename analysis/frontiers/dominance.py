"""Which arm's frontier is higher: rewards at KL budgets, regret, dominated area, and dominance.

Every figure is of the gold reward over the same prompts. Intervals are over prompts, by a Bayesian
bootstrap that chooses the policies anew in each draw, and over seeds, by Student's t (see
`statistics.crossed`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.formats import agree, arm_name
from analysis.frontiers.attainable import Policies, attainable, optimum_at
from analysis.frontiers.best_of_n import best_of_n_per_prompt, judged
from analysis.frontiers.frontier import GRID, TRUSTED_ESS, optimum_per_prompt
from analysis.statistics import bootstrap_weights, crossed
from analysis.studies.catalogue import BEST_OF_N, GOLD, PROXY
from analysis.studies.reference import sft_rewards
from pipelines.evaluate.schema import DOMINANCE, FRONTIER_SUMMARY, conform
from pipelines.shared.errors import UserError

if TYPE_CHECKING:
    from analysis.studies.study import Study

DRAWS = 2000
STEPS = 40  # of the grid of KLs that areas are integrated over, even in sqrt(KL)
BUDGETS = tuple(m * 10.0**e for e in range(-1, 4) for m in (1, 2, 5))  # nats
AXES = ("kl", "root_kl")
Name = tuple[str, str]  # arm, variant


@dataclass(frozen=True)
class Frontiers:
    """Each arm's attainable reward on one grid of budgets.

    Attributes:
        grid: nats, (G,), from 0.
        budgets: those of the grid that a table lists.
        base: SFT's reward, of the prompts as they are (1,) and under each draw (D,).
        found: by arm and variant, seeds (S), rewards (S, G) and the draws' (D, S, G); null where a
            reward or a KL is missing.
        reach: by arm and variant, each seed's largest KL, nats.
        policies: by arm and variant, how many a seed.
        optimum: (1, G) and (D, G), nan where it cannot be estimated.
    """

    grid: np.ndarray
    budgets: np.ndarray
    base: tuple[np.ndarray, np.ndarray]
    found: Mapping[Name, tuple[tuple[int, ...], np.ndarray, np.ndarray]]
    reach: Mapping[Name, np.ndarray]
    policies: Mapping[Name, int]
    optimum: tuple[np.ndarray, np.ndarray]
    prompts: int

    @property
    def common(self) -> float:
        """The largest KL that every arm reaches, nats (of those whose KL is known)."""
        reached = [float(values.mean()) for values in self.reach.values()]
        return min((value for value in reached if np.isfinite(value)), default=float("nan"))


def frontiers(
    study: "Study", generator: np.random.Generator, draws: int = DRAWS, grid: int = STEPS
) -> Frontiers:
    """The frontier of every arm that moves away from the SFT model, and the optimum's.

    An arm's policies are all its settings and snapshots; best-of-n's are its n.

    Args:
        draws: of the bootstrap over prompts.
        grid: steps.
    """
    measured = matrices(study.scores)
    for row in study.manifest["estimates"]:
        if row["arm"] not in BEST_OF_N:
            continue
        scores = study.proxy_scores[row["step"]] if row["arm"] == PROXY else None
        tables = best_of_n_per_prompt(judged(study.reference, scores), row["arm"])
        chosen = [table for n, table in tables.items() if n > 1]
        if chosen:
            kl, reward = (np.stack([t[name] for t in chosen]) for name in ("kl", "reward_gold"))
            seeds = measured.setdefault((row["arm"], row["variant"]), {})
            seeds[int(row["seed"])] = Policies(kl, reward)
    base = sft_rewards(study.reference).to_numpy()
    betas, objectives = [], []
    for beta in GRID:
        possible = optimum_per_prompt(study.reference, beta)
        if possible["ess"].median() >= TRUSTED_ESS:
            betas.append(beta)
            objectives.append(possible["objective"].to_numpy())
    return trace(
        measured,
        base,
        (np.array(betas), np.array(objectives).reshape(len(betas), len(base))),
        generator,
        draws,
        grid,
    )


def matrices(scores: pd.DataFrame) -> dict[Name, dict[int, Policies]]:
    """The policies of each arm and variant, by seed; the SFT model is none of them.

    Raises:
        UserError: samples at several temperatures, or a policy without some of the prompts.
    """
    needed = {"arm", "setting", "seed", "variant", "run", "step", "prompt_id", "temperature"}
    missing = sorted(({"kl_rb", "reward_gold"} | needed) - set(scores))
    if missing:
        raise UserError(f"the scores lack the columns {', '.join(missing)}: evaluate again")
    if len(temperatures := sorted(scores["temperature"].unique())) > 1:
        listed = ", ".join(f"{value:g}" for value in temperatures)
        raise UserError(
            f"samples at temperatures {listed} have no common frontier: evaluate all at one"
        )
    moved = scores[scores["arm"] != "sft"]
    keys = ["arm", "variant", "seed", "run", "step"]
    # Sums are quick; nan in any sample makes a sum nan, as it should be.
    size = moved.groupby([*keys, "prompt_id"], sort=True).size()
    means = {}
    for name in ("kl_rb", "reward_gold"):
        total = moved[name].groupby([moved[key] for key in [*keys, "prompt_id"]], sort=True)
        means[name] = (total.sum(min_count=1) / total.count().where(total.count() == size)).unstack(
            "prompt_id"
        )
    held = size.unstack("prompt_id")
    if held.isna().any(axis=None):
        arm, variant, seed, run, step = held.index[held.isna().any(axis=1)][0]
        raise UserError(
            f"{arm_name(arm)} {variant} (seed {seed}, run {run}, step {step}) was not evaluated on "
            "all prompts of the others: evaluate again"
        )
    found: dict[Name, dict[int, Policies]] = {}
    kl = means["kl_rb"]
    for (arm, variant, seed), rows in kl.groupby(
        ["arm", "variant", "seed"], sort=True
    ).groups.items():
        policies = Policies(kl.loc[rows].to_numpy(), means["reward_gold"].loc[rows].to_numpy())
        found.setdefault((str(arm), str(variant)), {})[int(seed)] = policies
    return found


def trace(
    measured: Mapping[Name, Mapping[int, Policies]],
    base: np.ndarray,
    possible: tuple[np.ndarray, np.ndarray],
    generator: np.random.Generator,
    draws: int = DRAWS,
    grid: int = STEPS,
    budgets: Sequence[float] | None = None,
) -> Frontiers:
    """Frontiers of measured policies; see `attainable`.

    Args:
        measured: policies by arm and variant, and seed, on the same P prompts.
        base: SFT's reward on each prompt, (P,).
        possible: betas (B,) and the optimum's beta log Z on each prompt (B, P).
        budgets: nats; None for 1, 2 and 5 times powers of ten up to the largest KL of any arm.
    """
    prompts = len(base)
    reach = {
        name: np.array([policies.reach for policies in seeds.values()])
        for name, seeds in measured.items()
    }
    highest = max((float(v.max()) for v in reach.values() if np.isfinite(v).all()), default=0.0)
    if budgets is None:
        budgets = [budget for budget in BUDGETS if budget <= highest]
    even = highest * np.linspace(0, 1, grid + 1) ** 2
    points = np.unique(np.concatenate([even, budgets]))
    flat = np.full((1, prompts), 1 / prompts)
    weights = bootstrap_weights(draws, prompts, generator)
    order = generator.permutation(prompts)  # the folds are of neighbours
    measured = {
        name: {seed: policies.on(order) for seed, policies in seeds.items()}
        for name, seeds in measured.items()
    }
    base = base[order]
    found = {}
    for name, seeds in measured.items():
        own, drawn = (
            [attainable(policies, base, by, points) for policies in seeds.values()]
            for by in (flat, weights)
        )
        found[name] = tuple(seeds), np.concatenate(own), np.stack(drawn, axis=1)
    betas, objective = possible
    best = [optimum_at(objective[:, order], betas, by, points)[0] for by in (flat, weights)]
    return Frontiers(
        grid=points,
        budgets=np.array(budgets),
        base=(flat @ base, weights @ base),
        found=found,
        reach=reach,
        policies={name: len(next(iter(seeds.values())).kl) for name, seeds in measured.items()},
        optimum=(best[0], best[1]),
        prompts=prompts,
    )


def area_weights(grid: np.ndarray, end: float, axis: str) -> np.ndarray:
    """Weights q with sum(q f) = the integral of f (linear between grid points) from 0 to `end`.

    Args:
        grid: nats, ascending from 0.
        end: nats; a KL that rounding put below 0 is 0.
        axis: "kl", the integral d KL, or "root_kl", d sqrt(KL).
    """
    scale = grid if axis == "kl" else np.sqrt(grid)
    stop = max(end, 0.0) if axis == "kl" else np.sqrt(max(end, 0.0))
    weights = np.zeros(len(grid))
    for i in range(len(grid) - 1):
        width = scale[i + 1] - scale[i]
        inner = min(stop, scale[i + 1]) - scale[i]
        if inner <= 0:
            break
        # f at the end of a cut cell is between its two ends.
        weights[i] += inner - inner**2 / (2 * width)
        weights[i + 1] += inner**2 / (2 * width)
    return weights


def frontier_summary(frontiers: Frontiers) -> pd.DataFrame:
    """Reward and regret of each arm at each KL budget, and the area above SFT that it dominates.

    The budgets are 1, 2 and 5 times powers of ten within the largest KL of any arm; one that is
    beyond an arm's own reach (`kl_reached`) has the reward that the arm has within its reach.
    regret: the optimum's reward within the budget less the arm's, null where the optimum cannot be
    estimated (effective sample size below 10); its estimate is biased low, and so is the regret.
    dominated_area: the integral of reward above SFT's over KL from 0 to `kl_common`, the largest KL
    that every arm reaches (reward x nats); dominated_area_root: over sqrt(KL).

    Returns:
        FRONTIER_SUMMARY, sorted by arm, variant and budget; null where a reward or KL is missing.
    """
    grid, prompts, end = frontiers.grid, frontiers.prompts, frontiers.common
    budgets = frontiers.budgets
    places = np.searchsorted(grid, budgets)
    tables = []
    for (arm, variant), (seeds, value, draws) in sorted(frontiers.found.items()):
        reward = crossed(value[:, places], draws[:, :, places], prompts)
        regret = crossed(
            frontiers.optimum[0][:, places] - value[:, places],
            frontiers.optimum[1][:, None, places] - draws[:, :, places],
            prompts,
        )
        areas: dict[str, Any] = {}
        for axis, name in zip(AXES, ("dominated_area", "dominated_area_root"), strict=True):
            by = area_weights(grid, end, axis)
            area = crossed(
                (value - frontiers.base[0][:, None]) @ by,
                (draws - frontiers.base[1][:, None, None]) @ by,
                prompts,
            )
            areas |= {name: area.mean, f"{name}_low": area.low, f"{name}_high": area.high}
        shared = {
            "arm": arm,
            "variant": variant,
            "kl_reached": frontiers.reach[arm, variant].mean(),
            "kl_common": end,
            "seeds": len(seeds),
            "prompts": prompts,
            "policies": frontiers.policies[arm, variant],
            **{key: float(part) for key, part in areas.items()},
        }
        columns = {
            "kl_budget": budgets,
            "reward": reward.mean,
            "ci_low": reward.low,
            "ci_high": reward.high,
            "regret": regret.mean,
            "regret_ci_low": regret.low,
            "regret_ci_high": regret.high,
        }
        tables.append(pd.DataFrame(columns).assign(**shared))
    whole = pd.concat(tables) if tables else pd.DataFrame(columns=list(FRONTIER_SUMMARY))
    return conform(whole.reset_index(drop=True), "frontier_summary")


def dominance(frontiers: Frontiers) -> pd.DataFrame:
    """Mean difference of the frontiers of each two arms over the KL range that both reach.

    difference = 1/K integral_0^K (f_a - f_b), paired by prompt and seed, over KL and over sqrt(KL),
    K the smaller of the two arms' reaches. Where arms have different seeds, the common ones are
    compared; best-of-n by the gold reward, which has none, is held against each of the other's.
    Variants are compared where the options that both name have equal values.

    Returns:
        DOMINANCE: p is the one-sided confidence that the mean difference is above 0 (see
        `statistics.Crossed.above`), of each pair by itself; `higher` is the arm whose interval
        leaves 0, "none shown" where none does. Where no KL range is common (K = 0, or a figure is
        missing) difference, p and higher are null.
    """
    rows = []
    for a, b in combinations(sorted(frontiers.found), 2):
        if a[0] == b[0] and a[1] == b[1]:
            continue
        if not agree(a[1], b[1]):
            continue
        paired = _paired(frontiers, a, b)
        if paired is None:
            continue
        value, draws, end = paired
        for axis in AXES:
            row = {
                "arm_a": a[0],
                "variant_a": a[1],
                "arm_b": b[0],
                "variant_b": b[1],
                "axis": axis,
                "kl_common": end,
                "seeds": len(value),
                "prompts": frontiers.prompts,
            }
            if end > 0:
                by = area_weights(frontiers.grid, end, axis)
                by = by / by.sum()
                found = crossed(value @ by, draws @ by, frontiers.prompts)
                higher: str | None = "none shown"
                if np.isnan(found.low):
                    higher = None
                elif found.low > 0 or found.high < 0:
                    higher = a[0] if found.low > 0 else b[0]
                row |= {
                    "difference": float(found.mean),
                    "ci_low": float(found.low),
                    "ci_high": float(found.high),
                    "p": float(found.above()),
                    "higher": higher,
                }
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(DOMINANCE))
    return conform(table.astype({"higher": "string"}), "dominance")


def _paired(frontiers: Frontiers, a: Name, b: Name) -> tuple[np.ndarray, np.ndarray, float] | None:
    """f_a - f_b of the seeds that both have, its draws, and the KL that both reach; None where they
    have no seed in common."""
    (seeds_a, value_a, draws_a), (seeds_b, value_b, draws_b) = (
        frontiers.found[name] for name in (a, b)
    )
    reach_a, reach_b = frontiers.reach[a], frontiers.reach[b]
    if GOLD in (a[0], b[0]):  # one against each
        return value_a - value_b, draws_a - draws_b, float(min(reach_a.mean(), reach_b.mean()))
    common = sorted(set(seeds_a) & set(seeds_b))
    if not common:
        return None
    i, j = ([seeds.index(seed) for seed in common] for seeds in (seeds_a, seeds_b))
    end = float(min(reach_a[i].mean(), reach_b[j].mean()))
    return value_a[i] - value_b[j], draws_a[:, i] - draws_b[:, j], end
