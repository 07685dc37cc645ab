"""rlhf-vs-dpo export: what a finished study made, in the formats that other tools read.

- pairs/LABEL.jsonl: prompt, chosen, rejected as text, TRL's explicit preference format;
- pairs/LABEL.parquet: the same with the exact token ids, which tokenizing text again would change;
- frontier.parquet and samples.parquet: the tables of that name, by their columns' types;
- policies.csv: where each policy's checkpoint lies, a plain Transformers folder.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from experiments import registry
from experiments.comparison import ComparisonStudy
from pipelines.evaluate.schema import TABLES, conform
from pipelines.shared.errors import UserError
from pipelines.shared.files import replace
from pipelines.shared.steps import load_record

TEXT = ["prompt", "chosen", "rejected"]
UNNAMED = ("chosen_sample", "rejected_sample")  # of no meaning outside the study


def run(options: argparse.Namespace, console: Console) -> int:
    """Write everything below options.out.

    Raises:
        UserError: the study compares no language models or is not finished, or it cannot be
            written there.
    """
    study = registry.chosen(options)
    if not isinstance(study, ComparisonStudy):
        raise UserError(f"experiment {study.experiment.name} has no pairs of text to export")
    results, out = options.results, options.out
    steps = {step.fingerprint: step for step in study.steps()}
    missing = [step for step in steps.values() if load_record(step, results) is None]
    folder = study.folder(results)
    tables = [folder / "tables" / name for name in ("frontier.csv", "samples.parquet")]
    if missing or not all(path.is_file() for path in tables):
        raise UserError(
            f"{study.folder_name} is not finished below {results}: run it first "
            f"(`rlhf-vs-dpo run {study.experiment.name} --scale {study.scale}`)"
        )
    try:
        (out / "pairs").mkdir(parents=True, exist_ok=True)
        for step in (step for step in steps.values() if step.stage == "pairs"):
            name = f"{step.label}-{step.fingerprint[:8]}"
            pairs = pd.read_parquet(step.folder(results) / "pairs.parquet")
            _write_pairs(pairs, out / "pairs" / name)
            console.print(f"{len(pairs):,} pairs: {escape(str(out / 'pairs' / name))}.jsonl")
        frontier = _typed(pd.read_csv(tables[0]), "frontier")
        replace(out / "frontier.parquet", frontier.to_parquet)
        samples = pd.read_parquet(tables[1])
        replace(out / "samples.parquet", samples.to_parquet)
        policies = _policies(study, results)
        replace(out / "policies.csv", lambda path: policies.to_csv(path, index=False))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    console.print(
        f"{len(frontier):,} points, {len(samples):,} samples, {len(policies)} policies: "
        f"{escape(str(out))}"
    )
    return 0


def _write_pairs(pairs: pd.DataFrame, path: Path) -> None:
    """As text and with token ids."""
    replace(
        path.with_name(f"{path.name}.jsonl"),
        lambda file: pairs[TEXT].to_json(file, orient="records", lines=True, force_ascii=False),
    )
    whole = pairs.drop(columns=[name for name in UNNAMED if name in pairs])
    replace(path.with_name(f"{path.name}.parquet"), whole.to_parquet)


def _typed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table that was read from CSV, by the contract's types."""
    text: Any = {column: "string" for column, kind in TABLES[name].items() if kind == "string"}
    return conform(table.astype(text), name)


def _policies(study: ComparisonStudy, results: Path) -> pd.DataFrame:
    """Each trained policy and its folder."""
    return pd.DataFrame(
        [
            {
                "arm": run.arm,
                "setting": run.setting,
                "seed": run.seed,
                "variant": run.variant,
                "run": run.evaluation.fingerprint[:8],
                "checkpoint": str(run.policy.folder(results) / "checkpoint"),
            }
            for run in study.runs
        ]
    )
