"""The report's tables of what decides: claims, frontiers, win rates, over-optimisation."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from analysis.claims.verdicts import figures
from analysis.formats import (
    MINUS,
    MISSING,
    arm_name,
    fixed,
    number,
    ordered_by,
    percent,
    policy_name,
    setting,
)
from analysis.report.views import Column, field, grid, policy_columns

Row = Mapping[str, Any]


def interval(
    name: str, low: str = "ci_low", high: str = "ci_high", form: Callable[[Any], str] = fixed
) -> Callable[[Row], str]:
    """A cell "1.52 [1.42, 1.62]"; without the brackets where there is no interval."""

    def cell(row: Row) -> str:
        if pd.isna(row[name]):
            return MISSING
        if pd.isna(row[low]):
            return form(row[name])
        return f"{form(row[name])} [{form(row[low])}, {form(row[high])}]"

    return cell


def claim_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """Each claim's words for the page.

    Args:
        table: CLAIMS.
    """
    return [
        {
            **{key: row[key] for key in ("name", "claim", "source", "said", "verdict", "basis")},
            "measured": figures(row),
            "unit": row["unit"],
            "threshold": f"{'above' if row['larger'] else 'below'} {number(row['threshold'])}",
            "smallest": number(row["smallest"]),
            "detectable": number(row["detectable"]),
            "weak": "yes" if row["verdict"] == "undecided" and _weak(row) else "",
            "deviation": row["deviation"] or "",
            "seeds": str(row["seeds"]),
        }
        for row in table.to_dict("records")
    ]


def _weak(row: Row) -> bool:
    """Undecided because the study cannot see the smallest effect of interest."""
    return bool(row["detectable"] > row["smallest"])


def summary_grid(table: pd.DataFrame) -> dict[str, Any]:
    """FRONTIER_SUMMARY: reward and regret at each budget, and what the arm reaches."""
    columns: list[Column] = [
        *policy_columns(table.drop(columns="seeds", errors="ignore")),
        ("KL budget, nats", field("kl_budget", setting), True),
        ("attainable gold reward [95%]", interval("reward"), True),
        (
            "regret to the optimum [95%]",
            interval("regret", "regret_ci_low", "regret_ci_high"),
            True,
        ),
        ("reaches, nats", field("kl_reached", number), True),
        (
            "dominated area, reward \u00d7 nats [95%]",
            interval("dominated_area", "dominated_area_low", "dominated_area_high"),
            True,
        ),
    ]
    return grid(table, columns)


def dominance_grid(table: pd.DataFrame) -> dict[str, Any]:
    """DOMINANCE, a row for each pair and axis."""
    axes = {"kl": "KL", "root_kl": "root of KL"}
    columns: list[Column] = [
        ("compared", lambda row: versus(row, "a", "b"), False),
        ("mean over", field("axis", lambda axis: axes[axis]), False),
        ("up to, nats", field("kl_common", number), True),
        ("difference in reward [95%]", interval("difference"), True),
        ("probability that the first is higher", field("p", _chance), True),
        ("higher", higher, False),
    ]
    return grid(table, columns)


def versus(row: Row, first: str, second: str) -> str:
    """The two sides of a comparison, as a difference."""
    names = (
        f"{arm_name(row[f'arm_{side}'])} {row[f'variant_{side}'] or ''}".strip()
        for side in (first, second)
    )
    return f" {MINUS} ".join(names)


def higher(row: Row) -> str:
    """The arm that a comparison found to be higher."""
    return "not measured" if pd.isna(row["higher"]) else arm_name(row["higher"])


def _chance(p: float) -> str:
    if pd.isna(p):
        return MISSING
    return "> 99.9%" if p > 0.999 else "< 0.1%" if p < 0.001 else f"{p:.1%}"


def win_rate_grid(table: pd.DataFrame) -> dict[str, Any]:
    """WIN_RATES, a row for each pair and judge."""

    def side(letter: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            variant = row[f"variant_{letter}"]
            parts = {"arm": row[f"arm_{letter}"], "setting": row[f"setting_{letter}"]}
            return policy_name({**parts, "variant": "" if pd.isna(variant) else variant})

        return cell

    judged = table["judge"].isin(["gold", "reward-model"])
    columns: list[Column] = [
        ("policy", side("a"), False),
        ("against", side("b"), False),
        ("judge", field("judge"), False),
        ("wins", field("wins", lambda value: f"{value:,.0f}"), True),
        ("ties", field("ties", lambda value: f"{value:,.0f}"), True),
        ("losses", field("losses", lambda value: f"{value:,.0f}"), True),
        ("win rate [95%]", interval("win_rate", form=share_of), True),
        ("at equal lengths", field("length_controlled", share_of), True),
    ]
    if not judged.all():
        columns += [
            ("both orders agree", field("both_orders_agree", percent), True),
            ("inconsistent", field("inconsistent"), True),
            ("unparsable", field("unparsable"), True),
        ]
    return grid(table, columns)


def share_of(value: float) -> str:
    """A share in per cent, to a tenth."""
    return MISSING if pd.isna(value) else f"{value:.1%}"


def ranking_grid(table: pd.DataFrame) -> dict[str, Any]:
    """RANKING, the strongest first, judge by judge."""
    columns: list[Column] = [
        ("judge", field("judge"), False),
        *policy_columns(table.drop(columns="seeds")),
        ("strength, log-odds [95%]", interval("strength"), True),
        (
            "win rate against SFT [95%]",
            interval("win_rate_sft", "win_rate_sft_low", "win_rate_sft_high", share_of),
            True,
        ),
        ("strength 0 is", field("anchor", arm_name), False),
        ("opponents", field("opponents"), True),
    ]
    return grid(table, columns)


def judges_grid(table: pd.DataFrame) -> dict[str, Any]:
    """AGREEMENT between judges."""
    every = "all together"
    columns: list[Column] = [
        ("measure", field("measure"), False),
        ("judge", field("annotator_a", lambda name: every if pd.isna(name) else name), False),
        ("and judge", field("annotator_b", lambda name: "" if pd.isna(name) else name), False),
        ("value [95%]", interval("value"), True),
        ("items", field("items"), True),
        ("verdicts", field("verdicts"), True),
    ]
    return grid(table, columns)


def fit_grid(table: pd.DataFrame) -> dict[str, Any]:
    """OVEROPTIMISATION, two rows for each arm and reward."""
    laws = {"bon": f"d(\u03b1 {MINUS} \u03b2 d)", "rl": f"d(\u03b1 {MINUS} \u03b2 log d)"}

    def held(row: Row) -> str:
        return interval("heldout_error", "heldout_low", "heldout_high")(row)

    columns: list[Column] = [
        *policy_columns(table.drop(columns="seeds")),
        ("reward", field("reward"), False),
        ("law, d = √KL", field("form", lambda form: laws[form]), False),
        ("\u03b1 [95%]", interval("alpha", "alpha_low", "alpha_high"), True),
        ("β [95%]", interval("beta", "beta_low", "beta_high"), True),
        ("R²", field("r2", number), True),
        ("held-out error [95%]", held, True),
        ("note", field("note", lambda text: "" if pd.isna(text) else text), False),
    ]
    return grid(table, columns)


def held_out_grid(table: pd.DataFrame) -> dict[str, Any]:
    """HELD_OUT_ACCURACY, policies first."""
    columns: list[Column] = [
        ("ordered by", ordered_by, False),
        ("as people did [95%]", interval("accuracy", form=share_of), True),
        *((name, field(name, "{:,}".format), True) for name in ("pairs", "prompts", "seeds")),
    ]
    return grid(table, columns)
