"""What a study will take: by arithmetic, held to what was booked; and by records of like steps."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.estimates import Estimator
from experiments.forecast import H100, Forecast, Sizes, Work, seconds
from experiments.registry import EXPERIMENTS
from experiments.sentiment import SENTIMENT
from pipelines.shared.assets import PYTHIA, SMOLLM2
from pipelines.shared.hub import Shape
from pipelines.shared.specs import WeightsSpec
from pipelines.shared.steps import Step, closure

PUBLISHED = Path(__file__).parents[2] / "results" / "experiments"


def published() -> dict[tuple[str, str], float]:
    """FLOPs that were booked, by stage and label."""
    found = {}
    for path in PUBLISHED.glob("sentiment-mini*/runs/*.json"):
        record = json.loads(path.read_text())
        found.setdefault((record["stage"], record["label"]), record["cost"]["flops"])
    return found


def test_the_forecast_is_near_what_was_booked():
    """The published mini study, whose sizes are known: 8,960 reviews of at most 32 tokens."""
    study = SENTIMENT.resolve("mini", arms=["all"])
    model = SENTIMENT.scales["mini"].model
    shape = Shape(model.layers, model.width, 4 * model.width, 2048, model.heads)
    sizes = Sizes(sft_rows=8_960, sft_tokens=32, prompts=1000, prompt_tokens=4)
    forecast, booked, held = Forecast(sizes, study.steps(), shape), published(), set()
    for step in study.steps():
        work, flops = forecast.work(step), booked.get((step.stage, step.label))
        if work is None or flops is None:
            continue
        held.add(step.stage)
        assert work.flops == pytest.approx(flops, rel=0.15), step.label
    assert held >= {"sft", "reward-model", "ppo", "dpo", "kto", "preferred-ft", "completions"}
    assert held >= {"reference-samples", "reference-logprobs", "evaluation", "unlikelihood"}


def test_shapes_have_the_models_parameters():
    """134,515,008 and 1,011,781,632 as published; norms and biases, and the embeddings where they
    are not the LM head's, are not in the products."""
    assert SMOLLM2.shape is not None and PYTHIA["1b"].shape is not None
    smollm, pythia = SMOLLM2.shape, PYTHIA["1b"].shape
    assert smollm.body + smollm.head == pytest.approx(134_515_008, rel=1e-3)
    assert pythia.body + 2 * pythia.head == pytest.approx(1_011_781_632, rel=1e-3)


def test_hours_are_of_the_dearest_of_reading_and_computing():
    fp32, bf16 = (
        Step("dpo", "x", "a:b", 1, {"weights": WeightsSpec(precision=name)})
        for name in ("fp32", "bf16")
    )
    training = Work(trained=67e12 * 0.35)
    assert seconds(training, fp32, H100) == pytest.approx(1.0)
    assert seconds(training, bf16, H100) == pytest.approx(67 / 990)
    few = Work(sampled=1.0, tokens=100, sampler=int(3.35e12 / 4 / 100))
    assert seconds(few, fp32, H100) == pytest.approx(1.0), "a step reads the policy's weights"
    assert seconds(dataclasses.replace(few, sampled=67e12), fp32, H100) == pytest.approx(2.0)
    rollouts = Work(read=990e12 * 0.5, as_trained=True)
    assert seconds(rollouts, bf16, H100) == pytest.approx(1.0)
    assert seconds(dataclasses.replace(rollouts, as_trained=False), bf16, H100) > 10


def test_what_is_held_in_memory():
    """Shapes of the plan's networks, in parameters: of the policy P, of the trunk of a critic T."""
    study = SENTIMENT.resolve("small", arms=["ppo", "ppo-gt", "kto", "dpo"])
    low = SENTIMENT.resolve("small", arms=["ppo"], assignments=["weights.lora_rank=8"])
    shape = SMOLLM2.shape
    assert shape is not None
    p, t = shape.body + shape.head, shape.body

    def of(study, stage: str, label: str = "") -> Work:
        steps = [s for s in study.steps() if s.stage == stage and s.label.startswith(label)]
        work = study.forecast().work(steps[0])
        assert work is not None
        return work

    assert (of(study, "ppo", "kl").held, of(study, "ppo", "kl").learnt) == (2 * p + 2 * t, p + t)
    assert of(study, "ppo", "gold").held == 2 * p + t, "no reward model"
    assert (of(low, "ppo").held, of(low, "ppo").learnt) == (p + 2 * t, 0), "no second copy"
    assert (of(study, "dpo").held, of(study, "kto").held) == (p, 2 * p)
    assert of(study, "reward-model").bytes == 16 * t


