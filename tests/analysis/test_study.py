"""Only what one meter judged is compared; what is missing is named."""

import json

import pandas as pd
import pytest

from analysis.study import load
from pipelines.shared.errors import UserError


def test_scores_say_whose_they_are(builder, tmp_path):
    study = load(builder.write(tmp_path / "s"))
    assert set(study.scores["arm"]) == {"sft", "dpo", "ppo"}
    ppo = study.scores[(study.scores["arm"] == "ppo") & (study.scores["setting"] == 0.1)]
    assert set(ppo["stage"]) == {"ppo"}
    assert set(ppo["run"]) == {builder.evaluation("ppo", 0.1)[:8]}
    assert sorted(ppo["step"].unique()) == [20, 40, 60]
    assert study.metrics[builder.gold][0]["held_out_accuracy"] == 0.78


@pytest.mark.parametrize("upstream", ["sft", "gold", "corpus"])
def test_refuses_other_shared_steps(builder, tmp_path, upstream):
    odd = builder.records[builder.evaluation("ppo", 0.1)]["identity"]["upstream"]
    odd[upstream] = "f" * 64
    with pytest.raises(UserError, match=rf"upstream {upstream} differs: .*ffffffff in PPO 0\.1"):
        load(builder.write(tmp_path / "s"))


def test_refuses_another_evaluation_recipe(builder, tmp_path):
    recipe = builder.records[builder.evaluation("dpo", 0.3)]["identity"]["recipe"]
    recipe["evaluation"]["temperature"] = 0.7
    with pytest.raises(
        UserError, match=r"evaluation\.temperature differs: .*0\.7 in DPO 0\.3 \(seed"
    ):
        load(builder.write(tmp_path / "s"))


def test_refuses_a_recipe_that_lacks_a_field(builder, tmp_path):
    del builder.records[builder.evaluation("sft", None)]["identity"]["recipe"]["evaluation"][
        "split"
    ]
    with pytest.raises(UserError, match=r"evaluation\.split differs: missing in SFT"):
        load(builder.write(tmp_path / "s"))


def test_refuses_reference_samples_of_another_sft_model(builder, tmp_path):
    builder.records[builder.reference]["identity"]["upstream"]["sft"] = "e" * 64
    with pytest.raises(UserError, match=r"upstream sft differs.*eeeeeeee in the reference samples"):
        load(builder.write(tmp_path / "s"))


def test_refuses_other_prompts(builder, tmp_path):
    key = builder.evaluation("dpo", 1.0)
    table = builder.tables[key]
    builder.tables[key] = table[table["prompt_id"] != "p003"]
    with pytest.raises(UserError, match=r"prompt_id differs: DPO 1 \(seed 0\).*'p003'"):
        load(builder.write(tmp_path / "s"))


def test_refuses_other_temperature_in_the_scores(builder, tmp_path):
    builder.tables[builder.evaluation("ppo", 1.0)]["temperature"] = 0.5
    with pytest.raises(UserError, match=r"temperature differs: 0\.5 in PPO 1"):
        load(builder.write(tmp_path / "s"))


def test_refuses_unequal_numbers_of_samples(builder, tmp_path):
    key = builder.evaluation("ppo", 1.0)
    builder.tables[key] = builder.tables[key].iloc[1:]
    with pytest.raises(UserError, match=r"PPO 1 .*not equally many"):
        load(builder.write(tmp_path / "s"))


def test_refuses_the_evaluation_of_another_policy(builder, tmp_path):
    builder.arms[1]["policy"] = builder.arms[2]["policy"]
    with pytest.raises(UserError, match=r"of DPO 0\.05 \(seed 0\) is not of the policy"):
        load(builder.write(tmp_path / "s"))


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_missing_files_are_named(builder, tmp_path, suffix):
    folder = builder.write(tmp_path / "s")
    path = folder / "runs" / f"{builder.evaluation('ppo', 0.3)[:8]}.{suffix}"
    path.unlink()
    with pytest.raises(
        UserError, match=rf"{path.name}.*is missing: .*rlhf-vs-dpo run toy --scale mini"
    ):
        load(folder)


def test_missing_or_incomplete_manifest(builder, tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        load(tmp_path)
    folder = builder.write(tmp_path / "s")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["gold"], manifest["arms"][0]["variant"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"lacks gold, arms\[0\]\.variant"):
        load(folder)


def test_a_record_that_is_another_is_refused(builder, tmp_path):
    folder = builder.write(tmp_path / "s")
    path = folder / "runs" / f"{builder.sft[:8]}.json"
    path.write_text(path.read_text().replace(builder.sft, builder.gold))
    with pytest.raises(UserError, match="is the record of"):
        load(folder)


def test_a_record_that_was_changed_is_refused(builder, tmp_path):
    folder = builder.write(tmp_path / "s")
    path = folder / "runs" / f"{builder.evaluation('dpo', 0.3)[:8]}.json"
    record = json.loads(path.read_text())
    record["identity"]["recipe"]["evaluation"]["temperature"] = 0.7
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"{path.name} was changed"):
        load(folder)


def test_a_table_with_other_columns_is_refused(builder, tmp_path):
    builder.tables[builder.reference] = pd.DataFrame({"x": [1]})
    with pytest.raises(UserError, match=r"not a reference_scores table \(.*missing columns"):
        load(builder.write(tmp_path / "s"))


