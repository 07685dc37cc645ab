"""What claims are measured by: functions of a study's evidence, named by the claims.

Each gives the figure with its 95% interval in the claim's unit, or None where the study cannot
speak to it. Nothing here knows a threshold or a verdict.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.cost.tuning import finickiness
from analysis.frontiers.attainable import Policies, attainable
from analysis.frontiers.best_of_n import best_of_n_per_prompt, judged
from analysis.frontiers.dominance import Frontiers, dominance, matrices, trace
from analysis.judging.temperatures import compare_losses, losses
from analysis.statistics import bootstrap_weights, crossed, finals
from analysis.studies.reference import sft_rewards

if TYPE_CHECKING:
    from analysis.studies.study import Study

BEST_OF = 8  # trials: what finickiness compares to one
OF_A_SEARCH = ("finickier",)  # what is measured on a search, and on nothing else
SIMILAR = 0.35  # square roots of nats that two policies at similar KL are apart at most
LEVEL = 2.0  # nats of best of n, at whose reward KLs are compared
SHARED = 1.0  # nats that two coefficients' policies must share to be compared
WITHOUT = np.zeros(0)


@dataclass(frozen=True)
class Evidence:
    """What a study leaves for claims to be held against.

    Attributes:
        tables: of the study, by name.
        frontiers: see `dominance.frontiers`.
        policies: one of each arm at similar KL, see `representatives`.
        trials: of a search that was laid out as one, see `tuning_trials.trials`; None else.
        heats: win rates by temperature, see `temperatures.win_rates`; None without a sweep.
        seed: of the generator that every estimand starts anew, so that none depends on another.
    """

    study: "Study"
    tables: Mapping[str, pd.DataFrame]
    frontiers: Frontiers
    policies: pd.DataFrame
    trials: pd.DataFrame | None = None
    heats: pd.DataFrame | None = None
    seed: int = 0
    draws: int = 2000

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def has(self, *arms: str) -> bool:
        """Whether the study has all of these arms, each in one variant."""
        return all((arm, "") in self.frontiers.found for arm in arms)


@dataclass(frozen=True)
class Measured:
    """A figure with the ends of its 95% interval; equal to it where it is a count.

    Attributes:
        basis: what the interval is over.
        normal: whether it is one of a mean, whose width tells of the effects it can see.
    """

    value: float
    low: float
    high: float
    basis: str
    seeds: int = 1
    normal: bool = True


Estimand = Callable[..., Measured | None]


def exact(evidence: Evidence, value: float, basis: str = "counted") -> Measured:
    """A count, which has no error."""
    seeds = len({row["seed"] for row in evidence.study.manifest["arms"]})
    return Measured(value, value, value, basis, seeds, normal=False)


def over(seeds: int) -> str:
    """What an interval of so many seeds is over."""
    return "prompts" if seeds == 1 else f"{seeds} seeds x prompts"


def more_networks(evidence: Evidence, a: str, b: str) -> Measured | None:
    """Networks in memory in the last stage of one arm less the other's."""
    counts = [_last_stage(evidence, arm)["networks"] for arm in (a, b)]
    if any(pd.isna(count) for count in counts):
        return None
    return exact(evidence, float(counts[0] - counts[1]))


def memory_ratio(evidence: Evidence, a: str, b: str) -> Measured | None:
    """Bytes of networks, gradients and optimiser of one arm's last stage over the other's."""
    sizes = [_last_stage(evidence, arm)["model_state_bytes"] for arm in (a, b)]
    if any(pd.isna(size) for size in sizes):
        return None
    return exact(evidence, float(sizes[0] / sizes[1]))


def more_stages(evidence: Evidence, a: str, b: str) -> Measured | None:
    """Stages that train something in what one arm stands on, less the other's."""
    cost = _plain(evidence, "compute")
    trained = cost[~cost["stage"].str.startswith("total") & (cost["tokens_trained"] > 0)]
    counts = trained.groupby("arm")["stage"].nunique()
    if not {a, b} <= set(counts.index):
        return None
    return exact(evidence, float(counts[a] - counts[b]))


def reward_models(evidence: Evidence, arm: str) -> Measured | None:
    """Reward models that the arm's policies stand on."""
    cost = _plain(evidence, "compute")
    own = cost[cost["arm"] == arm]
    return None if own.empty else exact(evidence, float("reward-model" in set(own["stage"])))


