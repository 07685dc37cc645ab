"""What makes a large model fit: batches in parts, and adapters in place of all weights."""

import bz2
import dataclasses
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
)

from experiments.sentiment import SENTIMENT
from pipelines.rlhf import ppo, ppo_stage
from pipelines.shared import adapters, corpus
from pipelines.shared import steps as framework
from pipelines.shared.errors import StepFailed
from pipelines.shared.ledger import Ledger
from pipelines.shared.logprobs import completion_logprobs, pack
from pipelines.shared.models import load_policy, load_reward_model, load_tokenizer, token_values
from pipelines.shared.specs import Runtime, WeightsSpec
from pipelines.shared.steps import Context, Step, run_step, seed_all
from pipelines.shared.training import micro_batched, trainer_arguments

ARMS = ["ppo", "dpo", "kto", "preferred-ft", "ppo-gt"]
TINY = (
    *("corpus.max_reviews=300", "corpus.vocab_size=300", "sft.epochs=1", "sampling.prompts=16"),
    *("evaluation.prompts=8", "reward_model.epochs=1", "ppo.updates=1", "ppo.kl_coef=0.1"),
    *("dpo.beta=0.1", "kto.beta=0.1"),
)
LAYER = "transformer.h.0.mlp.c_fc.weight"
TRAINED = ("sft", "reward-model", "ppo", "dpo", "kto", "preferred-ft")


def made_up_reviews(*unused) -> bytes:
    draw = random.Random(0)
    words = {"fresh": "fine moving funny warm", "rotten": "dull flat tired cold"}
    common = "a the film is and plot of with more than it its in cast".split()
    rows = ["category,text,movie_name,has_plot_and_reviews"]
    for number in range(300):
        kind = ("fresh", "rotten")[number % 2]
        text = draw.choices(common + words[kind].split(), k=draw.randint(8, 14))
        rows.append(f"{kind},{' '.join(text)} {number},m,True")
    return bz2.compress("\n".join(rows).encode())


def study_of(*more: str) -> list[Step]:
    study = SENTIMENT.resolve("smoke", arms=ARMS, assignments=[*TINY, *more])
    return [step for step in study.steps() if step.stage not in ("evaluation", "reference-samples")]


def run_all(steps: list[Step], results: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "read", made_up_reviews)
        for step in steps:
            seed_all(step.seed)
            run_step(step, Runtime(results=results, cache=results))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[str, Step], Path]:
    """A smoke study's training stages, batches whole; the steps by stage."""
    results = tmp_path_factory.mktemp("whole")
    steps = study_of()
    run_all(steps, results)
    return {step.stage: step for step in steps}, results


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAINED)
def test_in_four_parts_a_batch_gives_the_same_weights(whole, stage, tmp_path, monkeypatch):
    steps, results = whole
    step = steps[stage]
    made = Context.__init__

    def in_parts(self, *args, **kwargs):
        made(self, *args, **{**kwargs, "micro_batches": 4})

    monkeypatch.setattr(Context, "__init__", in_parts)
    for upstream in step.upstream.values():
        other = upstream.folder(tmp_path)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.symlink_to(upstream.folder(results))
    seed_all(step.seed)
    record = run_step(step, Runtime(results=tmp_path, cache=tmp_path))
    # KTO's reference point is a mean over the batch: it stays whole.
    assert record["micro_batches"] == (1 if stage == "kto" else 4)
    first, second = weights(step.folder(results)), weights(step.folder(tmp_path))
    if stage == "reward-model":  # it cancels in every comparison: what moves it is rounding
        first.pop("transformer.ln_f.bias")
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert apart < 2e-4
    if "sft" in step.upstream and stage != "reward-model":
        start = weights(step.upstream["sft"].folder(results))
        moved = max(float((first[name] - start[name]).abs().max()) for name in first)
        assert moved > 1e-3 and apart < 0.1 * moved, "or else that both are alike says nothing"


PARTS: list[int] = []


def hungry(context: Context) -> None:
    """Has memory for parts of 2 rows of a batch of 8."""
    PARTS.append(context.micro_batches)
    context.log({"first": float(torch.rand(1))})
    (context.path / "half.txt").write_text("half")
    (context.path / "trainer").mkdir()
    if micro_batched(context, 8)["per_device_train_batch_size"] > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    (context.path / "whole.txt").write_text("whole")


def test_a_batch_is_taken_in_equal_parts():
    """Of any size that divides it, and no more parts than rows."""
    context = Context(Step("test", "x", "a:b", 1, {}), Path(), {}, None, None, None, None)
    for batch, least, parts in ((6, 2, 2), (6, 4, 6), (96, 5, 6), (7, 2, 7), (4, 8, 4)):
        context.micro_batches, context.divisible = least, False
        made = micro_batched(context, batch)
        assert made == {
            "per_device_train_batch_size": batch // parts,
            "gradient_accumulation_steps": parts,
        }
        assert context.divisible == (parts < batch)


def insatiable(context: Context) -> None:
    micro_batched(context, 4)
    PARTS.append(context.parts)
    raise torch.OutOfMemoryError("CUDA out of memory")


