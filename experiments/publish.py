"""From runs to an experiment's folder: everything that the analysis reads, and nothing else.

results/experiments/<name>/ can be committed without results/runs: it holds the manifest, each
step's record and metrics, the per-prompt scores (no text), and what analysis makes of them.
"""

import shutil
from pathlib import Path

import pandas as pd

from experiments.study import Run, Study
from pipelines.evaluate.schema import conform
from pipelines.shared.errors import UserError
from pipelines.shared.steps import RECORD, load_record, write_json


def collect(study: Study, results: Path) -> Path:
    """Copy records, metrics and scores of a finished study into its folder; return the folder.

    Raises:
        UserError: a step of it has not been run.
    """
    folder = study.folder(results)
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for step in study.steps():
        if load_record(step, results) is None:
            raise UserError(
                f"{study.folder_name}: step {step.stage} {step.label} has not been run; "
                f"use `rlhf-vs-dpo run {study.experiment.name} --scale {study.scale}` "
                "with the same options"
            )
        source, short = step.folder(results), step.fingerprint[:8]
        shutil.copyfile(source / RECORD, runs / f"{short}.json")
        shutil.copyfile(source / "metrics.jsonl", runs / f"{short}.metrics.jsonl")
    for step in (study.reference_samples, *(run.evaluation for run in study.runs)):
        shutil.copyfile(
            step.folder(results) / "scores.parquet", runs / f"{step.fingerprint[:8]}.parquet"
        )
    (folder / "tables").mkdir(exist_ok=True)
    _samples(study, results).to_parquet(folder / "tables" / "samples.parquet")
    write_json(folder / "manifest.json", study.manifest())
    return folder


def _samples(study: Study, results: Path) -> pd.DataFrame:
    """The text that every final policy wrote, by the contract's columns."""

    def of(run: Run) -> pd.DataFrame:
        table = pd.read_parquet(run.evaluation.folder(results) / "samples.parquet")
        return table.assign(run=run.evaluation.fingerprint[:8])

    return conform(pd.concat([of(run) for run in study.runs], ignore_index=True), "samples")