def finickier(evidence: Evidence, a: str, b: str) -> Measured | None:
    """What choosing among trials gains over one trial, one arm less the other."""
    if evidence.trials is None or not {a, b} <= set(evidence.trials["arm"]):
        return None
    row = finickiness(evidence.trials, a, b, BEST_OF).iloc[0]
    if pd.isna(row["ci_low"]):
        return None
    paired = "paired " if row["paired"] else ""
    seeds = len({own["seed"] for own in evidence.study.manifest["arms"]})
    basis = f"{row['trials_a']} {paired}trials, {seeds} seed{'s' if seeds > 1 else ''}"
    return Measured(row["difference"], row["ci_low"], row["ci_high"], basis, seeds)


def frontier_difference(evidence: Evidence, a: str, b: str) -> Measured | None:
    """Mean reward difference of two frontiers over their common KL range."""
    return _difference(evidence.tables["dominance"], a, b) if evidence.has(a, b) else None


def share_below(evidence: Evidence, arm: str, *others: str) -> Measured | None:
    """Share of other arms whose frontier is lower; between those shown to be and those not shown
    to be higher."""
    found = [other for other in others if evidence.has(arm, other)]
    rows = [_difference(evidence.tables["dominance"], arm, other) for other in found]
    known = [row for row in rows if row is not None]
    if len(known) < 3:
        return None
    value, low, high = (
        float(np.mean([getattr(row, name) > 0 for row in known]))
        for name in ("value", "low", "high")
    )
    return Measured(value, low, high, f"{len(known)} arms", known[0].seeds, normal=False)


def win_rate(evidence: Evidence, a: str, b: str, judge: str) -> Measured | None:
    """Win rate of one arm's representative over the other's; None where their KLs are not alike."""
    places = evidence.policies.set_index("arm")["kl"]
    if not {a, b} <= set(places.index) or abs(np.sqrt(places[a]) - np.sqrt(places[b])) > SIMILAR:
        return None
    table = evidence.tables["win_rates"]
    table = table[(table["variant_a"] == "") & (table["variant_b"] == "")]
    rows = table[(table["arm_a"] == a) & (table["arm_b"] == b) & (table["judge"] == judge)]
    turned = table[(table["arm_a"] == b) & (table["arm_b"] == a) & (table["judge"] == judge)]
    if len(rows) + len(turned) != 1:
        return None
    row = (rows if len(rows) else turned).iloc[0]
    values = row["win_rate"], row["ci_low"], row["ci_high"]
    if not len(rows):
        values = 1 - values[0], 1 - values[2], 1 - values[1]
    basis = f"{over(row['seeds'])}, at {places[a]:.2f} and {places[b]:.2f} nats"
    return None if pd.isna(values[0]) else Measured(*values, basis, int(row["seeds"]))


def temperature_loss(evidence: Evidence, a: str, b: str) -> Measured | None:
    """Win rate against chosen, by gold, that one arm loses from T = 0 to 1, less the other's."""
    if evidence.heats is None:
        return None
    rows = compare_losses(losses(evidence.heats), a, b)
    rows = rows[(rows["opponent"] == "chosen") & (rows["judge"] == "gold")]
    if len(rows) != 1:
        return None
    row = rows.iloc[0]
    return Measured(
        row["difference"], row["ci_low"], row["ci_high"], over(row["seeds"]), row["seeds"]
    )


def best_of_n_difference(evidence: Evidence, arm: str, sampling: str, n: str) -> Measured | None:
    """An arm's highest reward, at whatever KL, less that of best of n by the reward model."""
    study, own = evidence.study, matrices(_own(evidence, arm)).get((arm, ""), {})
    best = {}
    for row in study.manifest["estimates"]:
        if (row["arm"], row["variant"]) != (sampling, "") or row["step"] not in study.proxy_scores:
            continue
        samples = judged(study.reference, study.proxy_scores[row["step"]])
        if int(n) <= len(samples) // samples["prompt_id"].nunique() // 2:
            table = best_of_n_per_prompt(samples, sampling, [int(n)])[int(n)]
            best[int(row["seed"])] = table["reward_gold"].to_numpy()
    common = sorted(own.keys() & best.keys())
    if not common:
        return None
    return _above(evidence, {seed: own[seed] for seed in common}, best)


