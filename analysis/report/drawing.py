"""All figures of a study, by the names of their files."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.cost.compute import typical
from analysis.figures import (
    cost_plot,
    diagnostics_plot,
    dominance_plot,
    families_plot,
    frontier_plot,
    held_out_plot,
    objective_plot,
    overoptimisation_plot,
    pair_logs_plot,
    plots,
    style,
    temperature_plot,
    training_plot,
    tuning_plot,
    win_rate_plot,
)
from analysis.formats import MINUS, in_words_of
from analysis.judging.contests import GOLD
from analysis.report.tables import Made
from analysis.studies.study import Study

MOST_POLICIES = 26  # rows of a win-rate matrix


def draw(study: Study, made: Made) -> dict[str, Figure]:
    """The figures by name; those with nothing to show are left out."""
    drawn = {name: figure for name, figure in _all(study, made) if figure is not None}
    for figure in drawn.values():
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            text.set_text(in_words_of(study.manifest, text.get_text()))
    return drawn


def _all(study: Study, made: Made) -> Iterator[tuple[str, Figure | None]]:
    tables, catalogue = made.tables, study.catalogue
    label = study.manifest["reward_label"]
    yield "attainable", dominance_plot.attainable_figure(made.frontiers, label, catalogue)
    yield (
        "frontier",
        families_plot.families(made.measured, tables["frontier"], label, catalogue)
        if many_arms(study)
        else frontier_plot.frontier(made.measured, tables["frontier"], label),
    )
    yield "dominance", dominance_plot.dominance_figure(tables["dominance"], catalogue)
    for judge in judges(tables["win_rates"]):
        yield (
            matrix_name(judge),
            win_rate_plot.matrix(tables["win_rates"], made.policies, judge)
            if len(made.policies) <= MOST_POLICIES
            else None,
        )
    yield "win_rates_kl", win_rate_plot.against_kl(tables["win_rates"], made.measured, catalogue)
    yield (
        "overoptimisation",
        overoptimisation_plot.overoptimisation(made.places, tables["overoptimisation"], catalogue),
    )
    yield "objective", objective_plot.objective(tables["gains"], tables["objective"], catalogue)
    yield "cost", plots.cost(typical(tables["compute"]), catalogue)
    if "compute_curves" in tables:
        yield "compute_curves", cost_plot.compute_curves(tables["compute_curves"], catalogue)
    if "expected_best" in tables:
        # A search's trials all aim at one J (see `tables.make_tables`).
        aimed = [row for row in study.manifest["arms"] if row["arm"] in catalogue.aimed]
        score = f"J = gold reward {MINUS} {aimed[0]['setting']:g} KL"
        yield "tuning", tuning_plot.tuning(tables["expected_best"], score)
    if "temperatures" in tables:
        yield (
            "temperatures",
            temperature_plot.temperatures(tables["temperatures"], label, catalogue),
        )
    if "held_out_accuracy" in tables:
        yield "held_out", held_out_plot.held_out(tables["held_out_accuracy"])
    yield "training", training_plot.training(made.measured, label, catalogue)
    yield "estimators", plots.estimators(tables["kl_agreement"])
    varied = tables.get("diversity")
    yield "drift", diagnostics_plot.drift_figure(tables["drift"], varied, catalogue)
    yield (
        "reliability",
        diagnostics_plot.reliability_figure(
            tables["reliability"], tables["pair_accuracy"], tables["drift"], catalogue
        ),
    )
    yield "pair_logs", pair_logs_plot.pair_log_figure(tables["pair_logs"], catalogue)


def judges(win_rates: pd.DataFrame) -> list[str]:
    """Who judged, the gold reward first."""
    return sorted(win_rates["judge"].dropna().unique(), key=lambda judge: (judge != GOLD, judge))


def matrix_name(judge: str) -> str:
    """The file name of a judge's matrix: its letters and digits."""
    safe = "".join(character if character.isalnum() else "_" for character in judge)
    return f"win_rates_{safe}"


def many_arms(study: Study) -> bool:
    """True where there are more trained arms than one pair of axes can show."""
    return len({arm["arm"] for arm in study.manifest["arms"]} - {"sft"}) > style.FEW
