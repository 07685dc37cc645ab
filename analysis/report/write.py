"""Everything a reader gets, remade from what is stored: tables, figures and one self-contained
page.

The same inputs give the same bytes: rows are sorted, numbers have a fixed format, and nothing
carries a timestamp. Only compute.csv (and what is made from it) holds timings.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from analysis.cost.compute import ratios
from analysis.figures import style
from analysis.formats import in_words_of, number, short
from analysis.report import drawing as figures
from analysis.report import findings, frontier_findings, notes, page, views
from analysis.report.frontier_hover import frontier_data
from analysis.report.page import MOST_HEADLINE
from analysis.report.tables import Made, make_tables, write_table
from analysis.studies.study import Study, load

TEMPLATES = Path(__file__).parent / "templates"


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
    made = make_tables(study)
    tables = made.tables
    for name, table in tables.items():
        write_table(table, study.folder / "tables", name)
    folder = study.folder / "figures"
    folder.mkdir(exist_ok=True)
    drawn = figures.draw(study, made)
    for name, figure in drawn.items():
        style.save(figure, folder, name)
    cost = tables["compute"]
    headline = findings.headline(
        made.measured, tables["objective"], tables["gains"], cost, study.catalogue
    )
    lead = frontier_findings.sentences(tables, made.policies)
    answer = findings.sentences(
        tables["comparison"],
        headline,
        ratios(cost),
        tables["kl_agreement"],
        tables["objective"],
        tables["training"],
        study.catalogue,
    )
    caveats = [*notes.caveats(study), *notes.gaps(tables, made.frontiers)]
    bullets = "".join(f"- {sentence}\n" for sentence in [*lead, *answer, *caveats])
    bullets = in_words_of(study.manifest, bullets)
    long = len(headline) > MOST_HEADLINE
    shown = (
        views.reached_grid(findings.reached(headline)) if long else views.headline_grid(headline)
    )
    (study.folder / "tables" / "headline.md").write_text(
        in_words_of(study.manifest, views.markdown(shown)) + f"\n{bullets}", encoding="utf-8"
    )
    path = study.folder / "report.html"
    told = {"lead": lead, "answer": answer, "caveats": caveats}
    path.write_text(render(study, made, headline, told, list(drawn)), encoding="utf-8")
    sentences = [
        in_words_of(study.manifest, frontier_findings.plainly(sentence))
        for sentence in [*lead, *answer]
    ]
    return {"headline": headline, "sentences": sentences, "caveats": caveats, "report": path}


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
        "seeds": ", ".join(str(s) for s in sorted({r["identity"]["seed"] for r in records})),
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
    made: Made,
    headline: pd.DataFrame,
    told: Mapping[str, Sequence[str]],
    drawn: Sequence[str],
) -> str:
    """report.html: one file that loads nothing, all text of models and manifests escaped.

    Args:
        told: lead, answer and caveats, in sentences.
        drawn: names of the figures.
    """
    tables = made.tables
    script = (TEMPLATES / "frontier.js").read_text(encoding="utf-8")
    page_text = template("report.html.j2").render(
        manifest=study.manifest,
        images=embedded(study.folder, drawn),
        provenance=provenance(study.manifest, study.records),
        files=[f"tables/{name}.csv, .tex" for name in tables]
        + [f"figures/{name}.png, .pdf" for name in drawn],
        hover=frontier_data(tables["frontier"], study.catalogue),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **told,
        **page.context(study, made, headline),
    )
    return in_words_of(study.manifest, page_text)


def template(name: str) -> jinja2.Template:
    """A page's template: all text is escaped, and a missing name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["emphasis"] = emphasis
    return environment.get_template(name)


def emphasis(text: str) -> Markup:
    """Text with what stands between two pairs of asterisks in bold; all else is escaped."""
    parts = text.split("**")
    if len(parts) % 2 == 0:  # a pair that is not closed is text
        return escape(text)
    marked = [
        Markup("<strong>{}</strong>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    ]
    return Markup("").join(marked)


def embedded(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The figures' PNG files in base64, by name."""
    return {
        name: base64.b64encode((folder / "figures" / f"{name}.png").read_bytes()).decode()
        for name in names
    }
