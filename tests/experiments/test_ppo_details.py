"""The study of details, at the size of a smoke test, and its table."""

import dataclasses
import re
from pathlib import Path

import pytest

from analysis.oracle import details_table, load
from experiments.ppo_details import CHANGES, PPO_DETAILS
from experiments.publish import collect
from pipelines.exact.ablations import BROKEN
from pipelines.shared.executors import run_local
from pipelines.shared.specs import Runtime

TRIED = (
    "",
    "ppo.share_trunk=true",
    "ablation.broken=pad-is-eos",
    "ablation.temperature=0.7 ablation.broken=update-at-temperature-1",
    "ablation.broken=score-at-first-token",
    "ablation.broken=values-one-late",
    "ablation.broken=reward-read-at-last-column",
    "ablation.broken=dropout-on",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    study = PPO_DETAILS.resolve("smoke")
    study = dataclasses.replace(study, runs=[run for run in study.runs if run.change in TRIED])
    assert len(study.runs) == len(TRIED)
    run_local(study.steps(), Runtime(results=results, cache=results), cores=2)
    return collect(study, results), study


def test_each_change_runs_or_is_stopped_by_a_check(made):
    folder, _ = made
    table = details_table(load(folder)).set_index("change")
    stopped = {
        "ablation.broken=pad-is-eos": "PAD is its EOS",
        "ablation.temperature=0.7 ablation.broken=update-at-temperature-1": "ratio is off 1",
        "ablation.broken=dropout-on": "ratio is off 1",
    }
    for change, row in table.iterrows():
        if change in stopped:
            assert re.search(stopped[change], row["stopped"]), change
            assert row.isna()["closed_share"]
        else:
            assert row.isna()["stopped"] and row["closed_share"] < 1, change
    others = table[table["stopped"].isna()].drop(index="defaults")
    assert (others["difference"] != 0).all()


def test_its_report_says_what_was_stopped(made):
    folder, study = made
    written = study.write_report(folder)
    assert len(written.rows) == len(TRIED)
    assert any("Stopped by the trainer's checks" in sentence for sentence in written.sentences)
    assert "data:image/png;base64," in (folder / "report.html").read_text()


def test_every_number_of_the_page_is_tried_or_said_to_be_left_out():
    page = (Path(__file__).parents[2] / "pipelines" / "rlhf" / "README.md").read_text()
    assert "ppo_details" in page
    numbers = {detail for detail, _ in CHANGES if detail}
    left_out = {"3", "4", "10", "15", "34", "35"}
    assert numbers | left_out == {str(number) for number in range(1, 37)}
    assert not numbers & left_out
    broken = {c.rpartition("broken=")[2] for _, c in CHANGES if "broken=" in c}
    assert broken == BROKEN.keys() - {""}
