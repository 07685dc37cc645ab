"""The figures: DataFrame -> Figure. No pyplot, so no global state and no window.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every arm has its own marker
too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.compute import PREFERENCE_DATA, TOTALS
from analysis.formats import MINUS, arm_name, policy_name, short
from analysis.frontier import TRUSTED_ESS
from analysis.statistics import margin

OKABE_ITO = matplotlib.color_sequences["okabe_ito"]
STYLES = {
    "sft": (OKABE_ITO[0], "*"),
    "dpo": (OKABE_ITO[5], "o"),
    "ppo": (OKABE_ITO[6], "s"),
    "optimum": (OKABE_ITO[3], ""),
    "best-of-n": (OKABE_ITO[7], "|"),
}
SPARE = [(OKABE_ITO[colour], mark) for mark in "^DvPX<>" for colour in (1, 2, 3, 7)]
# A method's own stage has the arm's colour; what arms share is grey.
STAGE_COLOURS = {
    "corpus": "#cccccc",
    "sft": "#8a8a8a",
    "reward-model": OKABE_ITO[1],
    "ppo": OKABE_ITO[6],
    "dpo": OKABE_ITO[5],
    "reference-logprobs": OKABE_ITO[2],  # DPO's own cost
    "completions": OKABE_ITO[7],
    "gold": OKABE_ITO[4],
    "pairs": OKABE_ITO[3],
}
SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text, as journals ask
    "svg.fonttype": "none",
}
# Colour, marker and place in its row of each KL estimator.
ESTIMATORS = {
    "k1": (OKABE_ITO[1], "v", -0.22),
    "k3": (OKABE_ITO[2], "D", 0.0),
    "rb": (OKABE_ITO[0], "o", 0.22),
}
KL_LABEL = "KL to the SFT model (nats per completion)"
HALO = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}


def styles(arms: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """(colour, marker) of each arm: fixed for the well-known, by order of name for others."""
    others = iter(SPARE)
    return {arm: STYLES.get(arm) or next(others) for arm in sorted(set(arms), key=str)}


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write <name>.png (200 dpi) and <name>.pdf without timestamps: same data, same bytes."""
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None})


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _root_scale(axes: Axes, side: str, highest: float) -> None:
    """A square-root axis from just below 0: KL spans decades, and reward grows about as its root.

    Args:
        side: "x" or "y".
        highest: upper end, in nats.
    """
    roots = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * np.square(x))
    getattr(axes, f"set_{side}scale")("function", functions=roots)
    # A margin on the left of 2.5% of the axis, which is its square in nats.
    getattr(axes, f"set_{side}lim")(-((0.025) ** 2) * highest, highest)
    ticks = [0.0]
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 50, 100, 200, 500, 1000):
        if tick <= highest and np.sqrt(tick / highest) - np.sqrt(ticks[-1] / highest) > 0.055:
            ticks.append(tick)
    axis = getattr(axes, f"{side}axis")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def frontier(points: pd.DataFrame, table: pd.DataFrame, reward_label: str) -> Figure:
    """Gold reward against KL: every policy, its way there, and the best that is possible.

    Left: everything, on a square-root KL axis. Right: the region of small KL, linear, where the
    optimum can be estimated. Bars and band are 95% intervals.

    Args:
        points: see `frontier.points`.
        table: FRONTIER, for the optimum and best-of-n.
    """
    curves = table[table["kl_estimator"].isin(["importance", "analytic"])]
    with matplotlib.rc_context(SETTINGS):
        figure = _figure(11, 5.2)
        wide, near = figure.subplots(1, 2, width_ratios=[1.15, 1])
        last = points[points["final"]]
        limit = _near_limit(last, curves)
        for axes, low, high in ((wide, limit, np.inf), (near, -1.0, limit)):
            _draw_curves(axes, curves)
            draw_policies(axes, points, annotate=(low, high))
            axes.set_xlabel(KL_LABEL)
        _root_scale(wide, "x", max(float(last["kl"].max()) * 1.2, limit))
        near.set_xlim(-0.025 * limit, limit)
        inside = pd.concat([points, curves])
        inside = inside.loc[inside["kl"] <= limit, "reward_gold"]
        spread = (inside.max() - inside.min()) or 1.0
        near.set_ylim(inside.min() - 0.12 * spread, inside.max() + 0.12 * spread)
        _label_curves(near, curves, limit)
        wide.set_ylabel(reward_label)
        wide.set_title("All policies, square-root KL axis")
        near.set_title(f"Close-up of KL below {limit:.2g} nats, linear axis")
        _legend(figure, points, curves)
        return figure


