"""One seed and one beta of `exact`, through the trainers, against the bars of the study."""

import dataclasses

import pytest

from analysis.oracle import load, oracle_table
from analysis.oracle_plots import BARS
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
    assert set(table.index) == set(BARS)
    for arm, bar in BARS.items():
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "paper"}, "scale"),
        ({"arms": ["ppo-g"]}, "did you mean"),
        ({"assignments": ["task.symbols=3,4"]}, "takes one value"),
        ({"assignments": ["task.symbols=26", "task.length=6"]}, "too many completions"),
        ({"seeds": 0}, "must be at least 1"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        EXACT.resolve(**({"scale": "mini"} | arguments))
