"""The FLOPs that every stage's record states, against torch's own counter around its function."""

import bz2
import dataclasses
import random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.exact import EXACT
from experiments.ppo_details import PPO_DETAILS
from experiments.sentiment import SENTIMENT
from pipelines.arms import ARMS
from pipelines.shared import corpus
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import closure, run_step

pytestmark = pytest.mark.slow
TOLERANCE = 0.05
FREE = {"corpus", "gold", "pairs"}  # no network in them
MANY = {"evaluation", "temperatures", "oracle-evaluation"}  # one for every policy, all alike
TINY = (
    *("corpus.max_reviews=300", "corpus.vocab_size=300", "sft.epochs=1", "model.width=48"),
    *("sampling.prompts=12", "evaluation.prompts=8", "evaluation.samples=2"),
    *("evaluation.reference_samples=4", "reward_model.epochs=1", "ppo.updates=2"),
    *("reinforce.updates=2", "rloo.updates=2", "grpo.updates=2", "online_dpo.rounds=2"),
)
TINY_TASK = (
    *("ppo.kl_coef=0.3", "dpo.beta=0.3", "rloo.kl_coef=0.3", "grpo.kl_coef=0.3"),
    *("online_dpo.beta=0.3", "ppo.updates=1", "rloo.updates=1", "grpo.updates=1"),
    *("online_dpo.rounds=1", "online_dpo.epochs=1", "online_dpo.pairs=512", "dpo.epochs=1"),
)
SMALL = ("reward_model.epochs=2", "labels.at_most=512", "task.reference_sequences=512")


def in_place(acc_shape, a_shape, b_shape, **unused):
    """Of `acc.addmm_(a, b)`, which the counter does not know."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})


def made_up_reviews() -> bytes:
    """As the asset's file: reviews of words that tell fresh from rotten."""
    draw = random.Random(0)
    words = {"fresh": "fine moving funny warm", "rotten": "dull flat tired cold"}
    common = "a the film is and plot of with more than it its in cast".split()
    rows = ["category,text,movie_name,has_plot_and_reviews"]
    for number in range(300):
        kind = ("fresh", "rotten")[number % 2]
        text = draw.choices(common + words[kind].split(), k=draw.randint(8, 14))
        rows.append(f"{kind},{' '.join(text)} {number},m,True")
    return bz2.compress("\n".join(rows).encode())


def steps() -> list:
    """One step of every stage, of every arm: one setting, one evaluation."""
    swept = {arm.sweep[0]: arm.sweep[1][1] for arm in ARMS.values() if arm.sweep}
    given = [f"{name}={value}" for name, value in swept.items()]
    experiment = dataclasses.replace(SENTIMENT, temperatures=(0.0, 1.0))
    study = experiment.resolve("smoke", arms=["all"], assignments=[*given, *TINY])
    oracle = EXACT.resolve("mini", arms=["all"], assignments=[*TINY_TASK, *SMALL])
    details = PPO_DETAILS.resolve("smoke", assignments=["ppo.updates=1", *SMALL])
    ablated = next(step for step in details.steps() if step.stage == "oracle-ablation")
    found = {}
    for step in [*study.steps(), *oracle.steps(), ablated]:
        judged = "" if step.stage in MANY else " ".join(step.upstream)
        found.setdefault((step.stage, judged), step)
    return closure(list(found.values()))


STEPS = steps()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Record and counted FLOPs of each step, by fingerprint."""
    results, threads = tmp_path_factory.mktemp("results"), torch.get_num_threads()
    torch.set_num_threads(1)
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "read", lambda asset, cache: made_up_reviews())
        for step in STEPS:
            # The counter does not see the fused CPU attention; its plain form does the same.
            with sdpa_kernel(SDPBackend.MATH), counter() as counted:
                record = run_step(step, Runtime(results=results, cache=results))
            done[step.fingerprint] = record, counted.get_total_flops()
    torch.set_num_threads(threads)
    return done


def test_every_stage_is_here():
    stages = {step.stage for step in STEPS}
    trained = {arm.name for arm in ARMS.values() if arm.policy}
    # Variants of PPO and of online DPO are of their stage.
    assert trained - stages == {"ppo-gt", "ppo-adaptive", "online-dpo-gt"}
    shared = {"completions", "reward-model", "reference-logprobs", "evaluation", "proxy-scores"}
    assert stages >= FREE | shared | MANY | {"sft", "reference-samples", "oracle-ablation"}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.stage}-{step.label}")
def test_the_ledger_agrees_with_the_counter(made, step):
    record, counted = made[step.fingerprint]
    booked = {name: phase["flops"] for name, phase in record["phases"].items()}
    assert (counted > 0) == (step.stage not in FREE)
    assert sum(booked.values()) == pytest.approx(counted, rel=TOLERANCE)
    # The looks at the training loss are beside the method's work, in the counter's sum alone.
    assert record["cost"]["flops"] == sum(booked.values()) - booked.get("look", 0)


@pytest.mark.parametrize(
    ("stage", "networks", "trained"),
    [
        ("corpus", set(), set()),
        ("sft", {"policy"}, {"policy"}),
        ("reward-model", {"reward model"}, {"reward model"}),
        ("completions", {"policy"}, set()),
        ("reference-logprobs", {"reference"}, set()),
        ("dpo", {"policy"}, {"policy"}),
        ("kto", {"policy", "reference"}, {"policy"}),
        ("simpo", {"policy"}, {"policy"}),
        ("grpo", {"policy", "reference", "reward model"}, {"policy"}),
        ("evaluation", {"policy", "reference", "reward model"}, set()),
        ("proxy-scores", {"reward model"}, set()),
    ],
)
def test_networks_in_memory(made, stage, networks, trained):
    found = next(record["networks"] for record, _ in made.values() if record["stage"] == stage)
    assert set(found) == networks
    assert {name for name, row in found.items() if row["trained"]} == trained
    for row in found.values():  # fp32: 4 bytes a parameter, and 12 more if it is trained
        assert row["bytes"] == 4 * row["parameters"] + 12 * row["trained"] > 0


@pytest.mark.parametrize("judge", ["reward_model", "gold"])
def test_ppo_holds_four_networks_three_where_gold_is_the_reward(made, judge):
    [step] = [step for step in STEPS if step.stage == "ppo" and judge in step.upstream]
    found = made[step.fingerprint][0]["networks"]
    learnt = {"reward model"} if judge == "reward_model" else set()
    assert set(found) == {"policy", "value model", "reference"} | learnt
    assert {name for name, row in found.items() if row["trained"]} == {"policy", "value model"}


def test_no_accelerator_on_a_cpu(made):
    assert all(record["accelerators"] == [] for record, _ in made.values())