def has_variants(table: pd.DataFrame) -> bool:
    """True where an arm's policies differ in more than the coefficient and the seed."""
    return bool((table["variant"] != "").any())


def _near_limit(last: pd.DataFrame, curves: pd.DataFrame) -> float:
    """Right edge of the close-up: where the optimum's curve ends, else the median policy."""
    curve, policies = curves.loc[curves["arm"] == "optimum", "kl"], last["kl"]
    edge = float(curve.max()) if len(curve) else float(policies.median())
    # Policies just beyond the curve's end belong to the close-up too.
    close = policies[policies <= 1.6 * edge]
    return max(1.12 * max(edge, float(close.max()) if len(close) else 0.0), 1e-3)


def draw_policies(
    axes: Axes, points: pd.DataFrame, annotate: tuple[float, float] = (-1.0, np.inf)
) -> None:
    """Draw snapshots and final policies; write the setting at points with KL in `annotate`.

    Variants of one setting lie too close for labels: with variants there are none.

    Args:
        points: see `frontier.points`.
    """
    last = points[points["final"]]
    start = last[last["arm"] == "sft"]
    for arm, (colour, marker) in styles(last["arm"].unique()).items():
        for _, path in points[points["arm"] == arm].groupby(["setting", "variant"]):
            way = pd.concat([start, path.sort_values("step")])
            style = {"color": colour, "alpha": 0.28, "lw": 0.9, "marker": ".", "ms": 4}
            axes.plot(way["kl"], way["reward_gold"], zorder=2, **style)
        for _, ends in last[last["arm"] == arm].groupby("variant"):
            ends = ends.sort_values("setting")
            axes.errorbar(
                ends["kl"],
                ends["reward_gold"],
                xerr=ends["kl_margin"],
                yerr=ends["reward_gold_margin"],
                color=colour,
                marker=marker,
                ms=11 if arm == "sft" else 6.5,
                lw=1.5,
                elinewidth=1.0,
                capsize=2,
                zorder=4,
                mec="white",
                mew=0.7,
            )
            for row in ends.itertuples():
                labelled = arm == "sft" or not has_variants(last)
                if labelled and annotate[0] < row.kl <= annotate[1]:
                    _label_point(axes, row, colour)


def _label_point(axes: Axes, row: Any, colour: Any) -> None:
    """The arm's setting below and right of its point; the SFT model's name."""
    note = axes.annotate(
        "SFT" if pd.isna(row.setting) else f"{row.setting:g}",
        (row.kl, row.reward_gold),
        xytext=(7, -11) if row.arm != "sft" else (9, -10),
        textcoords="offset points",
        fontsize=8.5,
        color=colour,
        bbox=HALO,
        zorder=6,
    )
    note.set_in_layout(False)


def _draw_curves(axes: Axes, rows: pd.DataFrame) -> None:
    """The estimated optimum with its 95% band over prompts, and best-of-n."""
    best = rows[(rows["arm"] == "optimum") & (rows["ess"] >= TRUSTED_ESS)].sort_values("kl")
    colour = STYLES["optimum"][0]
    axes.plot(best["kl"], best["reward_gold"], color=colour, lw=2, zorder=3)
    half = margin(best["reward_gold_se"], best["n_prompts"])
    axes.fill_between(
        best["kl"],
        best["reward_gold"] - half,
        best["reward_gold"] + half,
        color=colour,
        alpha=0.15,
        lw=0,
    )
    chosen = rows[rows["arm"] == "best-of-n"].sort_values("kl")
    colour, marker = STYLES["best-of-n"]
    axes.plot(
        chosen["kl"],
        chosen["reward_gold"],
        color=colour,
        lw=1.3,
        ls="--",
        marker=marker,
        ms=7,
        zorder=3,
    )


