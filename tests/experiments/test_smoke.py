"""One end-to-end run at scale smoke, as a user types it, held against the output contract."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from pipelines.evaluate.schema import TABLES, conform

pytestmark = pytest.mark.slow
TIMED = "compute.csv"
WITH_SECONDS = (TIMED, "compute_curves.csv", "reward_per_compute.csv")
BY_THE_CLOCK = b"small-compute"  # the claim on hours


def start(results: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.cli", "run", "sentiment", "--scale", "smoke"]
    return subprocess.Popen(
        [*command, "--results", str(results), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(results: Path, *more: str) -> str:
    process = start(results, *more)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def study(results) -> Path:
    return results / "experiments" / "sentiment-smoke"


def contents(study: Path) -> dict[str, bytes]:
    """All tables as bytes, timings apart."""
    paths = sorted((study / "tables").glob("*.csv"))
    read = {path.name: path.read_bytes() for path in paths if path.name not in WITH_SECONDS}
    claims = read["claims.csv"].splitlines()
    timeless = [line for line in claims if not line.startswith(BY_THE_CLOCK)]
    return {**read, "claims.csv": b"\n".join(timeless)}


def untimed(study: Path) -> pd.DataFrame:
    return pd.read_csv(study / "tables" / TIMED).drop(columns=["seconds", "peak_memory_bytes"])


@pytest.mark.parametrize("name", ["frontier", "objective", "compute"])
def test_csv_tables_keep_the_contract_column_by_column(study, name):
    table = pd.read_csv(study / "tables" / f"{name}.csv")
    assert list(table.columns) == list(TABLES[name])
    text = {column: "string" for column, kind in TABLES[name].items() if kind == "string"}
    conform(table.astype(text), name)
    assert (study / "tables" / f"{name}.tex").read_text().count("rule") >= 3


def test_frontier_has_every_arm_setting_snapshot_and_estimator(study):
    table = pd.read_csv(study / "tables" / "frontier.csv")
    trained = table[table["arm"].isin(["ppo", "dpo"])]
    assert trained.groupby(["arm", "setting", "step", "kl_estimator"]).size().eq(1).all()
    assert len(trained) == (4 + 5) * 2 * 3
    final = trained[trained["final"]]
    assert len(final) == (4 + 5) * 3
    assert (final[final["kl_estimator"] == "rb"]["kl"] > 0).all()
    for column in (
        "kl",
        "kl_se",
        "reward_gold",
        "reward_gold_se",
        "reward_proxy",
        "entropy",
        "length",
    ):
        assert final[column].notna().all(), column
    sft = table[(table["arm"] == "sft")]
    assert sft["kl"].abs().max() < 1e-6 and sft["setting"].isna().all()
    assert {"optimum", "best-of-n"} <= set(table["arm"])
    assert (table[table["arm"] == "optimum"]["ess"] >= 10).all()


def test_samples_keep_the_contract(study):
    samples = conform(pd.read_parquet(study / "tables" / "samples.parquet"), "samples")
    assert len(samples) == (1 + 4 + 5) * 48 * 8
    assert not samples.drop(columns="completion").isna().any().any()
    assert (samples["n_tokens"] <= 12).all() and (samples["logp"] < 0).all()
    sft = samples[samples["run"] == samples["run"].iloc[0]]
    assert (sft["logp"] - sft["ref_logp"]).abs().max() < 1e-9


def test_there_is_a_chosen_completion_for_each_prompt(study):
    chosen = conform(pd.read_parquet(study / "tables" / "chosen.parquet"), "samples")
    samples = pd.read_parquet(study / "tables" / "samples.parquet")
    prompts = samples.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"]
    assert chosen["prompt_id"].is_unique and set(chosen["prompt_id"]) == set(prompts.index)
    assert (chosen.set_index("prompt_id")["prompt"] == prompts).all()
    assert set(chosen["sample"]) == {0, 1} and chosen["reward_gold"].notna().all()


def test_compute_sums_over_the_closure(study):
    table = pd.read_csv(study / "tables" / "compute.csv")
    trained = table[table["arm"].isin(["ppo", "dpo"])]
    for (arm, _), rows in trained.groupby(["arm", "setting"]):
        flops = rows.set_index("stage")["flops"]
        own = ["corpus", "sft", {"ppo": "reward-model", "dpo": "reference-logprobs"}[arm], arm]
        made = flops[["gold", "completions", "pairs"]].sum()
        assert flops["total"] == flops[own].sum()
        assert flops["total_with_pairs"] == flops["total"] + made
        assert (flops[own[1:]] > 0).all()


def test_the_report_is_one_file_that_loads_nothing(study):
    page = (study / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert 'src="http' not in page and "<link" not in page and "@import" not in page
    for name in ("frontier", "objective", "cost", "training", "estimators"):
        for kind in ("png", "pdf"):
            assert (study / "figures" / f"{name}.{kind}").stat().st_size > 5000


def test_no_prompt_is_in_two_splits_and_evaluation_uses_only_its_own(results, study):
    (corpus,) = (results / "runs" / "corpus").glob("*/texts.parquet")
    reviews = pd.read_parquet(corpus)
    assert reviews.groupby("prompt_id")["split"].nunique().max() == 1
    assert reviews.groupby("prompt_id")["prompt"].nunique().max() == 1
    split = reviews.drop_duplicates("prompt_id").set_index("prompt_id")["split"]
    (pairs,) = (results / "runs" / "pairs").glob("*/pairs.parquet")
    assert set(split[pd.read_parquet(pairs)["prompt_id"]]) == {"preference"}
    samples = pd.read_parquet(study / "tables" / "samples.parquet")
    assert set(split[samples["prompt_id"]]) == {"evaluation"}


def test_pairs_hold_what_was_sampled(results):
    (pairs,) = (results / "runs" / "pairs").glob("*/pairs.parquet")
    table = pd.read_parquet(pairs)
    for side in ("chosen", "rejected"):
        ended = table[f"{side}_ids"].map(lambda ids: ids[-1] == 0)
        assert (ended == table[f"{side}_finished"]).all()
        assert not table[f"{side}_finished"].all(), "cut-off completions have no EOS"
        assert (table[f"{side}_ids"].map(len) <= 12).all()


def test_records_tell_what_ran(results):
    records = [json.loads(p.read_text()) for p in (results / "runs").glob("*/*/record.json")]
    assert len(records) == 27
    for record in records:
        assert record["versions"]["trl"] and record["hardware"]["cores"]
        assert record["command"][1] == "run"
        assert record["cost"]["seconds"] > 0 and record["cost"]["peak_memory_bytes"] > 0
    costly = {r["stage"] for r in records if r["cost"]["flops"] > 0}
    trained = {"sft", "reward-model", "ppo", "dpo"}
    assert costly == trained | {
        "completions",
        "reference-logprobs",
        "evaluation",
        "reference-samples",
    }


def test_what_is_published_names_no_folder_of_this_machine(results, study):
    assert str(results) in str([p.read_text() for p in (results / "runs").rglob("record.json")])
    for path in study.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".csv", ".tex", ".html", ".md"):
            assert str(results) not in path.read_text(), path.name


def test_a_second_run_reuses_every_step(results, study):
    before = contents(study)
    started = time.monotonic()
    assert "every step was reused (27 of 27)" in run(results)
    assert time.monotonic() - started < 60
    assert contents(study) == before


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_tables(results, study, tmp_path):
    process = start(tmp_path)
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "runs").glob("*/[!.]*/record.json"))) < 8:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/[!.]*/record.json")}
    output = run(tmp_path)
    assert "reused" in output and "every step was reused" not in output
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert not list((tmp_path / "runs").glob("*/.partial-*"))
    again = tmp_path / "experiments" / "sentiment-smoke"
    assert contents(again) == contents(study)
    pd.testing.assert_frame_equal(untimed(again), untimed(study))


def test_a_published_study_is_analysed_without_its_runs(study, tmp_path):
    published = tmp_path / "experiments" / "sentiment-smoke"
    shutil.copytree(study, published)
    (published / "tables" / "samples.parquet").unlink()
    (published / "tables" / "frontier.csv").unlink()
    command = [sys.executable, "-m", "experiments.cli", "report", "sentiment", "--scale", "smoke"]
    done = subprocess.run([*command, "--results", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(published) == contents(study)


def test_what_was_made_is_exported_for_other_tools(results, study, tmp_path, capsys):
    from datasets import load_dataset

    from experiments.cli import main

    chosen = ["sentiment", "--scale", "smoke", "--results", str(results)]
    assert main(["export", *chosen, "--out", str(tmp_path / "out")]) == 0
    (text,) = (tmp_path / "out" / "pairs").glob("*.jsonl")
    data = load_dataset("json", data_files=str(text), split="train", cache_dir=str(tmp_path))
    assert data.column_names == ["prompt", "chosen", "rejected"]
    exact = pd.read_parquet(text.with_suffix(".parquet"))
    assert len(data) == len(exact) == 32 * 6
    assert data["chosen"] == exact["chosen"].tolist()
    (made,) = (results / "runs" / "pairs").iterdir()
    pairs = pd.read_parquet(made / "pairs.parquet")
    assert exact["chosen_ids"].map(list).tolist() == pairs["chosen_ids"].map(list).tolist()
    frontier = pd.read_parquet(tmp_path / "out" / "frontier.parquet")
    assert len(frontier) == len(pd.read_csv(study / "tables" / "frontier.csv"))
    policies = pd.read_csv(tmp_path / "out" / "policies.csv")
    assert all((Path(folder) / "model.safetensors").is_file() for folder in policies["checkpoint"])
    assert len(policies) == 1 + 4 + 5
    capsys.readouterr()
    assert main(["export", *chosen, "--seeds", "2", "--out", str(tmp_path / "two")]) == 2
    assert "is not finished" in capsys.readouterr().err and not (tmp_path / "two").exists()
