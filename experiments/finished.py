"""The study that a command's options name, as it was left behind: the texts that judges read."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.studies import study as stored
from analysis.studies.records import parquet, remedy
from experiments import registry
from experiments.comparison import CHOSEN_TEXTS, ComparisonStudy
from pipelines.shared.errors import UserError
from pipelines.shared.steps import Step, load_record


def chosen_comparison(options: argparse.Namespace) -> ComparisonStudy:
    """The comparison that experiment, --scale, --arms, --seeds and --set choose.

    Raises:
        UserError: one of them is unknown, or the experiment compares no texts.
    """
    resolved = registry.chosen(options)
    if not isinstance(resolved, ComparisonStudy):
        raise UserError(f"experiment {options.experiment} writes no text that could be judged")
    return resolved


def with_texts(study: ComparisonStudy, results: Path) -> stored.Study:
    """What it left behind, the samples' texts included.

    Raises:
        UserError: it is not there or not whole, or has no texts.
    """
    found = stored.load(study.folder(results))
    if found.samples is None:
        raise UserError(
            f"{found.folder / 'tables' / 'samples.parquet'} is missing: texts are not kept in git; "
            f"run `rlhf-vs-dpo run {study.experiment.name} --scale {study.scale}` with the same "
            "options"
        )
    return dataclasses.replace(found, samples=texts(found.folder, found.manifest))


def texts(folder: Path, manifest: Mapping[str, Any]) -> pd.DataFrame | None:
    """SAMPLES of a study's policies and of its chosen completions, where they are there.

    Raises:
        UserError: a file is there and cannot be read.
    """
    tables = folder / "tables"
    files = [tables / "samples.parquet", tables / CHOSEN_TEXTS]
    parts = [parquet(file, "samples", remedy(manifest)) for file in files if file.is_file()]
    return pd.concat(parts, ignore_index=True) if parts else None


def completions_step(study: ComparisonStudy) -> Step:
    """The step that sampled the preference prompts.

    Raises:
        UserError: there is none, or more than one.
    """
    steps = [step for step in study.steps() if step.stage == "completions"]
    if len(steps) != 1:
        raise UserError(
            f"{study.folder_name} has {len(steps)} sets of completions; training pairs are drawn "
            "from one: choose arms that train on pairs, and one value of each --set"
        )
    return steps[0]


def step_table(study: ComparisonStudy, step: Step, results: Path) -> pd.DataFrame:
    """What a step of the study wrote, `<stage>.parquet`.

    Raises:
        UserError: it has not been run here.
    """
    if load_record(step, results) is None:
        raise UserError(
            f"step {step.stage} {step.label} has not been run here; use `rlhf-vs-dpo run "
            f"{study.experiment.name} --scale {study.scale}` with the same options"
        )
    return pd.read_parquet(step.folder(results) / f"{step.stage}.parquet")