def _label_curves(axes: Axes, rows: pd.DataFrame, limit: float) -> None:
    """Names on the curves: the optimum above its end, best-of-n below its middle."""
    best = rows[(rows["arm"] == "optimum") & (rows["ess"] >= TRUSTED_ESS)].sort_values("kl")
    style: dict[str, Any] = {
        "textcoords": "offset points",
        "fontsize": 9,
        "bbox": HALO,
        "zorder": 5,
    }
    if len(best):
        end = best.iloc[-1]
        note = axes.annotate(
            f"estimated optimum (ends where ESS < {TRUSTED_ESS:g})",
            (end["kl"], end["reward_gold"]),
            xytext=(0, 12),
            ha="right",
            color=STYLES["optimum"][0],
            **style,
        )
        note.set_in_layout(False)
    chosen = rows[(rows["arm"] == "best-of-n") & (rows["kl"] <= 0.75 * limit)].sort_values("kl")
    if len(chosen):
        last = chosen.iloc[-1]
        note = axes.annotate(
            f"best of {last['setting']:g}",
            (last["kl"], last["reward_gold"]),
            xytext=(4, -13),
            color=STYLES["best-of-n"][0],
            **style,
        )
        note.set_in_layout(False)


def _legend(figure: Figure, points: pd.DataFrame, rows: pd.DataFrame) -> None:
    """One legend below both panels; numbers at the points are explained in it."""
    handles = []
    numbers = "" if has_variants(points) else " (number: its KL coefficient)"
    for arm, (colour, marker) in styles(points["arm"].unique()).items():
        size, width, label = 6.5, 1.5, f"{arm_name(arm)}{numbers}"
        if arm == "sft":
            size, width, label = 11, 0, arm_name(arm)
        look: dict[str, Any] = {"marker": marker, "ms": size, "mec": "white", "lw": width}
        handles.append(Line2D([], [], color=colour, label=label, **look))
    if (rows["arm"] == "optimum").any():
        label = f"estimated optimum (ESS ≥ {TRUSTED_ESS:g})"
        handles.append(Line2D([], [], color=STYLES["optimum"][0], lw=2, label=label))
    if (rows["arm"] == "best-of-n").any():
        colour, marker = STYLES["best-of-n"]
        largest = int(rows.loc[rows["arm"] == "best-of-n", "setting"].max())
        label = f"best of n by gold reward, n = 1, 2, 4 … {largest}"
        handles.append(Line2D([], [], color=colour, marker=marker, ms=7, ls="--", label=label))
    if not points["final"].all():
        handles.append(Line2D([], [], color="#999999", marker=".", lw=0.9, label="during training"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)


def objective(gains: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Gain in J over SFT at each coefficient, and what the optimum would gain.

    Args:
        gains: see `objective.gains`.
        table: OBJECTIVE, for the optimum's gain and its effective sample size.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = _figure(7.4, 4.2)
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
        figure = _figure(9.6, 1.5 + 0.42 * len(arms))
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
        figure = _figure(1.2 + 3.9 * len(arms), 5.6)
        grid = figure.subplots(2, len(arms), sharex="col", sharey="row", squeeze=False)
        for column, arm in enumerate(arms):
            own = points[points["arm"] == arm]
            for row, name in enumerate(names):
                _draw_training(grid[row, column], own, start, name, looks[arm])
            grid[0, column].set_title(arm_name(arm))
            grid[1, column].set_xlabel("optimiser step")
        grid[0, 0].set_ylabel(reward_label.replace(" (", "\n("))
        _root_scale(grid[1, 0], "y", float(points["kl"].max()) * 1.1 + 1e-3)
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
        figure = _figure(12 if has_variants(table) else 8.4, 1.5 + 0.3 * len(rows))
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
