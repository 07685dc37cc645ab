"""The arms: what can be registered, what an arm may be made from, and what is refused."""

import dataclasses
from typing import ClassVar

import pytest

from experiments import plugins
from experiments.comparison import complete, resolve
from experiments.sentiment import SENTIMENT
from pipelines import arms
from pipelines.arms import ARMS, Arm
from pipelines.arms.arm import code_of
from pipelines.dpo.specs import KTOSpec
from pipelines.shared.errors import UserError
from pipelines.shared.specs import Spec, sections, setting
from pipelines.shared.steps import closure

HERE = "experiments.sentiment"  # any module outside pipelines


@dataclasses.dataclass(frozen=True)
class OwnSpec(Spec):
    section: ClassVar[str] = "own"
    strength: float = setting(0.5, "how much", above=0)
    kind: str = setting("soft", "which")


OWN = Arm(
    name="own-arm",
    family="own",
    summary="an arm of a test",
    policy=lambda given: given.step("own-arm", given.protocol.arm("own"), f"{HERE}:train", "pairs"),
    settings=OwnSpec(),
    sweep=("own.strength", (0.5, 2.0)),
)


@pytest.fixture(autouse=True)
def known():
    """Leave the registry as it was."""
    before = dict(ARMS)
    yield
    ARMS.clear()
    ARMS.update(before)


def test_all_arms_of_the_literature_are_there_by_their_names():
    assert list(ARMS) == [
        "sft",
        "preferred-ft",
        "unlikelihood",
        "ppo",
        "ppo-adaptive",
        "ppo-gt",
        "reinforce",
        "rloo",
        "grpo",
        "dpo",
        "dpo-conservative",
        "dpo-robust",
        "dpo-hinge",
        "ipo",
        "ipo-mean",
        "kto",
        "simpo",
        "orpo",
        "online-dpo",
        "online-dpo-gt",
        "best-of-n",
        "best-of-n-proxy",
        "optimum",
    ]


def test_every_module_says_its_objective_its_sweep_and_its_cost():
    import importlib
    import pkgutil

    modules = [
        importlib.import_module(f"pipelines.arms.{found.name}")
        for found in pkgutil.iter_modules(arms.__path__)
        if found.name not in ("arm", "pairs")
    ]
    assert len(modules) == len(ARMS) - 2  # best of n and online DPO are two arms each
    for module in modules:
        for word in ("\nObjective", "\nSwept:", "\nCost:"):
            assert word in module.__doc__, (module.__name__, word)


def test_the_papers_own_values_are_swept():
    values = {name: ARMS[name].sweep[1] for name in ("unlikelihood", "ppo-adaptive", "dpo")}
    assert values["unlikelihood"] == (0.05, 0.1, 0.5, 1.0)
    assert values["ppo-adaptive"] == (3.0, 6.0, 9.0, 12.0)
    assert {0.05, 0.1, 1.0, 5.0} <= set(values["dpo"])


@pytest.mark.parametrize("scale", ["smoke", "mini"])
def test_all_arms_start_from_one_sft_model_and_the_same_pairs(scale):
    study = resolve(SENTIMENT, scale, ["all"])
    assert study.folder_name == f"sentiment-{scale}+arms=all"
    assert {run.arm for run in study.runs} | {e.arm for e in study.estimates} == set(ARMS)
    for stage in ("sft", "corpus", "gold", "completions", "pairs", "reward-model"):
        assert len({s.fingerprint for s in study.steps() if s.stage == stage}) == 1, stage
    for run in study.runs:
        below = {step.stage for step in closure([run.policy])}
        assert "sft" in below
        if run.arm != "sft":
            assert ("pairs" in below) != run.arm.endswith("-gt")
    assert len({run.policy.fingerprint for run in study.runs}) == len(study.runs)


def test_arms_without_a_reference_or_a_reward_model_do_not_pay_for_them():
    study = resolve(SENTIMENT, "smoke", ["all"])
    stages = {run.arm: {step.stage for step in closure([run.policy])} for run in study.runs}
    for arm in ("simpo", "orpo", "unlikelihood", "preferred-ft"):
        assert "reference-logprobs" not in stages[arm]
    for arm, below in stages.items():
        learnt = arm in ("ppo", "ppo-adaptive", "reinforce", "rloo", "grpo", "online-dpo")
        assert ("reward-model" in below) == learnt, arm
    for arm in ("dpo", "ipo", "kto"):
        assert "reference-logprobs" in stages[arm]


def test_the_default_arms_are_as_before_and_the_folder_says_nothing():
    study = resolve(SENTIMENT, "mini")
    assert [arm.name for arm in study.arms] == ["sft", "ppo", "dpo", "best-of-n", "optimum"]
    assert study.folder_name == "sentiment-mini"
    assert resolve(SENTIMENT, "mini", ["dpo", "ppo"]).folder_name == "sentiment-mini"
    assert resolve(SENTIMENT, "mini", ["ipo"]).folder_name == "sentiment-mini+arms=ipo"


