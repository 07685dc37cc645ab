"""A stored experiment, read back and checked: only policies judged by one meter are compared.

`load` reads the folder that an experiment leaves behind and refuses a mixture: evaluations with
different recipes, SFT models, gold rewards, corpora or prompts are not comparable, and a table that
silently put them side by side would be worth less than none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.formats import policy_name
from analysis.studies.catalogue import PROXY, Catalogue
from analysis.studies.footing import (
    check_catalogue,
    check_estimates,
    check_footing,
    check_policies,
    check_recipes,
    check_samples,
)
from analysis.studies.held_out import read_held_out
from analysis.studies.records import (
    dependencies,
    parquet,
    read_manifest,
    read_metrics,
    read_record,
    remedy,
    vouched,
)
from analysis.studies.temperature_footing import read_sweeps
from pipelines.evaluate.schema import JUDGEMENTS, conform
from pipelines.shared.errors import UserError


def no_judgements() -> pd.DataFrame:
    """JUDGEMENTS without rows."""
    return conform(pd.DataFrame(columns=list(JUDGEMENTS)), "judgements")


@dataclass(frozen=True)
class Study:
    """Everything analysis needs of one experiment.

    Attributes:
        folder: results/experiments/<name>-<scale>.
        manifest: manifest.json.
        records: record.json of each step, by full fingerprint.
        scores: the SCORES tables of all evaluations, one row per sample, with the columns arm,
            setting, seed, variant, run (first 8 hex digits of the evaluation's fingerprint) and
            stage (that made the policy).
        reference: the REFERENCE_SCORES table of the SFT model's samples.
        proxy_scores: PROXY_SCORES of each step that judged these samples, by full fingerprint;
            none where best-of-n-proxy is not an arm.
        metrics: rows of each step's metrics log, by full fingerprint; none where it has no log.
        samples: the SAMPLES table, or None where tables/samples.parquet is not there.
        temperatures: the sweeps of sampling temperatures (see `temperature_footing.read_sweeps`),
            or None where the study has none.
        held_out: what policies and rewards think of people's pairs (see `held_out.read_held_out`),
            or None where there are no such pairs.
        judgements: JUDGEMENTS of every judge in judgements/*.parquet; no rows where there is none.
    """

    folder: Path
    manifest: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Any]]
    scores: pd.DataFrame
    reference: pd.DataFrame
    proxy_scores: Mapping[str, pd.DataFrame]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    samples: pd.DataFrame | None
    temperatures: pd.DataFrame | None = None
    held_out: pd.DataFrame | None = None
    judgements: pd.DataFrame = field(default_factory=no_judgements)

    @property
    def reference_run(self) -> str:
        """First 8 hex digits of the reference samples' fingerprint."""
        return self.manifest["reference_samples"][:8]

    @cached_property
    def catalogue(self) -> Catalogue:
        """What each arm of the study is."""
        return Catalogue(self.manifest["catalogue"])

    def closure(self, fingerprint: str) -> list[str]:
        """See `records.dependencies`."""
        return dependencies(self.records, fingerprint)


def load(folder: Path) -> Study:
    """Read and check an experiment's folder.

    Raises:
        UserError: a file is missing, unreadable or not what its record vouches for, the records
            contradict the manifest or its catalogue, the evaluations do not share their recipe,
            version, assets, SFT model, gold reward, corpus and prompts, a policy stands on others
            of these or on other completions, policies of one seed and variant on other pairs or
            reward models, training did not sample alike, or a sweep of temperatures is not of a
            policy's evaluation.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_catalogue(folder, manifest)
    again = remedy(manifest)
    records = {step: read_record(folder, step, again) for step in manifest["steps"]}
    arms = manifest["arms"]
    named = [arm[key] for arm in arms for key in ("policy", "evaluation")]
    named += [estimate["step"] for estimate in manifest["estimates"]]
    for fingerprint in [*named, manifest["reference_samples"], manifest["gold"]]:
        if fingerprint not in records:
            raise UserError(
                f"{folder / 'manifest.json'} uses {fingerprint[:8]} but does not list it in "
                f"steps: {again}"
            )
    check_recipes(records)
    check_policies(folder, arms, records, Catalogue(manifest["catalogue"]))
    check_footing(arms, records, manifest["reference_samples"], manifest["estimates"])
    check_estimates(folder, manifest, records)
    reference = vouched(folder, records[manifest["reference_samples"]], "reference_scores", again)
    scores = pd.concat([_scores(folder, arm, records, again) for arm in arms], ignore_index=True)
    check_samples(scores, reference)
    judged = [row["step"] for row in manifest["estimates"] if row["arm"] == PROXY]
    samples = folder / "tables" / "samples.parquet"
    return Study(
        folder=folder,
        manifest=manifest,
        records=records,
        scores=scores,
        reference=reference,
        proxy_scores={
            step: _proxy_scores(folder, records[step], reference, manifest, again)
            for step in judged
        },
        metrics={step: read_metrics(folder, step) for step in records},
        samples=parquet(samples, "samples", again) if samples.is_file() else None,
        temperatures=read_sweeps(folder, manifest, records, reference, again),
        held_out=read_held_out(folder, manifest, records, again),
        judgements=_judgements(folder),
    )


def sft_run(study: Study, arm: Mapping[str, Any]) -> str | None:
    """The run of the SFT model that an arm's own reward model judged; None where there is none.

    Args:
        arm: a row of the manifest's arms.
    """

    def judge(evaluation: str) -> Any:
        return study.records[evaluation]["identity"]["upstream"].get("reward_model")

    found = [
        row["evaluation"][:8]
        for row in study.manifest["arms"]
        if row["arm"] == "sft"
        and row["seed"] == arm["seed"]
        and judge(row["evaluation"]) == judge(arm["evaluation"])
    ]
    return found[0] if found else None


def _judgements(folder: Path) -> pd.DataFrame:
    """What language models and people said, in the files of `judge` and `label`."""
    found = [
        parquet(path, "judgements", "judge or label again, or delete it")
        for path in sorted((folder / "judgements").glob("*.parquet"))
    ]
    return pd.concat(found, ignore_index=True) if found else no_judgements()


def _proxy_scores(
    folder: Path,
    record: Mapping[str, Any],
    reference: pd.DataFrame,
    manifest: Mapping[str, Any],
    again: str,
) -> pd.DataFrame:
    """A reward model's scores of the reference samples, one for each of them.

    Raises:
        UserError: they are of other samples.
    """
    scores = vouched(folder, record, "proxy_scores", again)
    keys = ["prompt_id", "sample"]
    wanted = pd.MultiIndex.from_frame(reference[keys])
    found = pd.MultiIndex.from_frame(scores[keys])
    stands_on = manifest["reference_samples"] in record["identity"]["upstream"].values()
    if not stands_on or found.has_duplicates or set(found) != set(wanted):
        raise UserError(
            f"runs/{record['fingerprint'][:8]}.parquet does not score each of the reference "
            f"samples {manifest['reference_samples'][:8]} once: {again}"
        )
    return scores


def _scores(
    folder: Path, arm: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], again: str
) -> pd.DataFrame:
    """The scores of one arm, with the columns that tell whose they are."""
    scores = vouched(folder, records[arm["evaluation"]], "scores", again)
    if scores.empty:
        raise UserError(
            f"the scores of {policy_name(arm, True)}, runs/{arm['evaluation'][:8]}.parquet, are "
            "empty"
        )
    return scores.assign(
        arm=pd.Series(arm["arm"], index=scores.index, dtype="string"),
        setting=float("nan") if arm["setting"] is None else float(arm["setting"]),
        seed=int(arm["seed"]),
        variant=pd.Series(arm["variant"], index=scores.index, dtype="string"),
        run=pd.Series(arm["evaluation"][:8], index=scores.index, dtype="string"),
        stage=pd.Series(records[arm["policy"]]["stage"], index=scores.index, dtype="string"),
    )
