"""Equal footing: policies are compared only where one meter judged them and they grew from the
same SFT model, prompts and completions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.catalogue import BEST_OF_N, OPTIMUM
from analysis.formats import policy_name, some
from analysis.records import dependencies
from pipelines.shared.errors import UserError

SHARED_UPSTREAM = ("sft", "gold", "corpus")
REFERENCE = "the reference samples"
ESTIMATED = (*BEST_OF_N, OPTIMUM)
UNEQUAL = "arms do not stand on equal footing"


def check_footing(
    arms: Sequence[Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]], reference: str
) -> None:
    """Refuse evaluations and training that differ in what a comparison needs to be equal.

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
    closures = {policy_name(arm, True): dependencies(records, arm["policy"]) for arm in arms}
    for name, steps in closures.items():
        if shared not in steps:
            raise UserError(
                f"{UNEQUAL}: the policy of {name} does not come from the SFT model {shared[:8]} "
                "that its KL is measured against"
            )
    _check_training(closures, records)


def _check_training(
    closures: Mapping[str, Sequence[str]], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """All training samples alike, and all pairs are of the same completions.

    Args:
        closures: what each policy stands on, by its name.

    The temperature of training may be another than evaluation's, but is one for all arms.
    """
    sampled: dict[str, dict[str, Any]] = {}
    sources: dict[str, dict[str, Any]] = {}
    for name, steps in closures.items():
        stages = {records[step]["stage"] for step in steps}
        for step in steps:
            made = records[step]
            if "sampling" in made["identity"]["recipe"]:
                recipe = made["identity"]["recipe"]["sampling"]
                whose = f"{name} ({made['stage']})"
                sampled[whose] = {f"sampling.{key}": value for key, value in recipe.items()}
            if made["stage"] == "completions" and "pairs" in stages:
                sources[f"{name} ({step[:8]})"] = {"completions of the pairs": step[:8]}
    _check_equal(sampled, "Train all of them with one sampling recipe")
    _check_equal(sources, "Make all pairs from the same completions")


def _check_equal(
    stated: Mapping[str, Mapping[str, Any]], remedy: str = "Evaluate all of them with one recipe"
) -> None:
    """Refuse a field that not all of the named have, with an equal value."""
    for field in dict.fromkeys(field for values in stated.values() for field in values):
        sides: dict[str, list[str]] = {}
        for name, values in stated.items():
            sides.setdefault(str(values.get(field, "missing")), []).append(name)
        if len(sides) > 1:
            said = "; ".join(f"{value} in {some(names, 3)}" for value, names in sides.items())
            raise UserError(f"{UNEQUAL}, {field} differs: {said}. {remedy}")


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


def check_policies(
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


def check_samples(scores: pd.DataFrame, reference: pd.DataFrame) -> None:
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
                f"{UNEQUAL}, prompt_id differs: {name} has "
                f"{len(found)} prompts, {REFERENCE} have {len(wanted)}; "
                f"{odd!r} is in only one of the two"
            )
        repeated = rows.duplicated(["prompt_id", "sample"]).any()
        if rows.groupby("prompt_id").size().nunique() != 1 or repeated:
            raise UserError(f"{name}: samples are not equally many and distinct for each prompt")
        temperatures = set(rows["temperature"]) | set(reference["temperature"])
        if len(temperatures) != 1:
            raise UserError(
                f"{UNEQUAL}, temperature differs: "
                f"{_listed(rows['temperature'])} in {name}, "
                f"{_listed(reference['temperature'])} in {REFERENCE}"
            )


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" for value in sorted(set(values)))


def check_catalogue(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse policies or estimates of an arm that the manifest's catalogue does not describe, and
    estimates that analysis cannot make.
    """
    known = {row["arm"] for row in manifest["catalogue"]}
    used = dict.fromkeys(row["arm"] for part in ("arms", "estimates") for row in manifest[part])
    if unknown := [arm for arm in used if arm not in known]:
        raise UserError(
            f"{folder / 'manifest.json'} has no {some(unknown)} in its catalogue: "
            "run the experiment again"
        )
    estimated = dict.fromkeys(row["arm"] for row in manifest["estimates"])
    if odd := [arm for arm in estimated if arm not in ESTIMATED]:
        raise UserError(
            f"{folder / 'manifest.json'} estimates {some(odd)} from samples of the SFT model: only "
            f"{', '.join(ESTIMATED)} can be"
        )