def test_an_arms_fixed_settings_hold_and_its_sweep_is_its_own():
    runs = resolve(SENTIMENT, "smoke", ["ppo", "ppo-adaptive", "ppo-gt"]).runs
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in ("ppo", "ppo-adaptive")}
    controls = {
        arm: {run.policy.recipe["ppo"].kl_control for run in found} for arm, found in by_arm.items()
    }
    assert controls == {"ppo": {"fixed"}, "ppo-adaptive": {"adaptive"}}
    assert [run.policy.recipe["ppo"].kl_target for run in by_arm["ppo-adaptive"]] == [3, 6, 9, 12]
    [truth] = {tuple(run.policy.upstream) for run in runs if run.arm == "ppo-gt"}
    assert "gold" in truth and "reward_model" not in truth


def test_an_own_arm_is_swept_set_and_listed_like_any_other():
    arms.register(OWN)
    study = resolve(SENTIMENT, "smoke", ["own-arm"], assignments=["own.strength=1,3"])
    assert [run.setting for run in study.runs if run.arm == "own-arm"] == [1.0, 3.0]
    assert study.manifest()["catalogue"][-1]["arm"] == "own-arm"
    assert "own-arm" in SENTIMENT.choices()
    assert complete(SENTIMENT.scales["smoke"]).arm("own") == OwnSpec()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "dpo"}, "arm dpo is registered already"),
        ({"name": "Own Arm"}, "lower-case letters"),
        ({"name": ""}, "lower-case letters"),
        ({"family": "mine"}, "family = 'mine' is not one of"),
        ({"trains_on": "hope"}, "trains_on = 'hope' is not one of"),
        ({"needs": ("rationale",)}, "needs = "),
        ({"policy": None}, "give either policy or estimate"),
        ({"sweep": ("own.weight", (1.0,))}, "not one of its settings"),
        ({"sweep": ("dpo.beta", (1.0,))}, "not one of its settings"),
        ({"sweep": ("own.strength", ())}, "over no values"),
        ({"sweep": ("own.strength", (-1.0,))}, r"own\.strength = -1\.0: must be above 0"),
        ({"sweep": ("own.strength", ("much",))}, r"own\.strength = 'much': expected float"),
        ({"sweep": ("own.kind", ("soft",))}, "which is not a number"),
        ({"fixed": {"own.typo": 1}}, r"fixes own\.typo, which is not one of its settings"),
        ({"fixed": {"dqo.beta": 1.0}}, r"fixes dqo\.beta, which is not one of its settings"),
        ({"fixed": {"own.strength": -1.0}}, r"own\.strength = -1\.0: must be above 0"),
        ({"policy": None, "estimate": lambda given: given.reference_samples}, "estimate is for"),
    ],
)
def test_an_arm_that_cannot_be_is_refused_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as error:
        arms.register(dataclasses.replace(OWN, **change))
    assert "\n" not in str(error.value)
    assert "own-arm" not in ARMS


def test_a_duplicate_or_a_borrowed_section_is_refused():
    arms.register(OWN)
    with pytest.raises(UserError, match="own-arm is registered already"):
        arms.register(OWN)

    @dataclasses.dataclass(frozen=True)
    class Borrowed(Spec):
        section: ClassVar[str] = "ppo"
        strength: float = setting(0.5, "how much", above=0)

    with pytest.raises(UserError, match="section ppo is that of arm ppo"):
        arms.register(dataclasses.replace(OWN, name="other", settings=Borrowed(), sweep=None))


def test_an_arm_that_needs_margins_is_refused_without_them():
    arms.register(dataclasses.replace(OWN, needs=("margins",)))
    assert resolve(SENTIMENT, "smoke", ["own-arm"])
    with pytest.raises(UserError, match="own-arm needs pairs with margins") as error:
        resolve(SENTIMENT, "smoke", ["own-arm"], assignments=["labels.margins=false"])
    assert "\n" not in str(error.value)


def test_an_arm_that_starts_elsewhere_is_refused():
    def elsewhere(given):
        return dataclasses.replace(given.completions, upstream={"corpus": given.corpus})

    arms.register(dataclasses.replace(OWN, policy=elsewhere))
    with pytest.raises(UserError, match="does not start from the shared SFT model"):
        resolve(SENTIMENT, "smoke", ["own-arm"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("def (", "SyntaxError"),
        ("from pipelines.arms import ARMS, register\nregister(ARMS['dpo'])", "dpo is registered"),
    ],
)
def test_a_file_that_fails_is_named_in_one_line(tmp_path, text, message):
    file = tmp_path / f"own_{abs(hash(text))}.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        plugins.load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.py", "own-arm.py", "json.py"])
def test_a_file_that_cannot_be_a_module_is_refused(tmp_path, name):
    if name != "missing.py":
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="--load"):
        plugins.load(tmp_path / name)


