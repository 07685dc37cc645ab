"""A stored experiment, read back and checked: only policies judged by one meter are compared.

`load` reads the folder that an experiment leaves behind and refuses a mixture: evaluations with
different recipes, SFT models, gold rewards, corpora or prompts are not comparable, and a table that
silently put them side by side would be worth less than none.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.formats import policy_name, some
from pipelines.evaluate.schema import conform
from pipelines.shared.errors import UserError
from pipelines.shared.steps import digest

ARM_FIELDS = ("arm", "setting", "seed", "variant", "policy", "evaluation")
MANIFEST_FIELDS = (
    "experiment",
    "scale",
    "title",
    "question",
    "reward_label",
    "deviations",
    "tuning",
    "assets",
    "arms",
    "reference_samples",
    "gold",
    "steps",
)
SHARED_UPSTREAM = ("sft", "gold", "corpus")
REFERENCE = "the reference samples"


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
        metrics: rows of each step's metrics log, by full fingerprint; none where it has no log.
        samples: the SAMPLES table, or None where tables/samples.parquet is not there.
    """

    folder: Path
    manifest: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Any]]
    scores: pd.DataFrame
    reference: pd.DataFrame
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    samples: pd.DataFrame | None

    @property
    def reference_run(self) -> str:
        """First 8 hex digits of the reference samples' fingerprint."""
        return self.manifest["reference_samples"][:8]


def load(folder: Path) -> Study:
    """Read and check an experiment's folder.

    Raises:
        UserError: a file is missing, unreadable or not what its record vouches for, the records
            contradict the manifest, or the evaluations do not share their recipe, version, assets,
            SFT model, gold reward, corpus and prompts, or a policy does not stand on that SFT
            model.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    again = remedy(manifest)
    records = {step: read_record(folder, step, again) for step in manifest["steps"]}
    arms = manifest["arms"]
    named = [arm[key] for arm in arms for key in ("policy", "evaluation")]
    for fingerprint in [*named, manifest["reference_samples"], manifest["gold"]]:
        if fingerprint not in records:
            raise UserError(
                f"{folder / 'manifest.json'} uses {fingerprint[:8]} but does not list it in "
                f"steps: {again}"
            )
    _check_policies(folder, arms, records)
    check_footing(arms, records, manifest["reference_samples"])
    reference = vouched(folder, records[manifest["reference_samples"]], "reference_scores", again)
    scores = pd.concat([_scores(folder, arm, records, again) for arm in arms], ignore_index=True)
    _check_samples(scores, reference)
    samples = folder / "tables" / "samples.parquet"
    return Study(
        folder=folder,
        manifest=manifest,
        records=records,
        scores=scores,
        reference=reference,
        metrics={step: read_metrics(folder, step) for step in records},
        samples=_parquet(samples, "samples", again) if samples.is_file() else None,
    )


def dependencies(records: Mapping[str, Mapping[str, Any]], fingerprint: str) -> list[str]:
    """Fingerprints of a step and all it stands on, each once, dependencies first.

    Raises:
        UserError: the record of a step that it stands on is not there.
    """
    found: dict[str, None] = {}

    def visit(step: str, by: str) -> None:
        if step not in records:
            raise UserError(
                f"step {step[:8]}, which {by[:8]} stands on, is not in manifest.json's steps"
            )
        for upstream in records[step]["identity"]["upstream"].values():
            if upstream not in found:
                visit(upstream, step)
        found[step] = None

    visit(fingerprint, fingerprint)
    return list(found)


def check_footing(
    arms: Sequence[Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]], reference: str
) -> None:
    """Refuse evaluations that differ in what must be equal for a comparison to mean anything.

    Args:
        arms: of the manifest.
        records: by full fingerprint.
        reference: fingerprint of the reference samples, held to the same as the evaluations.

    Reward models may differ: they are a part of an arm, and judge nothing.

    Raises:
        UserError: names the first field that differs and the arms on each side, or the policy that
            does not stand on the SFT model that all are measured against.
    """
    judged = {policy_name(arm, True): records[arm["evaluation"]]["identity"] for arm in arms}
    stated = {name: _footing(name, identity) for name, identity in judged.items()}
    _check_equal({**stated, REFERENCE: _footing(REFERENCE, records[reference]["identity"])})
    # The reference samples are made by another stage, with a version of its own.
    _check_equal(
        {name: {key: made[key] for key in ("version", "assets")} for name, made in judged.items()}
    )
    shared = records[reference]["identity"]["upstream"]["sft"]
    for arm in arms:
        if shared not in dependencies(records, arm["policy"]):
            raise UserError(
                f"arms do not stand on equal footing: the policy of {policy_name(arm, True)} does "
                f"not come from the SFT model {shared[:8]} that its KL is measured against"
            )


def _check_equal(stated: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a field that not all of the named have, with an equal value."""
    for field in dict.fromkeys(field for values in stated.values() for field in values):
        sides: dict[str, list[str]] = {}
        for name, values in stated.items():
            sides.setdefault(str(values.get(field, "missing")), []).append(name)
        if len(sides) > 1:
            said = "; ".join(f"{value} in {some(names, 3)}" for value, names in sides.items())
            raise UserError(
                f"arms do not stand on equal footing, {field} differs: {said}. "
                "Evaluate all of them with one recipe"
            )


