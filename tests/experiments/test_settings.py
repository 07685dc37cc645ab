"""--set, and what a study resolves to."""

import pytest

from experiments import settings
from experiments.comparison import resolve
from experiments.sentiment import MINI, SENTIMENT
from pipelines.shared.errors import UserError
from pipelines.shared.steps import Step


def steps_of(study, stage: str) -> list[Step]:
    return [step for step in study.steps() if step.stage == stage]


def test_values_take_the_type_of_their_field():
    given = settings.parse(["dpo.beta=0.05,1", "ppo.updates=3", "labels.noise=0"], MINI)
    assert given == {"dpo.beta": (0.05, 1.0), "ppo.updates": (3,), "labels.noise": (0.0,)}
    assert type(given["labels.noise"][0]) is float
    assert settings.apply(MINI, {"ppo.updates": 3}).arm("ppo").updates == 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dpo.bet=1", r"unknown setting 'dpo\.bet': did you mean 'dpo\.beta'\?"),
        ("dpo.beta", r"write it as section\.field=value"),
        ("dpo.beta=much", r"dpo\.beta=much: expected float"),
        ("ppo.updates=1.5", r"ppo\.updates=1\.5: expected int"),
        ("sft.epochs=1,2", r"all arms of one comparison share sft\.epochs"),
        ("dpo.beta=1,1.0", r"a value is repeated"),
    ],
)
def test_a_bad_setting_is_one_line(argument, message):
    with pytest.raises(UserError, match=message):
        settings.parse([argument], MINI)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "maxi"}, r"unknown scale 'maxi': did you mean 'mini'\?"),
        ({"arms": ["dop"]}, r"unknown arm 'dop': did you mean 'dpo'\?"),
        ({"seeds": 0}, r"--seeds 0: must be at least 1"),
        ({"assignments": ["dpo.beta=-1"]}, r"dpo\.beta = -1\.0: must be above 0"),
        ({"assignments": ["evaluation.split=test"]}, r"known: evaluation, validation"),
    ],
)
def test_a_bad_choice_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        resolve(SENTIMENT, **{"scale": "mini", **options})


def test_both_methods_stand_on_the_same_sft_and_the_same_pairs():
    study = resolve(SENTIMENT, "mini")
    (sft,), (pairs,) = steps_of(study, "sft"), steps_of(study, "pairs")
    policies = steps_of(study, "dpo") + steps_of(study, "ppo")
    assert len(policies) == 4 + 5
    for policy in policies:
        assert policy.upstream["sft"] is sft
        source = policy if policy.stage == "dpo" else policy.upstream["reward_model"]
        assert source.upstream["pairs"].fingerprint == pairs.fingerprint
    assert [run.setting for run in study.runs if run.arm == "ppo"] == [0.05, 0.1, 0.3, 1.0]
    assert [run.setting for run in study.runs if run.arm == "dpo"] == [0.05, 0.1, 0.3, 1.0, 5.0]


def test_rl_uses_the_prompts_of_the_pairs_and_none_of_the_evaluation():
    study = resolve(SENTIMENT, "mini")
    (ppo, *_), (completions,) = steps_of(study, "ppo"), steps_of(study, "completions")
    assert ppo.recipe["sampling"] == completions.recipe["sampling"]
    assert ppo.upstream["corpus"].fingerprint == completions.upstream["corpus"].fingerprint


def test_every_evaluation_is_the_same_but_for_the_policy():
    study = resolve(SENTIMENT, "mini")
    evaluations = [dict(run.evaluation.identity) for run in study.runs]
    for identity in evaluations:
        identity["upstream"] = {k: v for k, v in identity["upstream"].items() if k != "policy"}
    assert all(identity == evaluations[0] for identity in evaluations)


def test_seeds_vary_labels_reward_model_and_policy_but_not_the_sft_model():
    study = resolve(SENTIMENT, "mini", seeds=3)
    assert [len(steps_of(study, stage)) for stage in ("sft", "completions", "gold")] == [1, 1, 1]
    assert [len(steps_of(study, stage)) for stage in ("pairs", "reward-model")] == [3, 3]
    assert len(steps_of(study, "ppo")) == 3 * 4 and len(steps_of(study, "dpo")) == 3 * 5
    assert len(study.runs) == 3 * 10


def test_one_more_beta_adds_its_own_training_and_evaluation_and_nothing_else():
    before = {s.fingerprint for s in resolve(SENTIMENT, "mini").steps()}
    wider = resolve(SENTIMENT, "mini", assignments=["dpo.beta=0.05,0.1,0.3,1,3,5"])
    added = [step.stage for step in wider.steps() if step.fingerprint not in before]
    assert sorted(added) == ["dpo", "evaluation"]


def test_an_ablation_axis_reaches_only_the_arms_that_read_it():
    study = resolve(SENTIMENT, "mini", assignments=["dpo.learning_rate=1e-4,1e-3"])
    assert len(steps_of(study, "ppo")) == 4 and len(steps_of(study, "dpo")) == 10
    assert {run.variant for run in study.runs if run.arm == "ppo"} == {""}
    assert {run.variant for run in study.runs if run.arm == "dpo"} == {
        "dpo.learning_rate=0.0001",
        "dpo.learning_rate=0.001",
    }


def test_a_folder_never_holds_another_study():
    choices = [
        {},
        {"seeds": 3},
        {"arms": ["dpo"]},
        {"assignments": ["dpo.beta=0.5"]},
        {"assignments": ["dpo.beta=0.5,0.6"]},
    ]
    names = [resolve(SENTIMENT, "mini", **choice).folder_name for choice in choices]
    assert names[0] == "sentiment-mini" and len(set(names)) == len(names)
    long = [f"{section}.learning_rate=0.00012345678" for section in ("dpo", "ppo", "sft")]
    long += ["reward_model.learning_rate=0.00012345678", "dpo.epochs=3"]
    assert len(resolve(SENTIMENT, "mini", assignments=long).folder_name) < 40


def test_what_cannot_fit_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"must fit into model\.context = 32"):
        resolve(SENTIMENT, "mini", assignments=["sampling.max_new_tokens=500"])


def test_values_that_differ_in_a_late_digit_are_different_studies():
    first, second = (
        resolve(SENTIMENT, "mini", assignments=[f"dpo.beta={value}"]).folder_name
        for value in ("0.1234567", "0.1234568")
    )
    assert first != second


def test_the_order_and_repetition_of_arms_do_not_make_another_study():
    names = {
        resolve(SENTIMENT, "mini", arms=arms).folder_name
        for arms in (None, ["ppo", "dpo"], ["dpo", "ppo", "ppo"], ["sft", "dpo", "ppo"])
    }
    assert names == {"sentiment-mini"}


def test_the_report_names_the_tuning_only_where_it_was_used():
    assert resolve(SENTIMENT, "mini").manifest()["tuning"] == "sentiment-tuning"
    for changed in ("dpo.learning_rate=1e-5", "dpo.learning_rate=1e-5,1e-2"):
        assert resolve(SENTIMENT, "mini", assignments=[changed]).manifest()["tuning"] == ""
    assert resolve(SENTIMENT, "smoke").manifest()["tuning"] == ""


def test_deviations_state_what_was_run():
    smoke = {
        row["item"]: row["here"] for row in resolve(SENTIMENT, "smoke").manifest()["deviations"]
    }
    assert "1 x 32" in smoke["model"] and "x 32 prompts" in smoke["pairs"]
