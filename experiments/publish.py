"""From runs to an experiment's folder: everything that the analysis reads, and nothing else.

results/experiments/<name>/ can be committed without results/runs: it holds the manifest, each
step's record and metrics, the tables of scores (no text), and what analysis makes of them.
"""

import json
import shutil
from pathlib import Path

from experiments.study import Study
from pipelines.shared.errors import UserError
from pipelines.shared.steps import load_record, write_json


def collect(study: Study, results: Path) -> Path:
    """Copy records, metrics and scores of a finished study into its folder; return the folder.

    Raises:
        UserError: a step of it has not been run.
    """
    folder = study.folder(results)
    records = []
    for step in study.steps():
        record = load_record(step, results)
        if record is None:
            raise UserError(
                f"{study.folder_name}: step {step.stage} {step.label} has not been run; "
                f"use `rlhf-vs-dpo run {study.experiment.name} --scale {study.scale}` "
                "with the same options"
            )
        records.append((step, record))
    runs = folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # an earlier recipe's; copied again from results/runs
    runs.mkdir(parents=True)
    for step, record in records:
        short = step.fingerprint[:8]
        write_json(runs / f"{short}.json", {**record, "command": portable(record["command"])})
        shutil.copyfile(step.folder(results) / "metrics.jsonl", runs / f"{short}.metrics.jsonl")
    for step, name in study.kept():
        shutil.copyfile(
            step.folder(results) / name, runs / f"{step.fingerprint[:8]}.{name.rpartition('.')[2]}"
        )
    study.collect_text(results, folder)
    write_json(folder / "manifest.json", study.manifest())
    return folder


def portable(command: list[str]) -> list[str]:
    """A command line without the folders of its machine: absolute paths keep their last part."""
    return [f".../{Path(word).name}" if Path(word).is_absolute() else word for word in command]


def published_steps(folder: Path) -> list[str]:
    """Fingerprints of the steps that a published study was made from."""
    return json.loads((folder / "manifest.json").read_text())["steps"]
