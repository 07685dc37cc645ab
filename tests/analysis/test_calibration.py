"""The reward model's probabilities against the labeller's."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from synthetic_study import Builder

from analysis.diagnostics.calibration import (
    Pairs,
    calibration,
    measures,
    recalibration,
    reliability,
)
from analysis.statistics import margin
from analysis.studies.labeller import Labeller, labeller_of
from analysis.studies.study import load

# A reward model that is the gold reward fits exactly, which statsmodels remarks on.
EXACT = pytest.mark.filterwarnings("ignore:Perfect separation")
FAIR = Labeller(temperature=1.0, noise=0.0)


def samples(gold, proxy, each=2):
    """SCORES' columns that calibration reads, `each` samples of every prompt."""
    return pd.DataFrame(
        {
            "run": "r",
            "prompt_id": [f"p{k // each:03d}" for k in range(len(gold))],
            "sample": [k % each for k in range(len(gold))],
            "reward_gold": np.asarray(gold, float),
            "reward_proxy": np.asarray(proxy, float),
        }
    )


def drawn(proxy_of, prompts=60, each=4):
    random = np.random.default_rng(3)
    gold = random.normal(0, 2, prompts * each)
    return samples(gold, proxy_of(gold, random), each)


def test_the_labeller_by_hand():
    # sigmoid(2 / 2) = 0.7311; a fifth of the labels flipped: 0.8 * 0.7311 + 0.2 * 0.2689.
    assert Labeller(2.0, 0.0).prefers(np.array([2.0, 0.0])) == pytest.approx([0.731059, 0.5])
    assert Labeller(2.0, 0.2).prefers(np.array([2.0])) == pytest.approx([0.638635])


def test_pairs_are_turned_to_what_the_reward_model_prefers():
    # p000: the second by 1, and by gold the first by 3. p001: a tie.
    pairs = Pairs.of(samples([3, 0, 5, 1], [0, 1, 2, 2]), FAIR)
    assert pairs.margin.tolist() == [1.0, 0.0]
    assert pairs.predicted == pytest.approx([expit(1), 0.5])
    assert pairs.actual == pytest.approx([expit(-3), 0.5])
    assert pairs.bins.tolist() == [4, 0]  # 0.731 is in [0.70, 0.75)
    assert Pairs.of(samples([0, 1], [0, 100]), FAIR).bins.tolist() == [9]  # probability 1


@EXACT
def test_the_labeller_itself_is_calibrated():
    pairs = Pairs.of(drawn(lambda gold, random: gold / 2), Labeller(2.0, 0.0))
    found = measures(pairs)
    assert found["calibration_error"] == pytest.approx(0, abs=1e-12)
    assert found["excess"] == pytest.approx(0, abs=1e-12)
    assert found["slope"] == pytest.approx(1, abs=1e-6)
    assert (found["pairs"], found["prompts"]) == (60 * 6, 60)


@EXACT
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_slope_undoes_a_scale(scale):
    pairs = Pairs.of(drawn(lambda gold, random: scale * gold), FAIR)
    assert recalibration(pairs)[0] == pytest.approx(1 / scale, abs=1e-6)


def noisy(gold, random):
    return 0.7 * gold + random.normal(0, 1.5, len(gold))


def test_slope_and_log_loss_equal_another_library():
    pairs = Pairs.of(drawn(noisy), FAIR)
    # Each pair twice, as preferred and not, weighted by the labeller's probability of it.
    both = np.concatenate([np.ones(len(pairs.margin)), np.zeros(len(pairs.margin))])
    weights = np.concatenate([pairs.actual, 1 - pairs.actual])
    twice = np.concatenate([pairs.margin, pairs.margin])[:, None]
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    slope = model.fit(twice, both, sample_weight=weights).coef_[0, 0]
    found = measures(pairs)
    assert found["slope"] == pytest.approx(slope, abs=1e-4)
    loss = log_loss(both, expit(twice[:, 0]), sample_weight=weights)
    assert found["log_loss"] == pytest.approx(loss)
    assert found["excess"] == pytest.approx(loss - found["log_loss_floor"])


