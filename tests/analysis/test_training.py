"""Each policy's own objective, before and after."""

import numpy as np
import pandas as pd
import pytest
from synthetic_study import Builder

from analysis import findings
from analysis.study import load
from analysis.training import training_objectives


def of(table, arm, setting):
    return table[(table["arm"] == arm) & (table["setting"] == setting)].iloc[0]


def policy(builder, arm, setting):
    return next(
        row["policy"] for row in builder.arms if (row["arm"], row["setting"]) == (arm, setting)
    )


def test_a_loss_is_the_logs(builder, tmp_path):
    builder.losses(policy(builder, "dpo", 0.3), 0.5, 0.7)
    table = training_objectives(load(builder.write(tmp_path / "s")))
    row = of(table, "dpo", 0.1)
    assert (row["objective"], row["better"]) == ("loss", "lower")
    assert (row["start"], row["end"], row["improved"]) == (0.69, 0.6, True)
    assert np.isnan(row["change_se"]) and row["run"]
    assert not of(table, "dpo", 0.3)["improved"]
    assert set(table["arm"]) == {"dpo", "ppo"}  # the SFT model trains on nothing here


@pytest.mark.parametrize("log", [[], [{"training_loss": None, "at": "start"}], [{"loss": 0.1}]])
def test_a_log_that_does_not_tell_leaves_null(builder, tmp_path, log):
    builder.metrics[policy(builder, "dpo", 0.1)] = log
    table = training_objectives(load(builder.write(tmp_path / "s")))
    row = of(table, "dpo", 0.1)
    assert row[["start", "end", "improved"]].isna().all()
    text = findings.trained(table)
    assert f"of {len(table) - 1} trained policies" in text
    assert "for 1 it is not known (DPO 0.1)" in text


def test_a_reward_is_paired_with_the_sft_model_of_the_same_reward_model(builder, tmp_path):
    study = load(builder.write(tmp_path / "s"))
    row = of(training_objectives(study), "ppo", 0.3)
    own = study.scores[(study.scores["arm"] == "ppo") & (study.scores["setting"] == 0.3)]
    own = own[own["step"] == 60].groupby("prompt_id")[["reward_proxy", "kl_rb"]].mean()
    sft = study.scores[study.scores["arm"] == "sft"].groupby("prompt_id")["reward_proxy"].mean()
    end = own["reward_proxy"] - 0.3 * own["kl_rb"]
    assert (row["objective"], row["better"]) == ("reward model score - c KL", "higher")
    assert row["start"] == pytest.approx(sft.mean()) and row["end"] == pytest.approx(end.mean())
    assert row["change_se"] == pytest.approx((end - sft).std(ddof=1) / np.sqrt(len(end)))
    assert row["improved"] == (row["end"] > row["start"])


def test_without_the_reward_models_sft_run_the_start_is_null(builder, tmp_path):
    builder.keep("ppo")
    row = of(training_objectives(load(builder.write(tmp_path / "s"))), "ppo", 0.3)
    assert row[["start", "change_se", "improved"]].isna().all() and not np.isnan(row["end"])


def test_the_coefficient_is_the_logs_last_where_the_setting_is_a_target(full):
    study = load(full["report"].parent)
    table = training_objectives(study)
    row = of(table, "ppo-adaptive", 6.0)
    own = study.scores[study.scores["run"] == row["run"]]
    own = own[own["step"] == own["step"].max()]
    assert row["end"] == pytest.approx((own["reward_proxy"] - 0.1 * own["kl_rb"]).mean())
    gold = of(table, "ppo-gt", 0.3)
    own = study.scores[study.scores["run"] == gold["run"]]
    own = own[own["step"] == own["step"].max()]
    assert gold["objective"] == "gold reward - c KL"
    assert gold["end"] == pytest.approx((own["reward_gold"] - 0.3 * own["kl_rb"]).mean())


def test_a_target_without_a_logged_coefficient_is_null(tmp_path):
    builder = Builder.full(prompts=4, samples=2, reference=8)
    builder.metrics[policy(builder, "ppo-adaptive", 6.0)] = [{"objective/kl": 3.0}]
    row = of(training_objectives(load(builder.write(tmp_path / "s"))), "ppo-adaptive", 6.0)
    assert row[["end", "improved"]].isna().all()


def test_the_sentence_counts_and_names_few(full):
    table = pd.read_csv(full["report"].parent / "tables" / "training.csv")
    assert set(table["arm"]) >= {"preferred-ft", "kto", "rloo"} and "sft" not in set(table["arm"])
    worse = table.assign(improved=False, variant="", seed=0)
    text = findings.trained(worse)
    assert text.startswith("0 of 69 trained policies") and "and 66 more" in text
    assert findings.trained(table.head(0)) == ""
    page = full["report"].read_text()
    assert "Did training improve what it was for?" in page and "All 69 policies" in page
