"""The tables of a study: all of them by name, and how they are written."""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.compute import compute
from analysis.formats import number, setting
from analysis.frontier import frontier_table
from analysis.objective import agreement, compare, gain_per_prompt, gains, objective
from analysis.reward_model import proxy_quality
from analysis.study import Study
from analysis.training import training_objectives
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
    "training": "arm setting variant seed objective start end change_se improved",
    "reward_model": "seed variant pairwise_accuracy pairwise_accuracy_se n_pairs pearson spearman",
    "sample_completions": "prompt arm setting variant completion reward_gold",
    "oracle": "arm labels beta seed closed_share reward kl reward_opt kl_opt",
    "estimators": "arm labels beta kl_estimator kl kl_mean z variance coverage samples_needed",
    "details": "detail change closed_share difference difference_low difference_high stopped",
}


def make_tables(study: Study) -> dict[str, pd.DataFrame]:
    """All tables of the study by file name."""
    completions = sample_completions(study)
    per_prompt = gain_per_prompt(study.scores, study.reference, study.catalogue.aimed)
    return {
        "frontier": frontier_table(study),
        "compute": compute(study),
        "objective": objective(per_prompt, study.reference),
        "gains": gains(per_prompt),
        "comparison": compare(per_prompt, "ppo", "dpo"),
        "training": training_objectives(study),
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

    frontier.tex has the final policies with the Rao-Blackwellised KL, best-of-n with the measured
    one, and no curve.
    """
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False, float_format=FLOAT, lineterminator="\n")
    printed = table
    if name == "frontier":
        printed = table[table["final"] & table["kl_estimator"].isin(["rb", "measured"])]
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