def kl_ratio(evidence: Evidence, arm: str, sampling: str) -> Measured | None:
    """KL that an arm takes for the reward that best of n has at 2 nats, over these 2 nats.

    From the two frontiers; the interval is that of the log ratio. None where best of n does not
    reach 2 nats or the arm, in a seed, not that reward.
    """
    if not evidence.has(arm, sampling) or evidence.frontiers.reach[sampling, ""].min() < LEVEL:
        return None
    frontiers = evidence.frontiers
    (seeds, curves, draws), (others, level, levels) = (
        frontiers.found[name, ""] for name in (arm, sampling)
    )
    common = sorted(set(seeds) & set(others))
    if not common:
        return None
    i, j = ([given.index(seed) for seed in common] for given in (seeds, others))

    def log_ratio(own: np.ndarray, bases: np.ndarray) -> np.ndarray:
        wanted = np.array([np.interp(LEVEL, frontiers.grid, base) for base in bases])
        found = [
            np.interp(want, np.maximum.accumulate(curve), frontiers.grid, right=np.nan)
            for want, curve in zip(wanted, own, strict=True)
        ]
        return np.log(np.maximum(found, 1e-9) / LEVEL)

    estimates = log_ratio(curves[i], level[j])
    if np.isnan(estimates).any():
        return None
    drawn = np.stack([log_ratio(draws[d][i], levels[d][j]) for d in range(len(draws))])
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    if len(drawn) < 0.95 * len(draws):
        return None  # the reward is at the edge of what the arm reaches
    found = _measured(estimates, drawn, frontiers.prompts, len(common))
    if found is None:
        return None
    value, low, high = (float(np.exp(part)) for part in (found.value, found.low, found.high))
    return Measured(value, low, high, found.basis, found.seeds, normal=False)


def penalty_effect(evidence: Evidence, arm: str) -> Measured | None:
    """Size of the reward difference, at equal KL, between an arm's snapshots under its two smallest
    coefficients; None where they share less than a nat."""
    own = _own(evidence, arm)
    settings = sorted(own["setting"].dropna().unique())
    if len(settings) < 2 or own.groupby("setting")["step"].nunique().min() < 2:
        return None
    ends = {"larger": settings[1], "smallest": settings[0]}
    parts = [own[own["setting"] == setting].assign(arm=name) for name, setting in ends.items()]
    base = _base(evidence)
    measured = matrices(pd.concat(parts, ignore_index=True))
    nothing = WITHOUT, np.zeros((0, len(base)))
    found = trace(measured, base, nothing, evidence.generator(), evidence.draws)
    row = _difference(dominance(found), "larger", "smallest")
    if row is None or found.common < SHARED:
        return None
    far = max(abs(row.low), abs(row.high))
    near = 0.0 if row.low < 0 < row.high else min(abs(row.low), abs(row.high))
    basis = f"{row.basis}, up to {found.common:.2f} nats"
    return Measured(abs(row.value), near, far, basis, row.seeds, normal=False)


def loss_past_peak(evidence: Evidence, arm: str) -> Measured | None:
    """The best reward of an arm's policies of other settings less that of its highest-KL setting.

    The latter's is its final policy's; its own snapshots, which have less KL, are not among the
    others. Which of these is the best is cross-fitted (see `attainable`).
    """
    own = _own(evidence, arm)
    ends = finals(own).groupby("setting")["kl_rb"].mean()
    if len(ends) < 2 or ends.isna().any():
        return None
    highest = ends.idxmax()
    top = matrices(finals(own[own["setting"] == highest])).get((arm, ""), {})
    below = matrices(own[own["setting"] != highest]).get((arm, ""), {})
    if not top or below.keys() != top.keys():
        return None
    return _above(evidence, below, {seed: policies.reward[0] for seed, policies in top.items()})


def compute_ratio(evidence: Evidence, a: str, b: str, metric: str) -> Measured | None:
    """Cost of all that one arm's policies stand on over the other's, without the pairs.

    Median over policies; the ends are the least and the largest ratio of two policies, since a
    count of FLOPs has no error of sampling.
    """
    cost = _plain(evidence, "compute")
    totals = cost[cost["stage"] == "total"]
    own, other = (totals.loc[totals["arm"] == arm, metric] for arm in (a, b))
    if own.empty or other.empty or not other.min() > 0:
        return None
    value = float(own.median() / other.median())
    low, high = float(own.min() / other.max()), float(own.max() / other.min())
    seeds = totals.loc[totals["arm"] == a, "seed"].nunique()
    return Measured(value, low, high, "range over policies", seeds, normal=False)


