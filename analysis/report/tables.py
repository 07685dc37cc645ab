"""The tables of a study: all of them by name, and how they are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.claims.estimands import Evidence
from analysis.claims.verdicts import claims
from analysis.cost import compute_curves
from analysis.cost.compute import compute, networks
from analysis.cost.matched_compute import matched, reward_gains, reward_per_compute
from analysis.cost.tuning import tuning_curves
from analysis.cost.tuning_trials import trials
from analysis.diagnostics.calibration import calibration, reliability
from analysis.diagnostics.diversity import diversity
from analysis.diagnostics.drift import drift
from analysis.diagnostics.pair_logs import pair_changes, pair_logs
from analysis.diagnostics.reward_model import pair_accuracy, proxy_quality
from analysis.diagnostics.training import training_objectives
from analysis.formats import number, options, setting
from analysis.frontiers.dominance import Frontiers, dominance, frontier_summary, frontiers
from analysis.frontiers.frontier import frontier_table, points
from analysis.frontiers.objective import agreement, compare, gain_per_prompt, gains, objective
from analysis.judging import annotators, temperatures
from analysis.judging.held_out import held_out_accuracy
from analysis.judging.judged import reward_verdicts
from analysis.judging.ranking import ranking
from analysis.judging.representatives import representatives
from analysis.judging.win_rates import contests, win_rates
from analysis.overoptimisation import points as overoptimisation_points
from analysis.overoptimisation.fits import overoptimisation
from analysis.studies.study import Study
from pipelines.shared.errors import UserError

FLOAT = "%.10g"
SEED = 0  # of every bootstrap
MOST = 16  # trials whose best is told
PROMPTS = 6
COMPLETIONS = ["prompt_id", "prompt", "arm", "setting", "variant", "completion", "n_tokens"]
COMPLETIONS += ["reward_gold", "log_ratio"]
# The columns of each .tex, which is for print; the .csv has all. A variant that is "" throughout is
# left out.
PRINTED: dict[str, str | None] = {
    "frontier": "arm setting variant seed kl kl_se reward_gold reward_gold_se length",
    "compute": "arm setting variant seed stage seconds flops networks model_state_bytes",
    "objective": "arm setting variant seed objective gain gain_se closed_share ess",
    "gains": "arm setting variant gain ci_low ci_high seeds",
    "comparison": "setting arm_a variant_a arm_b variant_b difference ci_low ci_high higher",
    "kl_agreement": "arm setting variant seed kl_k1 kl_k3 kl_rb largest_z agree",
    "training": "arm setting variant seed objective start end change_se improved",
    "reward_model": "seed variant pairwise_accuracy pairwise_accuracy_se n_pairs pearson spearman",
    "frontier_summary": "arm variant kl_budget reward ci_low ci_high regret dominated_area",
    "dominance": "arm_a variant_a arm_b variant_b axis kl_common difference ci_low ci_high p",
    "win_rates": "arm_a setting_a arm_b setting_b judge win_rate ci_low ci_high length_controlled",
    "ranking": "judge arm setting variant strength ci_low ci_high",
    "judges": None,
    "overoptimisation": "arm variant reward form alpha beta r2 heldout_error",
    "networks": None,
    "reward_per_compute": None,
    "compute_curves": None,
    "at_budget": "coefficient budget arm setting variant share gain ci_low ci_high",
    "compute_comparison": "coefficient budget arm_a arm_b difference ci_low ci_high higher",
    "pair_logs": "arm setting variant seed step source chosen_change rejected_change margin",
    "pair_changes": "arm setting variant chosen_change chosen_low chosen_high rejected_change",
    "pair_accuracy": "judge arm setting variant accuracy ci_low ci_high change",
    "reliability": "seed variant bin_low bin_high predicted actual ci_low ci_high pairs",
    "calibration": "arm setting variant seed calibration_error excess slope slope_low slope_high",
    "drift": "arm setting variant step kl quantity mean ci_low ci_high change",
    "diversity": "arm setting variant quantity mean ci_low ci_high change",
    "expected_best": None,
    "trials": None,
    "held_out_accuracy": "judge arm setting variant accuracy ci_low ci_high pairs prompts",
    "temperatures": "arm setting variant temperature opponent judge win_rate ci_low ci_high kl",
    "claims": "claim source said measured ci_low ci_high verdict",
    "sample_completions": "prompt arm setting variant completion reward_gold",
    "oracle": "arm labels beta seed closed_share reward kl reward_opt kl_opt",
    "estimators": "arm labels beta kl_estimator kl kl_mean z variance coverage samples_needed",
    "details": "detail change closed_share difference difference_low difference_high stopped",
}


@dataclass(frozen=True)
class Made:
    """A study's tables by file name, and what figures and claims need besides.

    Attributes:
        measured: see `frontier.points`.
        policies: one of each arm at similar KL, see `representatives`.
        places: what over-optimisation is fitted to, see `overoptimisation_points.table`.
    """

    tables: Mapping[str, pd.DataFrame]
    measured: pd.DataFrame
    policies: pd.DataFrame
    places: pd.DataFrame
    frontiers: Frontiers


def make_tables(study: Study) -> Made:
    """All tables of the study. Every bootstrap starts from one seed: the same study, the same
    bytes."""
    per_prompt = gain_per_prompt(study.scores, study.reference, study.catalogue.aimed)
    measured = points(study.scores)
    tables = {
        "frontier": frontier_table(study),
        "compute": compute(study),
        "objective": objective(per_prompt, study.reference),
        "gains": gains(per_prompt),
        "comparison": compare(per_prompt, "ppo", "dpo"),
        "training": training_objectives(study),
        "kl_agreement": agreement(study.scores),
        "reward_model": proxy_quality(study.scores),
    }
    found = frontiers(study, _generator())
    tables |= {"frontier_summary": frontier_summary(found), "dominance": dominance(found)}
    policies = representatives(measured, study.catalogue)
    tables |= _compared(study, policies)
    fitted = overoptimisation_points.curves(study)
    tables["overoptimisation"] = overoptimisation(fitted, _generator())
    tables |= _cost(study, tables["compute"])
    tables |= _diagnostics(study)
    if (completions := sample_completions(study)) is not None:
        tables["sample_completions"] = completions
    searched, heats = _search(study), None
    if searched is not None:
        tables["expected_best"] = tuning_curves(searched, range(1, MOST + 1), _generator())
        tables["trials"] = searched
    if study.temperatures is not None:
        heats = temperatures.win_rates(study)
        tables["temperatures"] = temperatures.temperatures(heats)
    if study.held_out is not None and len(study.held_out):
        tables["held_out_accuracy"] = held_out_accuracy(study.held_out)
    declared = searched if study.manifest.get("trials") else None
    if study.manifest.get("papers", True):
        evidence = Evidence(study, tables, found, policies, declared, heats, SEED)
        tables["claims"] = claims(evidence)
    return Made(tables, measured, policies, overoptimisation_points.table(fitted), found)


def _generator() -> np.random.Generator:
    return np.random.default_rng(SEED)


def _compared(study: Study, policies: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Who wins against whom, by each judge, and whether judges agree."""
    met = contests(study, policies, study.judgements)
    tables = {"win_rates": win_rates(met), "ranking": ranking(met, policies)}
    if len(study.judgements):
        everyone = pd.concat([study.judgements, reward_verdicts(study, study.judgements)])
        tables["judges"] = annotators.agreement(annotators.verdicts_of(everyone), _generator())
    return tables


