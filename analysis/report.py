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

from analysis import findings, frontier_plot, plots, style, views
from analysis.compute import compute, ratios, typical
from analysis.formats import number, setting, short
from analysis.frontier import TRUSTED_ESS, frontier_table, points
from analysis.objective import agreement, compare, gain_per_prompt, gains, objective
from analysis.reward_model import proxy_quality
from analysis.study import Study, load
from pipelines.shared.errors import UserError

FLOAT = "%.10g"
PROMPTS = 6
COMPLETIONS = ["prompt_id", "prompt", "arm", "setting", "variant", "completion", "n_tokens"]
COMPLETIONS += ["reward_gold", "log_ratio"]
# The columns of each .tex, which is for print; the .csv has all. A variant that is "" throughout is
# left out.
PRINTED = {
    "frontier": "arm setting variant seed kl kl_se reward_gold reward_gold_se length",
    "compute": "arm setting variant seed stage seconds flops peak_memory_bytes",
    "objective": "arm setting variant seed objective gain gain_se closed_share ess",
    "gains": "arm setting variant gain ci_low ci_high seeds",
    "comparison": "setting arm_a variant_a arm_b variant_b difference ci_low ci_high higher",
    "kl_agreement": "arm setting variant seed kl_k1 kl_k3 kl_rb largest_z agree",
    "reward_model": "seed variant pairwise_accuracy pairwise_accuracy_se n_pairs pearson spearman",
    "sample_completions": "prompt arm setting variant completion reward_gold",
    "oracle": "arm labels beta seed closed_share reward kl reward_opt kl_opt",
    "estimators": "arm labels beta kl_estimator kl kl_mean z variance coverage samples_needed",
    "details": "detail change closed_share difference difference_low difference_high stopped",
}


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
    gain, cost, label = tables["gains"], tables["compute"], study.manifest["reward_label"]
    measured = points(study.scores)
    drawn = {
        "frontier": frontier_plot.frontier(measured, tables["frontier"], label),
        "objective": plots.objective(gain, tables["objective"]) if len(gain) else None,
        "cost": plots.cost(typical(cost)),
        "training": plots.training(measured, label),
        "estimators": plots.estimators(tables["kl_agreement"]),
    }
    folder = study.folder / "figures"
    folder.mkdir(exist_ok=True)
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    for name, figure in figures.items():
        style.save(figure, folder, name)
    headline = findings.headline(measured, tables["objective"], gain, cost)
    answer = findings.sentences(
        tables["comparison"], headline, ratios(cost), tables["kl_agreement"], tables["objective"]
    )
    bullets = "".join(f"- {sentence}\n" for sentence in [*answer, *findings.caveats(study)])
    (study.folder / "tables" / "headline.md").write_text(
        f"{views.markdown(views.headline_grid(headline))}\n{bullets}", encoding="utf-8"
    )
    page = study.folder / "report.html"
    page.write_text(
        render(study, tables, measured, headline, answer, list(figures)), encoding="utf-8"
    )
    return {
        "headline": headline,
        "sentences": answer,
        "caveats": findings.caveats(study),
        "report": page,
    }


def make_tables(study: Study) -> dict[str, pd.DataFrame]:
    """All tables of the study by file name."""
    completions = sample_completions(study)
    per_prompt = gain_per_prompt(study.scores, study.reference)
    return {
        "frontier": frontier_table(study),
        "compute": compute(study),
        "objective": objective(per_prompt, study.reference),
        "gains": gains(per_prompt),
        "comparison": compare(per_prompt, "ppo", "dpo"),
        "kl_agreement": agreement(study.scores),
        "reward_model": proxy_quality(study.scores),
        **({} if completions is None else {"sample_completions": completions}),
    }


def sample_completions(study: Study) -> pd.DataFrame | None:
    """What the final policies write, for the first prompts: sample 0 of the first seed.

    Without tables/samples.parquet (generated text is not in git) an earlier sample_completions.csv
    is used; None where that is missing too.

    Returns:
        prompt_id, prompt, arm, setting, variant, completion, n_tokens, reward_gold, log_ratio
        (logp - ref_logp in nats: this sample's own k1 contribution to the KL).
    """
    if study.samples is None:
        path = study.folder / "tables" / "sample_completions.csv"
        return _read_completions(path) if path.is_file() else None
    arms = pd.DataFrame(study.manifest["arms"])
    arms = arms[arms["seed"] == arms["seed"].min()].assign(setting=arms["setting"].astype(float))
    owners = arms.assign(run=arms["evaluation"].str[:8])[["run", "arm", "setting", "variant"]]
    samples = study.samples[study.samples["sample"] == study.samples["sample"].min()]
    table = samples.merge(owners, on="run", how="inner")
    table = table[table["prompt_id"].isin(sorted(table["prompt_id"].unique())[:PROMPTS])]
    table = table.assign(log_ratio=table["logp"] - table["ref_logp"], other=table["arm"] != "sft")
    order = ["prompt_id", "other", "arm", "setting", "variant"]
    return table.sort_values(order, ignore_index=True)[COMPLETIONS]


