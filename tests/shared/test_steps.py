"""Identity, run-once, and what happens when a step fails."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import pipelines.baselines.specs
import pipelines.exact.specs  # noqa: F401
from pipelines.dpo.specs import DPOSpec, PairSpec
from pipelines.rlhf.ppo_config import PPOConfig
from pipelines.rlhf.ppo_stage import RENAMED, ppo_arguments
from pipelines.rlhf.specs import GroupSpec, PPOSpec
from pipelines.shared.errors import StepFailed, UserError
from pipelines.shared.specs import Runtime, SFTSpec, Spec
from pipelines.shared.steps import (
    Step,
    canonical,
    clean_interrupted,
    closure,
    digest,
    load_record,
    locked,
    partial_folders,
    run_step,
)

CALLS: list[str] = []


def work(context):
    CALLS.append(context.step.label)
    context.log({"step": 1, "loss": 0.5})
    context.ledger.add(flops=7, tokens_trained=3)
    (context.path / "result.txt").write_text("done")


def broken(context):
    (context.path / "half.txt").write_text("half")
    raise RuntimeError("boom")


def full_disk(context):
    raise OSError(28, "No space left on device")


def make(label="one", function="work", **changes) -> Step:
    arguments = {"recipe": {"dpo": DPOSpec()}, "version": 1} | changes
    return Step(stage="test", label=label, function=f"{__name__}:{function}", **arguments)


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    return Runtime(results=tmp_path, cache=tmp_path / "cache")


def test_fingerprint_is_of_the_resolved_recipe():
    assert (
        make(recipe={"dpo": DPOSpec()}).fingerprint
        == make(recipe={"dpo": DPOSpec(beta=0.1)}).fingerprint
    )
    assert "warmup" in json.dumps(make().identity), "defaults are part of the identity"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"dpo": DPOSpec(beta=0.2)}},
        {"seed": 1},
        {"threads": 2},
        {"version": 2},
        {"assets": {"corpus": "abc"}},
        {"upstream": {"sft": make("upstream")}},
    ],
)
def test_everything_that_changes_a_result_changes_the_fingerprint(change):
    assert make(**change).fingerprint != make().fingerprint


def test_an_upstream_change_reaches_every_step_that_stands_on_it():
    first, second = (make(upstream={"sft": make(seed=seed)}) for seed in (0, 1))
    assert first.fingerprint != second.fingerprint


def test_labels_and_runtime_do_not_change_the_fingerprint():
    assert make("one").fingerprint == make("another").fingerprint
    assert not {field.name for field in dataclasses.fields(Runtime)} & set(make().identity)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), print, object(), Path("x"), {1: 2}])
def test_canonical_refuses_what_has_no_one_form(value):
    with pytest.raises(TypeError):
        canonical({"value": value})


def test_digest_is_stable_across_processes_and_key_order():
    known = "d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) == known


def test_a_step_runs_once(runtime):
    CALLS.clear()
    first = run_step(make("once"), runtime)
    assert run_step(make("once"), runtime) == first
    assert CALLS == ["once"]
    assert first["cost"]["flops"] == 7 and first["cost"]["seconds"] > 0
    assert (
        json.loads((make("once").folder(runtime.results) / "metrics.jsonl").read_text())["loss"]
        == 0.5
    )


def test_a_failed_step_goes_aside_and_does_not_count(runtime):
    step = make("bad", "broken")
    with pytest.raises(StepFailed, match=r"boom.*error\.txt"):
        run_step(step, runtime)
    assert load_record(step, runtime.results) is None
    (aside,) = step.folder(runtime.results).parent.glob("failed-bad-*")
    assert "RuntimeError: boom" in (aside / "error.txt").read_text()


def test_a_full_disk_is_the_users_to_mend_and_leaves_nothing(runtime):
    step = make("full", "full_disk")
    with pytest.raises(UserError, match=r"No space left on device.*finished steps are kept"):
        run_step(step, runtime)
    assert not list(step.folder(runtime.results).parent.iterdir())


def test_a_folder_that_lost_its_record_is_refused_before_the_work_is_done_again(runtime):
    step = make("lost")
    run_step(step, runtime)
    (step.folder(runtime.results) / "record.json").unlink()
    CALLS.clear()
    with pytest.raises(UserError, match=r"has no record\.json.*delete the folder"):
        run_step(step, runtime)
    assert CALLS == []


def test_what_a_killed_process_left_is_seen_and_cleaned(runtime):
    step = make("killed")
    folder = step.folder(runtime.results)
    partial = folder.with_name(f".partial-{folder.name}")
    partial.mkdir(parents=True)
    (partial / "half.txt").write_text("half")
    with locked(step.fingerprint, runtime.results):
        assert list(partial_folders(runtime.results)) == [(partial, True)], "at work"
        clean_interrupted(runtime.results)
        assert partial.is_dir()
    assert list(partial_folders(runtime.results)) == [(partial, False)], "interrupted"
    run_step(step, runtime)
    assert not partial.exists() and not (folder / "half.txt").exists()
    assert list(partial_folders(runtime.results)) == []


def test_another_recipe_in_the_folder_is_refused_field_by_field(runtime):
    step = make("edited")
    run_step(step, runtime)
    path = step.folder(runtime.results) / "record.json"
    record = json.loads(path.read_text())
    record["identity"]["recipe"]["dpo"]["beta"] = 0.7
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"recipe\.dpo\.beta: stored 0\.7, wanted 0\.1"):
        load_record(step, runtime.results)


def test_a_result_whose_files_are_gone_is_refused(runtime):
    step = make("gone")
    run_step(step, runtime)
    (step.folder(runtime.results) / "result.txt").unlink()
    with pytest.raises(UserError, match=r"result\.txt is missing"):
        load_record(step, runtime.results)


def test_closure_puts_dependencies_first_and_each_once():
    base = make("base", seed=5)
    left, right = (
        make("left", upstream={"a": base}, seed=1),
        make("right", upstream={"a": base}, seed=2),
    )
    assert [s.label for s in closure([make("top", upstream={"l": left, "r": right})])] == [
        "base",
        "left",
        "right",
        "top",
    ]


@pytest.mark.parametrize(
    ("make_spec", "message"),
    [
        (lambda: DPOSpec(beta=0.0), r"dpo\.beta = 0\.0: must be above 0"),
        (lambda: DPOSpec(beta="0.1"), r"dpo\.beta = '0\.1': expected float, got str"),
        (lambda: DPOSpec(beta=float("nan")), r"dpo\.beta = nan: must be finite"),
        (lambda: SFTSpec(epochs=1.5), r"sft\.epochs = 1\.5: expected int"),
        (lambda: PPOSpec(rollouts=10, minibatches=4), r"ppo\.rollouts = 10: must be a multiple"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_field(make_spec, message):
    with pytest.raises(UserError, match=message):
        make_spec()


def kinds(base: type[Spec] = Spec) -> list[type[Spec]]:
    """Every recipe that has a section, of all packages."""
    below = [kind for child in base.__subclasses__() for kind in (child, *kinds(child))]
    return [kind for kind in below if kind.section and kind.__module__.startswith("pipelines")]


def test_every_field_of_every_spec_is_read_by_a_stage():
    """A setting that nothing reads would be hashed, shown and swept, and mean nothing.

    Counts attributes of the variables that hold each spec in the stages' code: `spec` in the module
    that asks for the section or is given its kind, or `protocol.<section>`, and the losses of DPO's
    family, by section.
    """
    assert {kind.section for kind in kinds()} >= {"ppo", "rloo", "kto", "preferred_ft", "task"}
    read: dict[str, set[str]] = {kind.section: set() for kind in kinds()}
    for path in (Path(__file__).parents[2] / "pipelines").rglob("*.py"):
        if path.name == "specs.py":
            continue
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            found = {}
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.spec":
                held = {kind.section for kind in kinds() if f"spec: {kind.__name__}" in text}
                found = {section: {node.attr} for section in held}
            elif isinstance(node, ast.FunctionDef):
                found = _attributes_read(node)
            elif isinstance(node, ast.Dict):
                found = _attributes_of_losses(node)
            for section, names in found.items():
                read.setdefault(section, set()).update(names)
    # PPO's go to the trainer by name: PPOConfig refuses one that it does not know.
    passed = ppo_arguments(PPOSpec())
    assert passed.keys() <= {field.name for field in dataclasses.fields(PPOConfig)}
    read["ppo"] |= {
        field.name
        for field in dataclasses.fields(PPOSpec)
        if RENAMED.get(field.name, field.name) in passed
    }
    unread = {
        f"{kind.section}.{field.name}"
        for kind in kinds()
        for field in dataclasses.fields(kind)
        if field.name not in read[kind.section]
    }
    assert unread == set()


def _attributes_read(function: ast.FunctionDef) -> dict[str, set[str]]:
    """Attributes of specs that a function reads, by section; a base stands for all below it."""
    named = {kind.__name__: kind for kind in [*kinds(), PairSpec, GroupSpec]}
    sections = {
        name: {below.section for below in (kind, *kinds(kind))} for name, kind in named.items()
    }
    holders: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign) and getattr(node.annotation, "id", "") in named:
            holders[getattr(node.target, "id", "")] = sections[node.annotation.id]
    for argument in [*function.args.args, *function.args.kwonlyargs]:
        if getattr(argument.annotation, "id", "") in named:
            holders[argument.arg] = sections[argument.annotation.id]
    found: dict[str, set[str]] = {kind.section: set() for kind in kinds()}
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in holders:
                for section in holders[owner.id]:
                    found.setdefault(section, set()).add(node.attr)
            elif isinstance(owner, ast.Attribute) and owner.attr in found:
                found[owner.attr].add(node.attr)  # protocol.labels.margins
            elif isinstance(owner, ast.Call) and getattr(owner.func, "attr", "") == "spec":
                found[owner.args[0].value].add(node.attr)  # context.spec("ppo").kl_coef
    return found


def _attributes_of_losses(table: ast.Dict) -> dict[str, set[str]]:
    """What the losses of DPO's family read of their settings, by section."""
    return {
        key.value: {
            node.attr
            for node in ast.walk(value.body)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "spec"
        }
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Lambda)
    }
