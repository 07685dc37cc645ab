"""Figures from tables: each function takes a DataFrame and returns a Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.compute import PREFERENCE_DATA, TOTALS
from analysis.formats import MINUS, arm_name, policy_name, short
from analysis.frontier import TRUSTED_ESS
from analysis.frontier_plot import has_variants
from analysis.statistics import margin
from analysis.style import (
    ESTIMATORS,
    SETTINGS,
    SPARE,
    STAGE_COLOURS,
    STYLES,
    new_figure,
    root_scale,
    styles,
)


def objective(gains: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Gain in J over SFT at each coefficient, and what the optimum would gain.

    Args:
        gains: see `objective.gains`.
        table: OBJECTIVE, for the optimum's gain and its effective sample size.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(7.4, 4.2)
        axes = figure.subplots()
        levels = sorted(gains["setting"].unique())
        place = {level: k for k, level in enumerate(levels)}
        looks = styles(gains["arm"].unique())
        names = list(gains[["arm", "variant"]].drop_duplicates().itertuples(index=False, name=None))
        named: set[str] = set()
        for number, (arm, variant) in enumerate(names):
            own = gains[(gains["arm"] == arm) & (gains["variant"] == variant)]
            shift = (number - (len(names) - 1) / 2) * min(0.16, 0.6 / len(names))
            axes.errorbar(
                own["setting"].map(place) + shift,
                own["gain"],
                yerr=[own["gain"] - own["ci_low"], own["ci_high"] - own["gain"]],
                color=looks[arm][0],
                marker=looks[arm][1],
                ms=4.5,
                lw=0,
                elinewidth=1.6,
                capsize=5 if len(names) < 6 else 2,
                label=None if arm in named else arm_name(arm),
            )
            named.add(arm)
        _draw_possible(axes, table, place)
        axes.axhline(0, color="black", lw=1)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.set_xlim(-0.6, len(levels) - 0.4)
        axes.set_xlabel("coefficient c of the KL penalty (PPO's kl_coef, DPO's beta)")
        axes.set_ylabel(f"gain in J = reward {MINUS} c·KL over SFT\n(reward units, 95% interval)")
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
        return figure


def _draw_possible(axes: Axes, table: pd.DataFrame, place: Mapping[float, int]) -> None:
    """The optimum's estimated gain at each coefficient; hollow where it is only a lower bound."""
    best = table[table["objective_optimum"].notna()].drop_duplicates("setting")
    room = best["objective_optimum"] - best["objective_sft"]
    trusted = best["ess"] >= TRUSTED_ESS
    for mask, style, label in (
        (trusted, "-", "estimated optimum"),
        (~trusted, ":", f"lower bound of the optimum (ESS < {TRUSTED_ESS:g})"),
    ):
        where = best.loc[mask, "setting"].map(place)
        if len(where):
            colour = STYLES["optimum"][0]
            axes.hlines(
                room[mask], where - 0.32, where + 0.32, color=colour, ls=style, lw=2.2, label=label
            )


def cost(costs: pd.DataFrame) -> Figure:
    """FLOPs and seconds of each arm by stage, stacked; making the preference data is hatched.

    Args:
        costs: see `compute.typical`.
    """
    parts = costs[~costs["stage"].isin(TOTALS)]
    arms = [arm for arm in ("sft", "dpo", "ppo") if arm in set(parts["arm"])]
    arms += sorted(set(parts["arm"]) - set(arms))
    stages = list(dict.fromkeys(parts["stage"]))
    # What is bought comes last in the bar: its left part is the total without preference data.
    stages.sort(key=lambda stage: stage in PREFERENCE_DATA)
    spare = iter([colour for colour, _ in SPARE])
    colours = {stage: STAGE_COLOURS.get(stage) or next(spare) for stage in stages}
    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(9.6, 1.5 + 0.42 * len(arms))
        for axes, metric, label in zip(
            figure.subplots(1, 2, sharey=True),
            ("flops", "seconds"),
            ("FLOPs", "seconds"),
            strict=True,
        ):
            _draw_bars(axes, costs, arms, stages, colours, metric)
            axes.set_xlabel(f"{label}: without / with the preference data")
            axes.set_yticks(range(len(arms)), arms)
            axes.grid(False, axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x, trim=True)))
            axes.set_ylim(len(arms) - 0.45, -0.55)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
        return figure


def _draw_bars(
    axes: Axes,
    costs: pd.DataFrame,
    arms: Sequence[str],
    stages: Sequence[str],
    colours: Mapping[str, Any],
    metric: str,
) -> None:
    """Stacked bars of one metric; each bar's end is labelled without / with preference data.

    The labels are the table's own totals: a sum of medians is not the median of sums.
    """
    table = costs.pivot(index="arm", columns="stage", values=metric).reindex(arms).fillna(0)
    left = np.zeros(len(arms))
    for stage in stages:
        bought = stage in PREFERENCE_DATA
        axes.barh(
            range(len(arms)),
            table[stage],
            left=left,
            height=0.62,
            color=colours[stage],
            alpha=0.55 if bought else 1.0,
            hatch="////" if bought else None,
            edgecolor="white",
            lw=0.5,
            label=f"{stage} (preference data)" if bought else stage,
        )
        left += table[stage].to_numpy()
    for row, end in enumerate(left):
        less, whole = (float(table[basis].iloc[row]) for basis in TOTALS)
        text = short(less) if less == whole else f"{short(less)} / {short(whole)}"
        axes.text(end + 0.012 * left.max(), row, text, va="center", fontsize=8.5)
    axes.set_xlim(0, (left.max() or 1) * 1.3)


