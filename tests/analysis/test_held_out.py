"""Who orders pairs as people did: worked by hand, and read back only where all judged the same."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from analysis.formats import in_words_of
from analysis.judging.held_out import held_out_accuracy
from analysis.studies.held_out import read_held_out
from pipelines.evaluate.schema import conform
from pipelines.shared.errors import UserError


def view(arm, log_ratio, seed=0, proxy=(1.0, -1.0, 0.0), setting=0.1):
    """Three pairs of two prompts, the first prompt having two of them."""
    return pd.DataFrame(
        {
            "prompt_id": ["p", "p", "q"],
            "line": [1, 2, 3],
            "reward_proxy": proxy,
            "reward_gold": [2.0, 0.5, -1.0],
            "length": [3, -1, 0],
            "log_ratio": log_ratio,
            "arm": arm,
            "setting": np.nan if arm == "sft" else setting,
            "seed": seed,
            "variant": "",
            "reward_model": f"rm{seed}",
        }
    )


def test_accuracy_is_the_mean_over_prompts_of_their_shares():
    pairs = pd.concat([view("sft", [0.0] * 3), view("dpo", [1.0, -2.0, 0.5])])
    table = held_out_accuracy(pairs).set_index("judge")
    # dpo: (1 + 0) / 2 of p and 1 of q; the reward model 1/2 and, for a tie, 1/2; gold 1 and 0.
    assert table["accuracy"].to_dict() == pytest.approx(
        {"policy": 0.75, "reward-model": 0.5, "gold": 0.5, "length": 0.5}
    )
    assert table.loc["policy", "arm"] == "dpo" and table["pairs"].tolist() == [3] * 4
    assert table["prompts"].tolist() == [2] * 4 and table["seeds"].tolist() == [1] * 4
    # Prompts 0.5 and 1: a standard error of 0.25, t of one degree of freedom 12.7; cut at 0 and 1.
    assert table.loc["policy", ["ci_low", "ci_high"]].tolist() == [0, 1]


def test_seeds_are_averaged_and_the_judge_is_one():
    second = view("dpo", [1.0, 1.0, 1.0], seed=1, proxy=(1.0, 1.0, 1.0))
    pairs = pd.concat([view("sft", [0.0] * 3), view("dpo", [1.0, -2.0, 0.5]), second])
    table = held_out_accuracy(pairs).set_index("judge")
    assert table.loc["policy", "accuracy"] == pytest.approx((0.75 + 1) / 2)
    assert table.loc["reward-model", "accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert table["seeds"].to_dict() == {"policy": 2, "reward-model": 2, "gold": 1, "length": 1}


@pytest.fixture
def stored(tmp_path):
    """A folder with the held-out steps of an SFT model and of a DPO policy; (folder, manifest,
    records)."""
    runs = tmp_path / "runs"
    runs.mkdir()
    records = {}

    def keep(name, table, schema, **upstream):
        full = name.ljust(64, "0")
        conform(table, schema).to_parquet(runs / f"{full[:8]}.parquet")
        digest = hashlib.sha256((runs / f"{full[:8]}.parquet").read_bytes())
        records[full] = {
            "fingerprint": full,
            "stage": schema,
            "label": name,
            "identity": {"upstream": upstream},
            "tables": {"scores.parquet": digest.hexdigest()},
        }
        return full

    pairs = pd.DataFrame({"prompt_id": ["p", "q"], "line": [1, 2]})
    start = pairs.assign(logp_chosen=[-4.0, -5.0], logp_rejected=[-3.0, -5.0])
    moved = pairs.assign(logp_chosen=[-3.0, -6.0], logp_rejected=[-4.0, -5.5])
    judged = pairs.assign(reward_proxy=[1.0, 2.0], reward_gold=[0.0, -1.0], length=[1, 2])
    views = {
        "sft": keep("aa", start, "held_out_logprobs", policy="SFT", sft="SFT"),
        "dpo": keep("bb", moved, "held_out_logprobs", policy="DPO", sft="SFT"),
    }
    rewards = keep("cc", judged, "held_out_rewards", reward_model="RM", gold="GOLD", sft="SFT")
    records["ref"] = {"identity": {"upstream": {"sft": "SFT"}}}
    named = {"seed": 0, "variant": ""}
    arms = [
        {"arm": "sft", "setting": None, "policy": "SFT", **named},
        {"arm": "dpo", "setting": 0.1, "policy": "DPO", **named},
    ]
    manifest = {
        "arms": arms,
        "reference_samples": "ref",
        "gold": "GOLD",
        "held_out": [{**arm, "step": views[arm["arm"]], "rewards": rewards} for arm in arms],
    }
    return tmp_path, manifest, records


def test_log_ratios_are_to_the_sft_model(stored):
    table = read_held_out(*stored, "again").set_index(["arm", "line"])
    assert table.loc["sft", "log_ratio"].tolist() == [0, 0]
    # p: (-3 + 4) - (-4 + 3) = 2; q: (-6 + 5) - (-5.5 + 5) = -0.5
    assert table.loc["dpo", "log_ratio"].tolist() == [2, -0.5]
    assert table.loc["dpo", "reward_proxy"].tolist() == [1, 2]
    assert set(table["reward_model"]) == {"RM"}


def test_without_people_there_is_nothing(stored):
    folder, manifest, records = stored
    assert read_held_out(folder, {**manifest, "held_out": []}, records, "again") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, r: m["held_out"].pop(), "does not have each of its arms once"),
        (lambda m, r: m["held_out"][1].update(step="zz"), "does not list it in steps"),
        (lambda m, r: m["arms"][1].update(policy="OTHER"), "by the policy DPO"),
        (lambda m, r: m.update(gold="OTHER"), "by the gold GOLD"),
        (lambda m, r: r["ref"]["identity"]["upstream"].update(sft="X"), "by the sft SFT"),
    ],
)
def test_what_was_judged_otherwise_is_refused(stored, change, message):
    manifest, records = json.loads(json.dumps(stored[1:]))
    change(manifest, records)
    with pytest.raises(UserError, match=message):
        read_held_out(stored[0], manifest, records, "again")


def test_a_study_without_a_gold_reward_does_not_speak_of_one():
    judged = {"judge": "judge's reward"}
    text = "Gold reward against KL, by the gold reward"
    assert in_words_of(judged, text) == "Judge's reward against KL, by the judge's reward"
    assert in_words_of({"judge": ""}, text) == in_words_of({}, text) == text
