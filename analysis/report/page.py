"""What the report's template is given besides figures and provenance: tables, words, facts."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.cost.compute import ratios
from analysis.figures import frontier_plot, objective_plot, plots
from analysis.formats import number
from analysis.frontiers.frontier import TRUSTED_ESS
from analysis.report import detail_views, evidence_views, findings, notes, views
from analysis.report import drawing as figures
from analysis.report.samples_view import side_by_side
from analysis.report.tables import Made
from analysis.studies.catalogue import BEST_OF_N
from analysis.studies.study import Study

MOST_HEADLINE = 24  # rows of the headline table; a longer one is folded behind a short one


def context(study: Study, made: Made, headline: pd.DataFrame) -> dict[str, Any]:
    """All names that report.html.j2 uses for the study's tables, notes and facts.

    Args:
        headline: see `findings.headline`.
    """
    return {
        **_facts(study, made.tables, made.measured),
        **_notes(study, made.tables, headline),
        **_grids(study, made.tables, headline),
        **_evidence(made),
    }


def _evidence(made: Made) -> dict[str, Any]:
    """The page's tables of frontiers, win rates, costs, diagnostics and claims, and the samples."""
    tables = made.tables
    claims = tables.get("claims")
    views_of = {
        "summary": (evidence_views.summary_grid, "frontier_summary"),
        "dominance": (evidence_views.dominance_grid, "dominance"),
        "win_rates": (evidence_views.win_rate_grid, "win_rates"),
        "ranking": (evidence_views.ranking_grid, "ranking"),
        "judges": (evidence_views.judges_grid, "judges"),
        "fits": (evidence_views.fit_grid, "overoptimisation"),
        "reward_cost": (detail_views.reward_cost_grid, "reward_per_compute"),
        "budgets": (detail_views.budget_grid, "at_budget"),
        "budget_comparison": (detail_views.budget_comparison_grid, "compute_comparison"),
        "networks": (detail_views.networks_grid, "networks"),
        "expected": (detail_views.expected_grid, "expected_best"),
        "heats": (detail_views.temperature_grid, "temperatures"),
        "held_out": (evidence_views.held_out_grid, "held_out_accuracy"),
        "changes": (detail_views.change_grid, "pair_changes"),
        "accuracy": (detail_views.accuracy_grid, "pair_accuracy"),
        "calibration": (detail_views.calibration_grid, "calibration"),
    }
    found = {
        name: view(tables[table]) if table in tables and len(tables[table]) else None
        for name, (view, table) in views_of.items()
    }
    return {
        **found,
        "drifts": detail_views.drift_grid(tables["drift"], tables.get("diversity")),
        "claims": evidence_views.claim_rows(claims) if claims is not None else [],
        "verdicts": {}
        if claims is None
        else claims["verdict"].value_counts().sort_index().to_dict(),
        "matrices": [
            (judge, figures.matrix_name(judge)) for judge in figures.judges(tables["win_rates"])
        ],
        "beside": side_by_side(tables.get("sample_completions"), made.policies),
        "target_kl": number(made.policies["target_kl"].iloc[0]) if len(made.policies) else "",
    }


def _grids(
    study: Study, tables: Mapping[str, pd.DataFrame], headline: pd.DataFrame
) -> dict[str, Any]:
    """The page's tables."""
    used = {row["arm"] for part in ("arms", "estimates") for row in study.manifest[part]}
    return {
        "headline": views.headline_grid(headline),
        "reached": views.reached_grid(findings.reached(headline)),
        "catalogue": views.catalogue_grid(study.catalogue, used),
        "objective": views.objective_grid(tables["objective"]),
        "comparison": views.comparison_grid(tables["comparison"]),
        "best_of_n": views.best_of_n_grid(tables["frontier"]),
        "training": views.training_grid(tables["training"]),
        "costs": views.cost_grid(ratios(tables["compute"])),
        "agreement": views.agreement_grid(tables["kl_agreement"]),
        "proxy": views.proxy_grid(tables["reward_model"]),
        "completions": views.completion_groups(tables.get("sample_completions")),
    }


def _notes(
    study: Study, tables: Mapping[str, pd.DataFrame], headline: pd.DataFrame
) -> dict[str, Any]:
    """The page's computed sentences."""
    shape, reference = _shape(study), int(study.reference["sample"].nunique())
    return {
        "errors_note": notes.errors_note(headline),
        "sft_note": notes.sft_note(headline, tables["objective"], shape["sample"], reference),
        "seconds_note": notes.seconds_note(study),
        "footing_note": notes.footing_note(study),
        "objective_note": notes.objective_note(study.catalogue, headline),
        "bound_note": notes.bound_note(tables["frontier"]),
        "shared_error_note": notes.shared_error_note(study),
        "training_answer": findings.trained(tables["training"]),
        "gold": notes.gold_quality(study.metrics[study.manifest["gold"]]),
        "left_out_rows": notes.left_out_rows(study),
        "reward_models": _reward_model_logs(study),
    }


def _facts(
    study: Study, tables: Mapping[str, pd.DataFrame], measured: pd.DataFrame
) -> dict[str, Any]:
    """What the page's captions depend on."""
    recipe = study.records[study.manifest["reference_samples"]]["identity"]["recipe"]
    frontier = tables["frontier"]
    return {
        "shape": _shape(study),
        "split": recipe["evaluation"]["split"],
        "reference": int(study.reference["sample"].nunique()),
        "temperature": f"{study.reference['temperature'].iloc[0]:g}",
        "seeds": len({arm["seed"] for arm in study.manifest["arms"]}),
        "listed": findings.LISTED,
        "trusted_ess": f"{TRUSTED_ESS:g}",
        "most_headline": MOST_HEADLINE,
        "many_arms": figures.many_arms(study),
        "has_optimum": bool((frontier["arm"] == "optimum").any()),
        "left_out": ", ".join(f"{c:g}" for c in objective_plot.left_out(tables["gains"])),
        "has_possible": bool(tables["objective"]["objective_optimum"].notna().any()),
        "has_best_of_n": bool(frontier["arm"].isin(BEST_OF_N).any()),
        "has_snapshots": not measured["final"].all(),
        "has_variants": frontier_plot.has_variants(measured),
        "unseen_policies": max(
            int((tables["kl_agreement"]["arm"] != "sft").sum()) - plots.MOST_ROWS, 0
        ),
        "most_rows": plots.MOST_ROWS,
    }


def _shape(study: Study) -> dict[str, int]:
    """Prompts and samples of each evaluation."""
    return study.scores.groupby("run")[["prompt_id", "sample"]].nunique().iloc[0].to_dict()


def _reward_model_logs(study: Study) -> list[str]:
    """The last line of each reward model's training log."""
    found = []
    for step in study.manifest["steps"]:
        if study.records[step]["stage"] == "reward-model" and study.metrics[step]:
            last = study.metrics[step][-1]
            values = ", ".join(f"{key} {views.plain(value)}" for key, value in last.items())
            found.append(f"{study.records[step]['label']}: {values}")
    return found