def training(points: pd.DataFrame, reward_label: str) -> Figure | None:
    """Gold reward and KL over training, from the snapshots, a column per arm.

    Every line starts at step 0 from the SFT model. Settings are told apart by shade (darker is a
    larger coefficient) and, where there are no variants, by a label at the line's end. None where
    no arm has snapshots.

    Args:
        points: see `frontier.points`.
    """
    start = points[(points["arm"] == "sft") & points["final"]].assign(step=0)
    arms = sorted(set(points.loc[~points["final"], "arm"]))
    if not arms:
        return None
    looks = styles(points["arm"].unique())
    names = ("reward_gold", "kl")
    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(1.2 + 3.9 * len(arms), 5.6)
        grid = figure.subplots(2, len(arms), sharex="col", sharey="row", squeeze=False)
        for column, arm in enumerate(arms):
            own = points[points["arm"] == arm]
            for row, name in enumerate(names):
                _draw_training(grid[row, column], own, start, name, looks[arm])
            grid[0, column].set_title(arm_name(arm))
            grid[1, column].set_xlabel("optimiser step")
        grid[0, 0].set_ylabel(reward_label.replace(" (", "\n("))
        root_scale(grid[1, 0], "y", float(points["kl"].max()) * 1.1 + 1e-3)
        grid[1, 0].set_ylabel("KL to the SFT model\n(nats, square-root axis)")
        for column, arm in enumerate(arms if not has_variants(points) else []):
            # Only now: where labels collide depends on the scale that the whole row shares.
            for row, name in enumerate(names):
                _label_ends(grid[row, column], points[points["arm"] == arm], name, looks[arm][0])
        return figure


def _draw_training(
    axes: Axes, own: pd.DataFrame, start: pd.DataFrame, name: str, look: tuple[Any, str]
) -> None:
    """One quantity of one arm over steps, a line per setting and variant."""
    colour, marker = look
    groups = list(own.groupby(["setting", "variant"], dropna=False))
    for number, (_, path) in enumerate(groups):
        way = pd.concat([start, path.sort_values("step")])
        axes.errorbar(
            way["step"],
            way[name],
            yerr=way[f"{name}_margin"],
            color=colour,
            alpha=0.45 + 0.55 * (number + 1) / len(groups),
            marker=marker,
            ms=4.5,
            lw=1.3,
            elinewidth=0.9,
        )
    axes.set_xlim(-0.02 * own["step"].max(), own["step"].max() * 1.16)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _label_ends(axes: Axes, own: pd.DataFrame, name: str, colour: Any, gap: float = 0.065) -> None:
    """Write each line's setting at its end, at least `gap` of the axes' height apart."""
    ends = own[own["final"]].sort_values(name)
    to_axes = axes.transScale + axes.transLimits
    places = [to_axes.transform((row.step, getattr(row, name))) for row in ends.itertuples()]
    heights = [height for _, height in places]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + gap)
    for (across, _), height, row in zip(places, heights, ends.itertuples(), strict=True):
        text = "" if pd.isna(row.setting) else f"{row.setting:g}"
        where = {"transform": axes.transAxes, "va": "center", "fontsize": 8.5, "color": colour}
        axes.text(across + 0.02, height, text, **where)


def estimators(table: pd.DataFrame) -> Figure | None:
    """k1, k3 and rb of each trained policy, and k1 and k3 relative to rb: one meter or three?

    Bars are 95% intervals over prompts, on the right of the paired differences. None without
    trained policies.

    Args:
        table: see `objective.agreement`.
    """
    rows = table[table["arm"] != "sft"].reset_index(drop=True)
    if rows.empty:
        return None
    several = bool(table["seed"].nunique() > 1)
    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(12 if has_variants(table) else 8.4, 1.5 + 0.3 * len(rows))
        absolute, relative = figure.subplots(1, 2, sharey=True)
        where, ends, errors = np.arange(len(rows)), [0.0], []
        for name, (colour, marker, shift) in ESTIMATORS.items():
            style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5, "lw": 0}
            style |= {"elinewidth": 1.3, "capsize": 2}
            error = margin(rows[f"kl_{name}_se"], rows["n_prompts"])
            absolute.errorbar(rows[f"kl_{name}"], where + shift, xerr=error, label=name, **style)
            ends += [(rows[f"kl_{name}"] - error).min(), (rows[f"kl_{name}"] + error).max()]
            errors.append(error.max())
            if name != "rb":
                error = margin(rows[f"{name}_minus_rb_se"], rows["n_prompts"])
                relative.errorbar(rows[f"{name}_minus_rb"], where + shift, xerr=error, **style)
        names = [policy_name(row, several) for row in rows.to_dict("records")]
        absolute.set_yticks(where, names)
        absolute.set_ylim(len(rows) - 0.4, -0.6)
        _wide_scale(absolute, np.nanmin(ends), np.nanmax(ends), float(np.nanmax(errors)))
        relative.axvline(0, color="black", lw=1)
        relative.xaxis.set_major_locator(MaxNLocator(6))
        absolute.set_xlabel("KL estimate (nats)")
        relative.set_xlabel("difference to rb, paired by prompt (nats)")
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def _wide_scale(axes: Axes, low: float, high: float, linear: float) -> None:
    """An x-axis from `low` (0 or below) to `high`: linear up to `linear`, logarithmic beyond."""
    if high <= 5 * linear:
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        return
    axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
    axes.set_xlim(low - 0.2 * linear, high * 1.15)
    ticks = [0.0] + [t * 10.0**k for k in range(-4, 5) for t in (1, 2, 5) if linear < t * 10.0**k]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= high * 1.15]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
