"""One seed and one beta of `exact`, through the trainers, against the bars of the study."""

import dataclasses
import json

import pytest

from analysis.oracle import load, oracle_table
from analysis.oracle_report import sentences
from experiments.exact import EXACT
from experiments.publish import collect
from pipelines.shared.errors import UserError
from pipelines.shared.executors import run_local
from pipelines.shared.specs import Runtime

BETA = 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the study of beta 0.3, seed 0, exact labels."""
    results = tmp_path_factory.mktemp("results")
    study = EXACT.resolve("mini", assignments=[f"ppo.kl_coef={BETA}", f"dpo.beta={BETA}"])
    runs = [run for run in study.runs if run.labels != "sampled"]
    study = dataclasses.replace(study, runs=runs)
    run_local(study.steps(), Runtime(results=results, cache=results), cores=2)
    return collect(study, results), study


def test_ppo_and_dpo_reach_the_exact_optimum(made):
    folder, _ = made
    table = oracle_table(load(folder)).set_index("arm")
    assert set(table.index) == set(EXACT.bars)
    for arm, bar in EXACT.bars.items():
        row = table.loc[arm]
        assert bar <= row["closed_share"] <= 1, arm
        assert row["objective"] <= row["objective_opt"]
        assert row["kl"] == pytest.approx(row["kl_opt"], rel=0.1)


def test_the_report_of_an_enumerated_study(made):
    folder, study = made
    written = study.write_report(folder)
    assert {row[0] for row in written.rows} == {"PPO-GT", "PPO, exact labels", "DPO, exact labels"}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and 'src="http' not in page
    for name in ("oracle", "estimators"):
        assert (folder / "tables" / f"{name}.csv").is_file()
        assert (folder / "tables" / f"{name}.tex").is_file()
    before = page
    study.write_report(folder)
    assert (folder / "report.html").read_text() == before


def test_a_changed_table_is_refused(made):
    folder, study = made
    path = folder / "runs" / f"{study.runs[0].evaluation.fingerprint[:8]}.parquet"
    kept = path.read_bytes()
    path.write_bytes(kept + b"x")
    try:
        with pytest.raises(UserError, match="is not the file that"):
            load(folder)
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(("key", "value"), [("beta", 0.1), ("seed", 7), ("labels", "sampled")])
def test_a_manifest_that_contradicts_its_records_is_refused(made, key, value):
    folder, _ = made
    path = folder / "manifest.json"
    kept = path.read_text()
    manifest = json.loads(kept)
    manifest["runs"][-1][key] = value
    path.write_text(json.dumps(manifest))
    try:
        with pytest.raises(UserError, match=f"{key} {value}, its record"):
            load(folder)
    finally:
        path.write_text(kept)


def test_verdicts_follow_the_bars(made):
    folder, _ = made
    table = oracle_table(load(folder))
    assert all("every run closes at least" in s for s in sentences(table, EXACT.bars))
    strict = sentences(table, dict.fromkeys(EXACT.bars, 1.0))
    assert all("not every run closes" in sentence for sentence in strict)
    assert not any("at least" in sentence for sentence in sentences(table, {}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "paper"}, "scale"),
        ({"arms": ["ppo-g"]}, "did you mean"),
        ({"assignments": ["ppo.updates=1,2"]}, "takes one value"),
        ({"assignments": ["labels.kind=sampled"]}, "runs every kind of labels"),
        ({"assignments": ["ablation.broken=dropout-on"]}, "that is what ppo_details is for"),
        ({"assignments": ["ppo.kl_coef=0.0,0.1"]}, "without a KL there is no optimum"),
        ({"assignments": ["task.symbols=2", "task.prompts=7"]}, "there are only 6"),
        ({"assignments": ["task.symbols=26", "task.length=6"]}, "too many completions"),
        ({"seeds": 0}, "must be at least 1"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        EXACT.resolve(**({"scale": "mini"} | arguments))