def _read_completions(path: Path) -> pd.DataFrame:
    """An earlier sample_completions.csv, its text as it is ("NA" and "" are text)."""
    words = {name: "string" for name in ("prompt_id", "prompt", "arm", "variant", "completion")}
    try:
        table = pd.read_csv(path, dtype=words, keep_default_na=False, na_values={"setting": [""]})
        return table[COMPLETIONS].astype(
            {"setting": float, "reward_gold": float, "log_ratio": float}
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): restore it from git, or run the experiment again"
        ) from None


def write_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write <name>.csv, and <name>.tex with the columns for print (booktabs, 3 significant digits).

    frontier.tex has the final policies with the Rao-Blackwellised KL, best-of-n and no curve.
    """
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False, float_format=FLOAT, lineterminator="\n")
    printed = table
    if name == "frontier":
        printed = table[table["final"] & table["kl_estimator"].isin(["rb", "analytic"])]
    printed = printed[PRINTED[name].split()]
    empty = [c for c in printed if c.startswith("variant") and (printed[c] == "").all()]
    printed = printed.drop(columns=empty)
    if "setting" in printed:
        printed = printed.assign(setting=printed["setting"].map(setting))
    text = (
        printed.style.hide(axis="index")
        .format(_tex_number)
        .format_index(_tex_text, axis=1)
        .to_latex(hrules=True)
    )
    (folder / f"{name}.tex").write_text(text, encoding="utf-8")


def _tex_number(value: Any) -> str:
    """A table cell for LaTeX; "--" where it is missing."""
    if value is None or pd.isna(value):
        return "--"
    if isinstance(value, float):
        value = number(value)
    return _tex_text(value)


def _tex_text(value: Any) -> str:
    """Text with LaTeX's special characters escaped."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "\u2212": "$-$",
        "\u2013": "--",
        "\u221e": r"$\infty$",
    }
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(character, character) for character in " ".join(str(value).split()))


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
    images = embedded(study.folder, figures)
    shape = study.scores.groupby("run")[["prompt_id", "sample"]].nunique().iloc[0].to_dict()
    reference = int(study.reference["sample"].nunique())
    return template("report.html.j2").render(
        manifest=study.manifest,
        images=images,
        answer=answer,
        caveats=findings.caveats(study),
        errors_note=findings.errors_note(headline),
        sft_note=findings.sft_note(headline, tables["objective"], shape["sample"], reference),
        seconds_note=findings.seconds_note(study),
        gold=findings.gold_quality(study.metrics[study.manifest["gold"]]),
        reward_models=_reward_model_logs(study),
        headline=views.headline_grid(headline),
        objective=views.objective_grid(tables["objective"]),
        comparison=views.comparison_grid(tables["comparison"]),
        listed=findings.LISTED,
        costs=views.cost_grid(ratios(tables["compute"])),
        agreement=views.agreement_grid(tables["kl_agreement"]),
        proxy=views.proxy_grid(tables["reward_model"]),
        completions=views.completion_groups(tables.get("sample_completions")),
        provenance=provenance(study.manifest, study.records),
        trusted_ess=f"{TRUSTED_ESS:g}",
        has_optimum=bool((tables["frontier"]["arm"] == "optimum").any()),
        has_possible=bool(tables["objective"]["objective_optimum"].notna().any()),
        seeds=len({arm["seed"] for arm in study.manifest["arms"]}),
        has_snapshots=not measured["final"].all(),
        has_variants=frontier_plot.has_variants(measured),
        shape=shape,
        split=study.records[study.manifest["reference_samples"]]["identity"]["recipe"][
            "evaluation"
        ]["split"],
        reference=reference,
        temperature=f"{study.reference['temperature'].iloc[0]:g}",
        files=[f"tables/{name}.csv, .tex" for name in tables]
        + [f"figures/{name}.png, .pdf" for name in figures],
    )


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