def test_the_slope_s_interval_is_the_sandwich_clustered_by_prompt():
    pairs = Pairs.of(drawn(noisy), FAIR)
    slope, low, high = recalibration(pairs)
    fitted = expit(slope * pairs.margin)
    score = pd.Series(pairs.margin * (pairs.actual - fitted)).groupby(pairs.prompts).sum()
    bread = (pairs.margin**2 * fitted * (1 - fitted)).sum()
    rows, prompts = len(pairs.margin), 60
    # statsmodels' small-sample factor with one parameter.
    factor = prompts / (prompts - 1) * (rows - 1) / (rows - 1)
    error = np.sqrt(factor * (score**2).sum()) / bread
    assert high - slope == pytest.approx(margin(error, prompts), rel=1e-4)
    assert slope - low == pytest.approx(high - slope)


def test_calibration_error_equals_brute_force():
    rows = drawn(noisy)
    bins: dict[int, list[tuple[float, float]]] = {}
    for _, group in rows.groupby("prompt_id"):
        for first, second in itertools.combinations(group.to_dict("records"), 2):
            proxy = first["reward_proxy"] - second["reward_proxy"]
            gold = first["reward_gold"] - second["reward_gold"]
            if proxy < 0:
                proxy, gold = -proxy, -gold
            predicted = expit(proxy)
            bins.setdefault(int((predicted - 0.5) // 0.05), []).append((predicted, expit(gold)))
    total = sum(len(inside) for inside in bins.values())
    wanted = sum(abs(sum(p - a for p, a in inside)) for inside in bins.values()) / total
    found = measures(Pairs.of(rows, FAIR))
    assert found["calibration_error"] == pytest.approx(wanted)
    assert found["calibration_error_low"] < wanted < found["calibration_error_high"]


def test_tables_of_a_study(tmp_path):
    builder = Builder()
    pairs = next(r for r in builder.records.values() if r["stage"] == "pairs")
    pairs["identity"]["recipe"]["labels"] = {"temperature": 2.0, "noise": 0.1}
    study = load(builder.write(tmp_path / "s"))
    table = calibration(study)
    assert table["arm"].tolist() == [arm["arm"] for arm in study.manifest["arms"]]
    assert (table["pairs"] == 24 * 6).all()
    sft = study.scores[study.scores["arm"] == "sft"]
    wanted = measures(Pairs.of(sft, Labeller(2.0, 0.1)))
    assert table.loc[table["arm"] == "sft"].iloc[0]["slope"] == pytest.approx(wanted["slope"])
    bins = reliability(study)
    assert bins["pairs"].sum() == 24 * 6 and (bins["bin_high"] > bins["bin_low"]).all()
    assert bins["predicted"].between(bins["bin_low"], bins["bin_high"]).all()
    error = (bins["pairs"] * (bins["predicted"] - bins["actual"]).abs()).sum() / bins["pairs"].sum()
    assert error == pytest.approx(wanted["calibration_error"])


def test_labels_that_nobody_simulated_have_no_truth(tmp_path):
    builder = Builder()
    next(r for r in builder.records.values() if r["stage"] == "pairs")["identity"]["recipe"] = {}
    study = load(builder.write(tmp_path / "s"))
    assert labeller_of(study, study.manifest["arms"][0]["evaluation"]) is None
    assert calibration(study).empty and reliability(study).empty


def test_undefined_is_null():
    constant = measures(Pairs.of(drawn(lambda gold, random: 0 * gold), FAIR))
    assert np.isnan(constant["slope"]) and constant["log_loss"] == pytest.approx(np.log(2))
    single = measures(Pairs.of(samples([1.0, 2.0], [0.0, 1.0], each=1), FAIR))
    assert single["pairs"] == 0 and np.isnan([single["log_loss"], single["slope"]]).all()
    one = measures(Pairs.of(samples([1.0, 2.0], [0.0, 2.0]), FAIR))
    assert np.isnan([one["excess_low"], one["slope"]]).all() and one["excess"] > 0
