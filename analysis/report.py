"""Everything a reader gets, remade from what is stored: tables, figures and one self-contained
page.

The same inputs give the same bytes: rows are sorted, numbers have a fixed format, and nothing
carries a timestamp. Only compute.csv (and what is made from it) holds timings.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from analysis import (
    families_plot,
    findings,
    frontier_plot,
    notes,
    objective_plot,
    plots,
    style,
    training_plot,
    views,
)
from analysis.catalogue import BEST_OF_N
from analysis.compute import ratios, typical
from analysis.formats import number, short
from analysis.frontier import TRUSTED_ESS, points
from analysis.study import Study, load
from analysis.tables import make_tables, write_table

MOST_HEADLINE = 24  # rows of the headline table; a longer one is folded behind a short one


def write_report(study_folder: Path) -> dict[str, Any]:
    """Write tables/*.csv and .tex, figures/*.png and .pdf and report.html into an experiment's
    folder.

    Args:
        study_folder: results/experiments/<name>-<scale>, with manifest.json, runs/ and, if there is
            one, tables/samples.parquet.

    Returns:
        headline: DataFrame, one row per final policy (see `findings.headline`); sentences: the
        computed answer; caveats: what limits it; report: path of report.html.

    Raises:
        UserError: the folder is incomplete, contradicts itself or mixes what cannot be compared
            (see `study.load`).
    """
    study = load(study_folder)
    tables = make_tables(study)
    for name, table in tables.items():
        write_table(table, study.folder / "tables", name)
    measured = points(study.scores)
    folder = study.folder / "figures"
    folder.mkdir(exist_ok=True)
    figures = draw(study, tables, measured)
    for name, figure in figures.items():
        style.save(figure, folder, name)
    cost = tables["compute"]
    headline = findings.headline(
        measured, tables["objective"], tables["gains"], cost, study.catalogue
    )
    answer = findings.sentences(
        tables["comparison"],
        headline,
        ratios(cost),
        tables["kl_agreement"],
        tables["objective"],
        tables["training"],
        study.catalogue,
    )
    caveats = notes.caveats(study)
    bullets = "".join(f"- {sentence}\n" for sentence in [*answer, *caveats])
    long = len(headline) > MOST_HEADLINE
    shown = (
        views.reached_grid(findings.reached(headline)) if long else views.headline_grid(headline)
    )
    (study.folder / "tables" / "headline.md").write_text(
        f"{views.markdown(shown)}\n{bullets}", encoding="utf-8"
    )
    page = study.folder / "report.html"
    page.write_text(
        render(study, tables, measured, headline, answer, list(figures)), encoding="utf-8"
    )
    return {"headline": headline, "sentences": answer, "caveats": caveats, "report": page}


def draw(
    study: Study, tables: Mapping[str, pd.DataFrame], measured: pd.DataFrame
) -> dict[str, Figure]:
    """The figures by name; those with nothing to show are left out.

    Args:
        measured: see `frontier.points`.
    """
    label, catalogue = study.manifest["reward_label"], study.catalogue
    drawn = {
        "frontier": families_plot.families(measured, tables["frontier"], label, catalogue)
        if many_arms(study)
        else frontier_plot.frontier(measured, tables["frontier"], label),
        "objective": objective_plot.objective(tables["gains"], tables["objective"], catalogue),
        "cost": plots.cost(typical(tables["compute"]), catalogue),
        "training": training_plot.training(measured, label, catalogue),
        "estimators": plots.estimators(tables["kl_agreement"]),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def many_arms(study: Study) -> bool:
    """True where there are more trained arms than one pair of axes can show."""
    return len({arm["arm"] for arm in study.manifest["arms"]} - {"sft"}) > style.FEW


def provenance(
    manifest: Mapping[str, Any], by_step: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What was run: the distinct commits, commands, machines and versions, and every step."""
    records = [by_step[step] for step in manifest["steps"]]
    steps = [
        {
            "stage": record["stage"],
            "label": record["label"],
            "run": record["fingerprint"][:8],
            "seed": record["identity"]["seed"],
            "seconds": number(record["cost"]["seconds"]),
            "flops": short(record["cost"]["flops"]),
        }
        for record in records
    ]
    versions = sorted({f"{k} {v}" for record in records for k, v in record["versions"].items()})
    changed = {record["uncommitted"] for record in records if record["uncommitted"]}
    return {
        "steps": steps,
        "seconds": number(sum(record["cost"]["seconds"] for record in records), 4),
        "flops": short(sum(record["cost"]["flops"] for record in records)),
        "commits": sorted({record["commit"] or "outside a checkout" for record in records}),
        "uncommitted": sorted(changed),
        "commands": sorted({" ".join(record["command"]) for record in records}),
        "versions": versions,
        "hardware": sorted(
            {
                "{processor}, {cores} cores, {system}".format(**record["hardware"])
                for record in records
            }
        ),
    }


def render(
    study: Study,
    tables: Mapping[str, pd.DataFrame],
    measured: pd.DataFrame,
    headline: pd.DataFrame,
    answer: Sequence[str],
    figures: Sequence[str],
) -> str:
    """report.html: one file that loads nothing, all text of models and manifests escaped."""
    return template("report.html.j2").render(
        manifest=study.manifest,
        images=embedded(study.folder, figures),
        answer=answer,
        caveats=notes.caveats(study),
        provenance=provenance(study.manifest, study.records),
        files=[f"tables/{name}.csv, .tex" for name in tables]
        + [f"figures/{name}.png, .pdf" for name in figures],
        **_facts(study, tables, measured),
        **_notes(study, tables, headline),
        **_grids(study, tables, headline),
    )


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
        "many_arms": many_arms(study),
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


def template(name: str) -> jinja2.Template:
    """A page's template: all text is escaped, and a missing name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def embedded(folder: Path, figures: Sequence[str]) -> dict[str, str]:
    """The figures' PNG files in base64, by name."""
    return {
        name: base64.b64encode((folder / "figures" / f"{name}.png").read_bytes()).decode()
        for name in figures
    }


def _reward_model_logs(study: Study) -> list[str]:
    """The last line of each reward model's training log."""
    found = []
    for step in study.manifest["steps"]:
        if study.records[step]["stage"] == "reward-model" and study.metrics[step]:
            last = study.metrics[step][-1]
            values = ", ".join(f"{key} {views.plain(value)}" for key, value in last.items())
            found.append(f"{study.records[step]['label']}: {values}")
    return found
