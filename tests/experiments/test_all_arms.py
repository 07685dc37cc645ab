"""Every arm and one of a user's own through one run at scale smoke, each at one setting."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.arms import ARMS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OWN = ROOT / "experiments" / "examples" / "my_arm.py"
ESTIMATED = {"best-of-n", "best-of-n-proxy", "optimum"}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    swept = dict(arm.sweep for arm in ARMS.values() if arm.sweep) | {"my_arm.beta": (0.05, 0.1)}
    given = [f"--set={name}={values[1]}" for name, values in swept.items()]
    command = [sys.executable, "-m", "experiments.cli", "run", "sentiment", "--scale", "smoke"]
    command += ["--arms", "all", "--load", str(OWN), "--results", str(results), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (results / "experiments").iterdir()
    return folder


@pytest.fixture(scope="module")
def final(study) -> pd.DataFrame:
    table = pd.read_csv(study / "tables" / "frontier.csv")
    return table[table["final"]]


def test_every_arm_is_in_every_table(study, final):
    everyone = {*ARMS, "my-arm"}
    assert set(final["arm"]) == everyone
    compute = pd.read_csv(study / "tables" / "compute.csv")
    assert set(compute["arm"]) == everyone
    totals = compute[compute["stage"].isin(["total", "total_with_pairs"])]
    assert totals.groupby("arm").size().ge(2).all() and (totals["seconds"] > 0).all()
    training = pd.read_csv(study / "tables" / "training.csv")
    assert set(training["arm"]) == everyone - ESTIMATED - {"sft"}


def test_every_trained_policy_left_the_reference(final):
    trained = final[~final["arm"].isin([*ESTIMATED, "sft"])]
    assert set(trained["kl_estimator"]) == {"k1", "k3", "rb"}
    assert (trained.loc[trained["kl_estimator"] == "rb", "kl"] > 0).all()
    needed = ["kl", "kl_se", "reward_gold", "reward_gold_se", "reward_proxy", "entropy", "length"]
    assert np.isfinite(trained[needed]).all(axis=None)
    own = final[(final["arm"] == "sft") & (final["kl_estimator"] == "rb")]
    assert own["kl"].item() == 0


def test_every_arms_own_objective_is_better_than_at_the_start(study):
    training = pd.read_csv(study / "tables" / "training.csv")
    better = np.where(
        training["better"] == "higher",
        training["end"] > training["start"],
        training["end"] < training["start"],
    )
    assert dict(zip(training["arm"], better, strict=True)) == dict.fromkeys(training["arm"], True)
    shown = training["improved"].notna()  # else the change is within its error
    assert shown[training["objective"] == "loss"].all()
    assert (training.loc[shown, "improved"] == better[shown]).all()


def test_best_of_n_is_by_both_judges_and_its_measured_kl_below_the_bound(final):
    for arm in ("best-of-n", "best-of-n-proxy"):
        rows = final[final["arm"] == arm].pivot(index="setting", columns="kl_estimator")
        assert list(rows.index) == [1, 2, 4, 8, 16, 32]  # half of the 64 samples a prompt
        assert (rows["kl"]["measured"] <= rows["kl"]["analytic"] + 1e-12).all()
        assert rows["kl"]["measured"].iloc[0] == pytest.approx(0, abs=1e-12)
    by = {arm: final[final["arm"] == arm].set_index("setting") for arm in set(final["arm"])}
    gold, proxy = (by[arm]["reward_gold"].groupby(level=0).first() for arm in sorted(ESTIMATED)[:2])
    assert gold[1] == pytest.approx(proxy[1])
    assert (gold[1:] > proxy[1:]).all() and gold.is_monotonic_increasing


def test_all_stand_on_one_footing_and_say_so(study):
    manifest = json.loads((study / "manifest.json").read_text())
    assert {row["arm"] for row in manifest["catalogue"]} == {*ARMS, "my-arm"}
    records = [json.loads(path.read_text()) for path in (study / "runs").glob("*[!s].json")]
    assert len({r["fingerprint"] for r in records if r["stage"] == "sft"}) == 1
    assert len({r["fingerprint"] for r in records if r["stage"] == "pairs"}) == 1
    page = (study / "report.html").read_text()
    for arm in (*ARMS, "my-arm"):
        assert arm in page


def test_the_example_is_short_and_its_docstring_has_the_command():
    text = OWN.read_text()
    assert len(text.splitlines()) <= 40
    assert f"--load {OWN.relative_to(ROOT)} --arms my-arm" in text