def _footing(name: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal in all evaluations, by field: the recipe and the shared steps."""
    recipe, upstream = identity["recipe"], identity["upstream"]
    absent = [key for key in ("evaluation",) if key not in recipe]
    absent += [key for key in SHARED_UPSTREAM if key not in upstream]
    if absent:
        raise UserError(f"the record of {name} names no {', '.join(absent)}: evaluate it again")
    fields = {
        f"{part}.{key}": value for part, values in recipe.items() for key, value in values.items()
    }
    return {**fields, **{f"upstream {key}": upstream[key][:8] for key in SHARED_UPSTREAM}}


def remedy(manifest: Mapping[str, Any]) -> str:
    """What to do about a missing or broken file."""
    return (
        "restore it from git, or run "
        f"`rlhf-vs-dpo run {manifest['experiment']} --scale {manifest['scale']}` again"
    )


def read_manifest(folder: Path, fields: Sequence[str] = MANIFEST_FIELDS) -> dict[str, Any]:
    """manifest.json with every field that analysis reads."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: run the experiment first, or check the folder's name")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): run the experiment again") from None
    missing = [key for key in fields if key not in manifest]
    missing += [
        f"arms[{row}].{key}"
        for row, arm in enumerate(manifest.get("arms", []))
        for key in (ARM_FIELDS if fields is MANIFEST_FIELDS else ())
        if key not in arm
    ]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: run the experiment again")
    if not manifest["arms"]:
        raise UserError(f"{path} has no arms: run the experiment with at least one")
    return manifest


def read_record(folder: Path, fingerprint: str, again: str) -> dict[str, Any]:
    """The record of one step, which must be what its fingerprint says."""
    path = folder / "runs" / f"{fingerprint[:8]}.json"
    if not path.is_file():
        raise UserError(f"{path}, named by manifest.json, is missing: {again}")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {again}") from None
    if record.get("fingerprint") != fingerprint:
        raise UserError(
            f"{path} is the record of {str(record.get('fingerprint'))[:16]}, but manifest.json "
            f"names {fingerprint[:16]}: {again}"
        )
    try:
        real = digest(record["identity"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no identity to check ({error!r}): {again}") from None
    if real != fingerprint:
        raise UserError(f"{path} was changed: its identity has the digest {real[:16]}: {again}")
    return record


def _parquet(path: Path, name: str, again: str) -> pd.DataFrame:
    """A parquet file that fits the contract `name`."""
    if not path.is_file():
        raise UserError(f"{path}, named by manifest.json, is missing: {again}")
    try:
        return conform(pd.read_parquet(path), name)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a {name} table ({error}): {again}") from None


def vouched(
    folder: Path,
    record: Mapping[str, Any],
    name: str,
    again: str,
    made_as: str = "scores.parquet",
) -> pd.DataFrame:
    """The table that a step made: the very file that its record vouches for."""
    path = folder / "runs" / f"{record['fingerprint'][:8]}.parquet"
    made = record.get("tables", {}).get(made_as)
    if made is None:
        raise UserError(f"{path.with_suffix('.json')} vouches for no {made_as}: {again}")
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != made:
        raise UserError(
            f"{path} is not the file that {path.with_suffix('.json').name} vouches for: {again}"
        )
    return _parquet(path, name, again)


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


def read_metrics(folder: Path, fingerprint: str) -> list[dict[str, Any]]:
    """Rows of a step's metrics log; none where it has no log."""
    path = folder / "runs" / f"{fingerprint[:8]}.metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
    return rows


def _check_policies(
    folder: Path, arms: Sequence[Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Each evaluation must be of the policy that the manifest says, and each be listed once."""
    seen: dict[str, str] = {}
    for arm in arms:
        name = policy_name(arm, True)
        if name in seen.values():
            raise UserError(f"{folder / 'manifest.json'} lists {name} twice")
        if arm["policy"] not in records[arm["evaluation"]]["identity"]["upstream"].values():
            raise UserError(
                f"{folder / 'manifest.json'}: the evaluation {arm['evaluation'][:8]} of "
                f"{name} is not of the policy {arm['policy'][:8]}"
            )
        if arm["evaluation"] in seen:
            raise UserError(
                f"{folder / 'manifest.json'}: {seen[arm['evaluation']]} and {name} "
                f"share the evaluation {arm['evaluation'][:8]}"
            )
        seen[arm["evaluation"]] = name


def _check_samples(scores: pd.DataFrame, reference: pd.DataFrame) -> None:
    """Every evaluation, at every snapshot, uses the reference's prompts, equally often each."""
    wanted = set(reference["prompt_id"])
    if reference.groupby("prompt_id").size().nunique() != 1:
        raise UserError(f"{REFERENCE} are not equally many for each prompt: sample them again")
    columns = ["arm", "setting", "seed", "variant", "step"]
    for (arm, setting, seed, variant, step), rows in scores.groupby(columns, dropna=False):
        whose = {"arm": arm, "setting": setting}
        name = f"{policy_name({**whose, 'seed': seed, 'variant': variant}, True)} at step {step}"
        found = set(rows["prompt_id"])
        if found != wanted:
            odd = min(found ^ wanted)
            raise UserError(
                f"arms do not stand on equal footing, prompt_id differs: {name} has "
                f"{len(found)} prompts, {REFERENCE} have {len(wanted)}; "
                f"{odd!r} is in only one of the two"
            )
        repeated = rows.duplicated(["prompt_id", "sample"]).any()
        if rows.groupby("prompt_id").size().nunique() != 1 or repeated:
            raise UserError(f"{name}: samples are not equally many and distinct for each prompt")
        temperatures = set(rows["temperature"]) | set(reference["temperature"])
        if len(temperatures) != 1:
            raise UserError(
                "arms do not stand on equal footing, temperature differs: "
                f"{_listed(rows['temperature'])} in {name}, "
                f"{_listed(reference['temperature'])} in {REFERENCE}"
            )


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" for value in sorted(set(values)))