def test_a_judge_of_another_size_is_another_cost():
    study = EXPERIMENTS["overoptimization"].resolve("paper")
    forecast = study.forecast()
    works = {
        s.recipe["reward_model"].init: forecast.work(s)
        for s in study.steps()
        if s.stage == "reward-model"
    }
    sizes = [works[PYTHIA[size].name].bytes for size in ("70m", "160m", "410m", "1b")]
    assert sizes == sorted(sizes) and sizes[3] > 10 * sizes[0]


def test_other_data_than_the_sizes_are_of_is_not_forecast():
    assert SENTIMENT.resolve("small").forecast() is not None
    other = ["corpus.max_texts=100"]
    assert SENTIMENT.resolve("small", assignments=other).forecast() is None


def test_a_plan_tells_what_is_not_in_its_sum(tmp_path, capsys):
    arms = ["--arms", "rloo,dpo", "--results", str(tmp_path)]
    assert main(["plan", "sentiment", "--scale", "small", *arms]) == 0
    assert "one step after another; without rloo" in capsys.readouterr().out
    too_large = ["--set", "start.model=pythia-2.8b", "--results", str(tmp_path)]
    assert main(["plan", "sentiment", "--scale", "small", *too_large]) == 0
    assert "time unknown" in capsys.readouterr().out, "the sizes are in another model's tokens"


@pytest.mark.parametrize("name", ["imdb", "tldr", "hh", "overoptimization"])
def test_a_plan_tells_hardware_and_hours(name, tmp_path, capsys):
    assert main(["plan", name, "--scale", "paper", "--results", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "EFLOP, about" in told and "on one NVIDIA H100" in told
    assert "GB of weights, gradients and optimiser" in told and "which fits" in told
    study = EXPERIMENTS[name].resolve("paper")
    forecast = study.forecast()
    trained = [s for s in study.steps() if s.stage in ("sft", "dpo", "ppo", "reward-model")]
    assert trained and all(forecast.work(step).trained > 0 for step in trained)


def test_with_adapters_a_step_is_cheaper_and_smaller():
    full, low = (
        SENTIMENT.resolve("small", assignments=[f"weights.lora_rank={rank}"]) for rank in (0, 8)
    )
    costs = []
    for study in (full, low):
        step = next(step for step in study.steps() if step.stage == "dpo")
        costs.append(study.forecast().work(step))
    assert costs[1].trained == pytest.approx(costs[0].trained * 2 / 3)
    assert costs[1].bytes < 0.3 * costs[0].bytes


def test_what_another_model_took_predicts_nothing():
    mini, small = SENTIMENT.resolve("mini"), SENTIMENT.resolve("small")
    estimator = Estimator(PUBLISHED.parent)
    for stage in ("dpo", "ppo", "evaluation", "reference-logprobs"):
        known, unknown = (
            next(step for step in study.steps() if step.stage == stage) for study in (mini, small)
        )
        assert estimator.cost(known) is not None, stage
        assert estimator.cost(unknown) is None, stage
    on_a_gpu = Estimator(PUBLISHED.parent, device="cuda")
    assert all(on_a_gpu.cost(step) is None for step in mini.steps())


def test_proxies_and_judges_of_another_model_predict_nothing():
    study = EXPERIMENTS["overoptimization"].resolve("paper")
    for stage, changed in (("reward-model", None), ("gold", "judge.init=pythia-70m-deduped")):
        found = [s for s in study.steps() if s.stage == stage]
        if changed:
            other = EXPERIMENTS["overoptimization"].resolve("paper", assignments=[changed])
            found += [s for s in other.steps() if s.stage == stage]
        estimator = Estimator(Path("nowhere"))
        everything = {s.fingerprint: s for one in found for s in closure([one])}
        for step in everything.values():
            if step.fingerprint != found[1].fingerprint:
                cost = dict.fromkeys(("seconds", "flops", "peak_memory_bytes"), 1.0)
                estimator.add(
                    {
                        "stage": step.stage,
                        "fingerprint": step.fingerprint,
                        "identity": step.identity,
                        "cost": cost,
                    }
                )
        assert estimator.cost(found[0]) is not None and estimator.cost(found[1]) is None, stage