def greedy(context: Context) -> None:
    """Knows of no parts."""
    PARTS.append(context.micro_batches)
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@pytest.fixture
def step_of(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    PARTS.clear()
    return lambda name: Step("test", name, f"{__name__}:{name}", 1, {}, seed=3)


def test_out_of_memory_a_step_begins_again_with_smaller_parts(step_of, tmp_path):
    step = step_of("hungry")
    record = run_step(step, Runtime(results=tmp_path, cache=tmp_path))
    assert PARTS == [1, 2, 4] and record["micro_batches"] == 4 and record["out_of_memory"] == 2
    folder = step.folder(tmp_path)
    names = {"half.txt", "whole.txt", "trainer", "metrics.jsonl", "record.json"}
    assert {path.name for path in folder.iterdir()} == names
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    torch.manual_seed(3)
    assert f"{float(torch.rand(1))}" in line, "the random state is that of the step's beginning"


def test_where_a_batch_cannot_be_smaller_it_ends(step_of, tmp_path):
    for name, tried in (("insatiable", [1, 2, 4]), ("greedy", [1])):
        PARTS.clear()
        with pytest.raises(StepFailed, match="memory"):
            run_step(step_of(name), Runtime(results=tmp_path, cache=tmp_path))
        assert tried == PARTS


def test_other_errors_are_not_tried_again():
    assert not framework.is_out_of_memory(RuntimeError("shapes do not match"))
    assert not framework.is_out_of_memory(MemoryError())


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> tuple[dict[str, Step], Path]:
    results = tmp_path_factory.mktemp("adapted")
    more = ["dpo.learning_rate=2e-2", "ppo.learning_rate=2e-2", "sft.learning_rate=2e-2"]
    steps = study_of("weights.lora_rank=4", *more)
    run_all(steps, results)
    return {step.stage: step for step in steps}, results


@pytest.mark.slow
def test_adapters_train_and_leave_plain_models(adapted):
    steps, results = adapted
    for stage in ("ppo", "dpo", "preferred-ft"):
        folder = steps[stage].folder(results)
        after, before = weights(folder), weights(steps["sft"].folder(results))
        assert after.keys() == before.keys(), stage
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert any("mlp" in name for name in moved), stage
        assert all("attn" in name or "mlp" in name for name in moved), f"{stage}: {moved}"
        # Of low rank: what an adapter of rank 4 can add.
        change = after[LAYER] - before[LAYER]
        singular = torch.linalg.svdvals(change)
        assert singular[0] > 1e-3 and singular[4] < 1e-4 * singular[0]
        assert isinstance(load_policy(folder / "checkpoint"), torch.nn.Module)
    judge = load_reward_model(steps["reward-model"].folder(results) / "checkpoint")
    assert judge.score.weight.abs().sum() > 0


@pytest.mark.slow
def test_with_adapters_there_is_no_second_copy_and_less_work(adapted, whole):
    def record(made, stage: str) -> dict:
        steps, results = made
        return framework.load_record(steps[stage], results) or {}

    networks = record(adapted, "ppo")["networks"]
    assert set(networks) == {"policy", "value model"}, "ppo-gt, the last: no reference, no judge"
    for row in networks.values():
        assert 0 < row["trained"] < 0.6 * row["parameters"]
    full, low = (record(made, "dpo")["phases"]["train"]["flops"] for made in (whole, adapted))
    assert 2 / 3 < low / full < 1.2, "one of the three passes is left out, and adapters are added"


@pytest.mark.slow
def test_what_is_saved_computes_what_the_adapters_did(whole, tmp_path):
    steps, results = whole
    folder = steps["sft"].folder(results) / "checkpoint"
    spec = dataclasses.replace(SENTIMENT.scales["smoke"].weights, lora_rank=3)
    step = Step("test", "one", "a:b", 1, {"weights": spec})
    context = Context(step, tmp_path, {}, Runtime(tmp_path, tmp_path), None, None, None)
    model = adapters.adapted(context, load_policy(folder))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3, generator=generator)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    adapters.merged(model).save_pretrained(tmp_path / "saved")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), "saving changes nothing of what goes on training"
    pad = load_tokenizer(folder).pad_token_id
    sequences = pack([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]], pad, "cpu")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    plain = load_policy(folder)
    with torch.no_grad():
        whole_, adapted_, base = (
            completion_logprobs(each, sequences) for each in (saved, model, plain)
        )
    torch.testing.assert_close(whole_, adapted_, atol=1e-5, rtol=1e-5)
    assert (whole_ - base).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_values_under_adapters_are_those_of_the_merged_critic(name, tmp_path):
    """Whatever the architecture calls its trunk, which PEFT has a name like."""
    made = {
        "gpt2": GPT2Config(
            vocab_size=20, n_embd=16, n_layer=1, n_head=2, num_labels=1, pad_token_id=0
        ),
        "llama": LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            pad_token_id=0,
        ),
    }
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(made[name]).eval()
    plain.config.reward_mean = 0.5
    step = Step("test", "one", "a:b", 1, {"weights": WeightsSpec(lora_rank=2)})
    context = Context(step, tmp_path, {}, Runtime(tmp_path, tmp_path), None, None, None)
    model = adapters.adapted(context, plain)
    for key, weight in model.named_parameters():
        if "lora_B" in key:
            weight.data.normal_()
    sequences = pack([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]], 0, "cpu")
    with torch.no_grad():
        adapted_, merged = (
            token_values(each, sequences) for each in (model, adapters.merged(model).eval())
        )
    real = sequences.attention_mask.bool()
    torch.testing.assert_close(adapted_[real], merged[real], atol=1e-5, rtol=1e-5)
    (layer,) = [m for n, m in model.named_modules() if n.endswith(("c_fc", "up_proj"))]
    assert layer.scaling["default"] == WeightsSpec().lora_alpha / 2
    heads = {key for key, weight in model.named_parameters() if weight.requires_grad}
    assert any("score" in key for key in heads), "the head is new: it is trained as it is"