def chosen_change(evidence: Evidence, arm: str) -> Measured | None:
    """How far an arm's training moved the log-probability of the chosen completions, nats.

    Mean over its settings, of which there must be two; the ends are the least and the largest of
    their means over seeds. So a verdict is one that holds at every setting.
    """
    table = _plain(evidence, "pair_changes")
    rows = table[(table["arm"] == arm) & table["chosen_change"].notna()]
    if len(rows) < 2:
        return None
    changes = rows["chosen_change"]
    low, high = float(changes.min()), float(changes.max())
    basis = "range over settings"
    return Measured(float(changes.mean()), low, high, basis, int(rows["seeds"].min()), normal=False)


def processor_hours(evidence: Evidence) -> Measured | None:
    """Hours of one processor for all steps of the study: of an accelerator where a step used one,
    else of a CPU core."""
    records = [evidence.study.records[step] for step in evidence.study.manifest["steps"]]
    hours = sum(
        record["cost"]["seconds"]
        * (len(record.get("accelerators") or ()) or record["identity"]["threads"])
        / 3600
        for record in records
    )
    return exact(evidence, float(hours), "all steps")


def _plain(evidence: Evidence, name: str) -> pd.DataFrame:
    """A table's rows of policies without other options than their setting."""
    table = evidence.tables[name]
    return table[table["variant"] == ""]


def _above(
    evidence: Evidence, policies: Mapping[int, Policies], other: Mapping[int, np.ndarray]
) -> Measured | None:
    """The best reward among some policies, at whatever KL, less another reward, by seed.

    Args:
        other: on each prompt, (P,).
    """
    base, generator = _base(evidence), evidence.generator()
    prompts = len(base)
    weights = bootstrap_weights(evidence.draws, prompts, generator)
    order = generator.permutation(prompts)  # the folds are of neighbours
    end = np.array([max(own.reach for own in policies.values()) + 1])

    def difference(by: np.ndarray) -> np.ndarray:
        parts = [
            attainable(own.on(order), base[order], by, end)[:, 0] - by @ other[seed][order]
            for seed, own in policies.items()
        ]
        return np.stack(parts, axis=1)

    flat = np.full((1, prompts), 1 / prompts)
    return _measured(difference(flat)[0], difference(weights), prompts, len(policies))


def _last_stage(evidence: Evidence, arm: str) -> Mapping[str, Any]:
    """The row of COMPUTE of the stage that made an arm's policy; nulls where there is none."""
    policies = {row["policy"] for row in evidence.study.manifest["arms"] if row["arm"] == arm}
    stages = {evidence.study.records[policy]["stage"] for policy in policies}
    cost = _plain(evidence, "compute")
    rows = cost[(cost["arm"] == arm) & cost["stage"].isin(stages)]
    empty = {"networks": np.nan, "model_state_bytes": np.nan}
    return rows.iloc[0].to_dict() if len(rows) else empty


def _own(evidence: Evidence, arm: str) -> pd.DataFrame:
    """An arm's scores, of the variant without other options."""
    scores = evidence.study.scores
    return scores[(scores["arm"] == arm) & (scores["variant"] == "")]


def _base(evidence: Evidence) -> np.ndarray:
    """SFT's reward on each prompt."""
    return sft_rewards(evidence.study.reference).to_numpy()


def _difference(table: pd.DataFrame, a: str, b: str) -> Measured | None:
    """a's frontier less b's, from a dominance table; None where it has none of them."""
    table = table[table["axis"] == "kl"]
    for one, other, sign in ((a, b, 1), (b, a, -1)):
        rows = table[(table["arm_a"] == one) & (table["arm_b"] == other)]
        if len(rows) == 1 and pd.notna(rows.iloc[0]["ci_low"]):
            row = rows.iloc[0]
            low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
            seeds = int(row["seeds"])
            return Measured(sign * row["difference"], low, high, over(seeds), seeds)
    return None


def _measured(
    estimates: np.ndarray, draws: np.ndarray, prompts: int, seeds: int
) -> Measured | None:
    """The interval of a statistic of each seed, (S,), and its draws, (D, S)."""
    found = crossed(estimates, draws, prompts)
    if np.isnan(found.low):
        return None
    return Measured(float(found.mean), float(found.low), float(found.high), over(seeds), seeds)