def _cost(study: Study, cost: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What a reward costs, and what a budget of compute buys."""
    reward = reward_gains(study.scores, study.reference)
    along = matched(study, cost, reward)
    shown = compute_curves.coefficients(along, study.catalogue)
    tables = {
        "networks": networks(study),
        "reward_per_compute": reward_per_compute(reward, along),
    }
    curves = [compute_curves.curves(reward, along, study.catalogue, c) for c in shown]
    if curves:
        whole = pd.concat(curves, ignore_index=True)
        budgets = compute_curves.budgets(whole)
        at = [compute_curves.gains_at(reward, along, study.catalogue, c, budgets) for c in shown]
        spent = pd.concat(at, ignore_index=True)
        tables |= {
            "compute_curves": whole,
            "at_budget": compute_curves.at_budget(spent),
            "compute_comparison": compute_curves.compare(spent, "ppo", "dpo"),
        }
    return tables


def _diagnostics(study: Study) -> dict[str, pd.DataFrame]:
    """What training did beside the reward."""
    logs, varied = pair_logs(study), diversity(study)
    return {
        "pair_logs": logs,
        "pair_changes": pair_changes(logs),
        "pair_accuracy": pair_accuracy(study),
        "reliability": reliability(study),
        "calibration": calibration(study),
        "drift": drift(study.scores),
        **({} if varied is None else {"diversity": _as_written(varied)}),
    }


def _as_written(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its floats as a .csv has them: figures are the same from either."""
    floats = table.select_dtypes("float64")
    rounded = {
        name: column.map(lambda value: float(FLOAT % value)) for name, column in floats.items()
    }
    return table.assign(**rounded)


def _search(study: Study) -> pd.DataFrame | None:
    """The trials of a search: variants of each arm's settings, all aimed at one J; None else."""
    arms = pd.DataFrame(study.manifest["arms"])
    aimed = arms[arms["arm"].isin(list(study.catalogue.aimed))]
    variants = aimed.groupby("arm")["variant"].nunique()
    named = {name for variant in aimed["variant"] for name in options(variant)}
    if aimed["setting"].nunique() != 1 or variants.empty or variants.min() < 2:
        return None
    if any(name.startswith("labels.") for name in named):
        return None  # an ablation of the data, not of a method's settings
    return trials(study, float(aimed["setting"].iloc[0]))


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

    frontier.tex has the final policies with the Rao-Blackwellised KL, best-of-n with the measured
    one, and no curve.
    """
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False, float_format=FLOAT, lineterminator="\n")
    printed = table
    if name == "frontier":
        printed = table[table["final"] & table["kl_estimator"].isin(["rb", "measured"])]
    wanted = PRINTED[name]
    printed = printed if wanted is None else printed[wanted.split()]
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