@pytest.mark.slow
def test_with_ppo_in_parts_rollouts_are_smaller_too(whole, tmp_path, monkeypatch):
    """Or else what they hold would stay as large."""
    steps, results = whole
    seen = []
    sample = ppo.sample

    def watched(model, prompts, *args, **kwargs):
        seen.append(len(prompts))
        return sample(model, prompts, *args, **kwargs)

    monkeypatch.setattr(ppo, "sample", watched)
    step = steps["ppo"]
    inputs = {name: up.folder(results) for name, up in step.upstream.items()}
    context = Context(
        step,
        tmp_path,
        inputs,
        Runtime(tmp_path, tmp_path, gradient_checkpointing=True),
        Ledger(),
        lambda *state: None,
        lambda row: None,
        micro_batches=4,
    )
    seed_all(step.seed)
    ppo_stage.train(context)
    spec = step.recipe["ppo"]
    assert set(seen) == {spec.rollouts // spec.minibatches // 4} and context.parts == 4
    first, second = (
        weights(step.folder(results)),
        load_file(tmp_path / "checkpoint" / "model.safetensors"),
    )
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert apart < 2e-4, "activations that are computed twice are the same"


def test_gradient_checkpointing_reaches_the_trainers(tmp_path):
    step = Step("test", "x", "a:b", 1, {})
    for wanted in (True, False):
        runtime = Runtime(tmp_path, tmp_path, gradient_checkpointing=wanted)
        context = Context(step, tmp_path, {}, runtime, None, None, None)
        assert trainer_arguments(context)["gradient_checkpointing"] is wanted


@pytest.mark.slow
def test_every_arm_trains_in_bf16(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "read", made_up_reviews)
    more = ("weights.precision=bf16", "rloo.updates=1", "grpo.updates=1", "online_dpo.rounds=1")
    swept = ("rloo.kl_coef=0.1", "grpo.kl_coef=0.1", "online_dpo.beta=0.1", "reinforce.updates=1")
    arms = ["ppo", "dpo", "kto", "rloo", "grpo", "online-dpo", "reinforce", "preferred-ft"]
    given = [*TINY, *more, *swept, "reinforce.kl_coef=0.1"]
    study = SENTIMENT.resolve("smoke", arms=arms, assignments=given)
    for step in study.steps():
        if step.stage not in ("evaluation", "reference-samples"):
            seed_all(step.seed)
            run_step(step, Runtime(results=tmp_path, cache=tmp_path))
    for run in study.runs:
        folder = run.policy.folder(tmp_path)
        assert all(weight.dtype == torch.float32 for weight in weights(folder).values())


def test_a_scale_of_adapters_that_there_are_not_is_no_other_run():
    spec = WeightsSpec(lora_alpha=64)
    protocol = dataclasses.replace(SENTIMENT.scales["smoke"], weights=spec)
    assert protocol.trained_by == {}
    low = dataclasses.replace(protocol, weights=WeightsSpec(lora_alpha=64, precision="bf16"))
    assert low.trained_by == {"weights": WeightsSpec(precision="bf16")}
    lora = dataclasses.replace(protocol, weights=WeightsSpec(lora_rank=4, lora_alpha=64))
    assert lora.trained_by["weights"].lora_alpha == 64


@pytest.mark.slow
def test_what_is_booked_with_adapters_agrees_with_the_counter(tmp_path, monkeypatch):
    """Nothing is computed for the gradients of frozen weights. (In one layer alone the activations'
    gradients, of which the lowest layer needs none, would be a good part of the rest.)"""
    monkeypatch.setattr(corpus, "read", made_up_reviews)
    held, left_out = set(), ("kto", "preferred-ft")
    for step in study_of("weights.lora_rank=4", "model.layers=6", "model.width=48"):
        if step.stage in left_out or step.label.startswith("gold"):
            continue
        # The counter does not see the fused CPU attention; its plain form does the same.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            record = run_step(step, Runtime(results=tmp_path, cache=tmp_path))
        if step.stage in TRAINED:
            held.add(step.stage)
            booked = sum(phase["flops"] for phase in record["phases"].values())
            assert booked == pytest.approx(counted.get_total_flops(), rel=0.08), step.stage
    assert held == set(TRAINED) - set(left_out)