@pytest.mark.parametrize("arm", ["dpo", "reference"])
def test_scores_are_those_that_the_record_vouches_for(builder, tmp_path, arm):
    folder = builder.write(tmp_path / "s")
    key = builder.reference if arm == "reference" else builder.evaluation(arm, 0.3)
    path = folder / "runs" / f"{key[:8]}.parquet"
    builder.tables[key].assign(reward_gold=99.0).to_parquet(path)
    with pytest.raises(UserError, match=rf"{path.name} is not the file that .*json vouches for"):
        load(folder)
    record = json.loads(path.with_suffix(".json").read_text())
    del record["tables"]
    path.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"{key[:8]}\.json vouches for no scores\.parquet"):
        load(folder)


@pytest.mark.parametrize("field, value", [("version", 2), ("assets", {"judge": "a" * 64})])
def test_refuses_evaluations_of_another_version_or_assets(builder, tmp_path, field, value):
    builder.records[builder.evaluation("ppo", 0.3)]["identity"][field] = value
    with pytest.raises(UserError, match=rf"footing, {field} differs: .* in PPO 0\.3 \(seed 0\)"):
        load(builder.write(tmp_path / "s"))


def test_reference_samples_have_a_version_of_their_own(builder, tmp_path):
    builder.records[builder.reference]["identity"]["version"] = 7
    load(builder.write(tmp_path / "s"))


def test_refuses_a_policy_that_does_not_come_from_the_shared_sft_model(builder, tmp_path):
    other = builder.add("sft", "other", {}, 1, 1)
    policy = next(a["policy"] for a in builder.arms if a["arm"] == "dpo" and a["setting"] == 0.1)
    builder.records[policy]["identity"]["upstream"] = {"sft": other}
    with pytest.raises(UserError, match=r"the policy of DPO 0\.1 \(seed 0\) does not come from"):
        load(builder.write(tmp_path / "s"))


def test_variants_may_have_reward_models_of_their_own(builder, tmp_path):
    judge = builder.add("reward-model", "swept", {"sft": builder.sft}, 20, 1, epochs={"n": 2})
    recipe = {"ppo": {"kl_coef": 0.1, "swept": 1}}
    upstream = {"sft": builder.sft, "reward_model": judge}
    policy = builder.add("ppo", "swept", upstream, 100, 1, **recipe)
    variant = "reward_model.epochs=2"
    builder.arm("ppo", 0.1, 0, policy, judge, 2.0, 3.0, variant=variant)
    assert variant in set(load(builder.write(tmp_path / "s")).scores["variant"])


def test_refuses_an_arm_that_is_listed_twice(builder, tmp_path):
    builder.arms[2] |= {"arm": "dpo", "setting": builder.arms[1]["setting"]}
    with pytest.raises(UserError, match=r"lists DPO 0\.05 \(seed 0\) twice"):
        load(builder.write(tmp_path / "s"))


def test_an_arm_that_the_catalogue_does_not_have_is_refused(builder, tmp_path):
    builder.catalogue = [row for row in builder.catalogue if row["arm"] != "dpo"]
    with pytest.raises(UserError, match=r"manifest\.json has no dpo in its catalogue"):
        load(builder.write(tmp_path / "s"))


@pytest.mark.parametrize("field, part", [("family", "catalogue"), ("step", "estimates")])
def test_catalogue_and_estimates_are_complete(builder, tmp_path, field, part):
    del getattr(builder, part)[0][field]
    if part == "estimates":
        builder.refresh = lambda: None
    with pytest.raises(UserError, match=rf"lacks {part}\[0\]\.{field}"):
        load(builder.write(tmp_path / "s"))


@pytest.mark.parametrize("field, value", [("temperature", 0.7), ("max_new_tokens", 5)])
def test_refuses_training_that_samples_otherwise(builder, tmp_path, field, value):
    policy = next(a["policy"] for a in builder.arms if a["arm"] == "ppo" and a["setting"] == 0.3)
    builder.records[policy]["identity"]["recipe"]["sampling"][field] = value
    with pytest.raises(
        UserError,
        match=rf"footing, sampling\.{field} differs: .*; {value} in PPO 0\.3 \(seed 0\) \(ppo\)",
    ):
        load(builder.write(tmp_path / "s"))


def test_refuses_pairs_of_other_completions(builder, tmp_path):
    upstream = {"sft": builder.sft}
    recipe = {"sampling": {"prompts": 8, "completions": 4, "max_new_tokens": 20}}
    recipe["sampling"]["temperature"] = 1.0
    other = builder.add("completions", "other", upstream, 12, 1, seed=5, **recipe)
    pairs = builder.add("pairs", "other", {"completions": other, "gold": builder.gold}, 1, 0)
    policy = next(a["policy"] for a in builder.arms if a["arm"] == "dpo" and a["setting"] == 0.1)
    made = builder.records[policy]["identity"]["upstream"]
    made |= {"pairs": pairs}
    del made["reference_logprobs"]
    with pytest.raises(
        UserError, match=r"completions of the pairs differs: .* in DPO 0\.1 \(seed 0\)"
    ):
        load(builder.write(tmp_path / "s"))


def test_only_curves_that_can_be_made_are_estimated(builder, tmp_path):
    builder.estimates[0]["arm"] = "dpo"
    with pytest.raises(UserError, match=r"estimates dpo from samples .*: only best-of-n, "):
        load(builder.write(tmp_path / "s"))