def test_settings_of_arms_that_are_not_run_are_refused():
    with pytest.raises(UserError, match=r"ipo\.beta: none of the arms .* add --arms ipo"):
        resolve(SENTIMENT, "smoke", assignments=["ipo.beta=0.1"])


def test_every_scale_sets_every_trained_arm():
    for scale, protocol in SENTIMENT.scales.items():
        missing = sections(complete(protocol)).keys() - sections(protocol).keys()
        assert not missing, (scale, missing)


@pytest.mark.parametrize("name", ["labels", "arm", "arms", "", "two words"])
def test_a_section_that_the_protocol_has_itself_is_refused(name):
    @dataclasses.dataclass(frozen=True)
    class Taken(Spec):
        section: ClassVar[str] = name
        strength: float = setting(0.5, "how much", above=0)

    with pytest.raises(UserError, match="must be a Python name that the protocol does not use"):
        arms.register(dataclasses.replace(OWN, settings=Taken(), sweep=None))


def test_the_settings_of_another_arm_are_borrowed_as_they_are_or_not_at_all():
    with pytest.raises(UserError, match="section kto is that of arm kto, whose settings are other"):
        arms.register(dataclasses.replace(OWN, settings=KTOSpec(epochs=9), sweep=None))
    arms.register(dataclasses.replace(OWN, settings=KTOSpec(), sweep=None))


def test_an_own_arms_code_is_a_part_of_what_it_is(tmp_path, monkeypatch):
    """Edited, it is run again."""
    file = tmp_path / "edited_arm.py"
    monkeypatch.syspath_prepend(tmp_path)
    found = set()
    for text in ("def train(context): ...", "def train(context): pass"):
        file.write_text(text)
        assert code_of("edited_arm:train").keys() == {"code of edited_arm:train"}
        found |= set(code_of("edited_arm:train").values())
    assert len(found) == 2
    assert code_of("pipelines.dpo.family:train") == {}
    arms.register(OWN)
    [first, _] = [r for r in resolve(SENTIMENT, "smoke", ["own-arm"]).runs if r.arm == "own-arm"]
    assert f"code of {HERE}:train" in first.policy.identity["assets"]
    assert resolve(SENTIMENT, "smoke", ["own-arm"]).manifest()["assets"]  # the data file's alone


def test_two_arms_that_are_one_are_refused():
    def kto(given):
        return given.step(
            "kto",
            given.protocol.arm("kto"),
            "pipelines.dpo.family:train",
            "pairs",
            "reference_logprobs",
        )

    twin = dataclasses.replace(
        OWN, name="twin", policy=kto, settings=KTOSpec(), sweep=("kto.beta", (0.05, 0.1))
    )
    arms.register(twin)
    with pytest.raises(UserError, match="arm twin makes the very policy of arm kto"):
        resolve(SENTIMENT, "smoke", ["kto", "twin"])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda given: given.step("own-arm", given.protocol.arm("dqo"), HERE), "KeyError: 'dqo'"),
        (lambda given: given.pears, "AttributeError: .*pears"),
        (lambda given: given.step("pairs", given.protocol.arm("own"), HERE), "cannot be called"),
        (lambda given: given.step("a", given.protocol.arm("own"), "nowhere:go"), "ModuleNotFound"),
    ],
)
def test_an_arm_whose_own_function_fails_is_one_line(policy, message):
    arms.register(dataclasses.replace(OWN, policy=policy))
    with pytest.raises(UserError, match=message) as error:
        resolve(SENTIMENT, "smoke", ["own-arm"])
    assert "\n" not in str(error.value)


def test_what_one_value_is_set_to_holds_for_every_arm_that_reads_it():
    """Whichever arms are beside it: PPO sweeps kl_coef, the adaptive arm starts from it."""
    for names in (["ppo-adaptive"], ["ppo", "ppo-adaptive"]):
        runs = resolve(SENTIMENT, "smoke", names, assignments=["ppo.kl_coef=0.02"]).runs
        adaptive = [run.policy.recipe["ppo"].kl_coef for run in runs if run.arm == "ppo-adaptive"]
        assert adaptive == [0.02] * 4


def test_what_an_arm_has_fixed_cannot_be_set():
    for arm, value in (("ppo-adaptive", "fixed"), ("ppo", "adaptive"), ("ppo-gt", "adaptive")):
        with pytest.raises(UserError, match=rf"{arm} is what it is by ppo\.kl_control"):
            resolve(SENTIMENT, "smoke", [arm], assignments=[f"ppo.kl_control={value}"])


def test_values_that_only_fit_together_are_taken_together():
    study = resolve(
        SENTIMENT,
        "smoke",
        ["ppo"],
        assignments=["ppo.rollouts=6", "ppo.minibatches=2,3", "ppo.kl_coef=0.1"],
    )
    assert len([run for run in study.runs if run.arm == "ppo"]) == 2
