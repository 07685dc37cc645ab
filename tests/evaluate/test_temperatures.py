"""The sweep of sampling temperatures: held to the evaluation, to brute force, and at greedy."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForCausalLM

from pipelines.evaluate import samples, temperatures
from pipelines.evaluate.pipeline import evaluation, temperature_sweep
from pipelines.evaluate.samples import EVALUATION_STREAM
from pipelines.shared import generation, training
from pipelines.shared.errors import UserError
from pipelines.shared.ledger import Ledger
from pipelines.shared.models import new_reward_model
from pipelines.shared.sampling import keyed_uniforms, sample
from pipelines.shared.specs import (
    EvaluationSpec,
    Runtime,
    SamplingSpec,
    SimulatedProtocol,
    TemperaturesSpec,
)
from pipelines.shared.steps import Context, Step

VALUES = (0.0, 0.5, 1.0)
RECIPE = {
    "evaluation": EvaluationSpec(prompts=3, samples=4),
    "sampling": SamplingSpec(max_new_tokens=8),
    "temperatures": TemperaturesSpec(VALUES),
}
PROMPTS = ["a fine,", "a dull film", "it is"]
DIVERGENCES = ["kl_k1", "kl_k3", "kl_rb"]


def save(policy: Any, folder: Path) -> None:
    """A run of one policy, as training leaves it."""
    policy.save_pretrained(folder / "checkpoint")
    rows = [{"step": 7, "folder": "checkpoint"}]
    (folder / training.POLICIES).write_text(json.dumps(rows))


@pytest.fixture
def inputs(policy, tokenizer, tmp_path) -> dict[str, Path]:
    """What an evaluation reads; the policy is another than the SFT model."""
    folders = {name: tmp_path / name for name in ("corpus", "gold", "sft", "policy")}
    for folder in folders.values():
        folder.mkdir()
    rows = [
        {"prompt_id": f"p{k}", "prompt": text, "prompt_ids": tokenizer(text)["input_ids"]}
        for k, text in enumerate(PROMPTS)
    ]
    reviews = pd.DataFrame(rows).assign(split="evaluation")
    reviews.to_parquet(folders["corpus"] / "texts.parquet")
    judge = make_pipeline(TfidfVectorizer(analyzer="char"), LogisticRegression())
    judge.fit(["a fine, funny film", "dull", "so moving", "it goes nowhere"], [1, 0, 1, 0])
    joblib.dump(judge, folders["gold"] / "classifier.joblib")
    policy.save_pretrained(folders["sft"] / "checkpoint")
    tokenizer.save_pretrained(folders["sft"] / "checkpoint")
    torch.manual_seed(3)
    model = new_reward_model(folders["sft"] / "checkpoint")
    model.save_pretrained(tmp_path / "reward" / "checkpoint")
    for parameter in policy.parameters():
        parameter.data.mul_(0.8)
    save(policy, folders["policy"])
    return {**folders, "reward_model": tmp_path / "reward"}


def run(function: Any, inputs: dict[str, Path], path: Path, **recipe: Any) -> pd.DataFrame:
    """The scores that a step writes."""
    path.mkdir()
    function(
        Context(
            step=Step("any", "s1", "a:b", 1, {**RECIPE, **recipe}, seed=1),
            path=path,
            inputs=inputs,
            runtime=Runtime(results=path, cache=path),
            ledger=Ledger(),
            progress=lambda done, total, unit: None,
            log=lambda row: None,
        )
    )
    return pd.read_parquet(path / "scores.parquet")


def at(table: pd.DataFrame, temperature: float) -> pd.DataFrame:
    return table[table["temperature"] == temperature].reset_index(drop=True)


def test_at_evaluations_temperature_it_is_the_evaluation(inputs, tmp_path):
    swept = run(temperatures.sweep, inputs, tmp_path / "swept")
    judged = run(samples.evaluate, inputs, tmp_path / "judged").drop(columns="step")
    assert list(swept.columns) == list(judged.columns)
    pd.testing.assert_frame_equal(at(swept, 1.0), judged)
    assert swept.groupby("temperature").size().to_dict() == {0.0: 3, 0.5: 12, 1.0: 12}
    assert (at(swept, 1.0)[DIVERGENCES].abs().mean() > 0.01).all(), "not the SFT model's own"


def test_greedy_has_one_sample_no_kl_and_no_entropy(inputs, tmp_path, policy, tokenizer):
    greedy = at(run(temperatures.sweep, inputs, tmp_path / "swept"), 0.0)
    assert list(greedy["prompt_id"]) == ["p0", "p1", "p2"] and (greedy["sample"] == 0).all()
    assert greedy[DIVERGENCES].isna().all(axis=None)
    assert (greedy["entropy"] == 0).all()
    assert greedy[["reward_gold", "reward_proxy"]].notna().all(axis=None)
    for prompt, length in zip(PROMPTS, greedy["length"], strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        mask = torch.ones_like(ids)
        written = policy.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=8)
        assert written.shape[1] - ids.shape[1] == length


def test_kl_is_of_policy_and_reference_at_the_same_temperature(inputs, tmp_path, policy, tokenizer):
    """k1 of each sample, from one forward pass a sample without padding."""
    warm = at(run(temperatures.sweep, inputs, tmp_path / "swept"), 0.5)
    reference = type(policy).from_pretrained(inputs["sft"] / "checkpoint").eval()
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS for _ in range(4)]
    noise = keyed_uniforms(1, EVALUATION_STREAM, range(12), 8)
    special = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    drawn = sample(policy, prompts, noise, temperature=0.5, **special).completions()
    wrong = 0.0
    for row, (prompt, completion) in enumerate(zip(prompts, drawn, strict=True)):
        ids = torch.tensor([prompt + completion])
        sums = []
        for model, temperature in ((policy, 0.5), (reference, 0.5), (reference, 1.0)):
            with torch.no_grad():
                logp = (model(ids).logits[0] / temperature).log_softmax(-1)
            places = range(len(prompt) - 1, ids.shape[1] - 1)
            sums.append(sum(float(logp[k, ids[0, k + 1]]) for k in places))
        assert warm["kl_k1"][row] == pytest.approx(sums[0] - sums[1], abs=1e-4)
        assert warm["length"][row] == len(completion)
        wrong += abs(warm["kl_k1"][row] - (sums[0] - sums[2]))
    assert wrong > 0.1, "the reference at temperature 1 would be told from this"


def test_the_sft_models_own_sweep_has_kl_0(inputs, tmp_path):
    sft = AutoModelForCausalLM.from_pretrained(inputs["sft"] / "checkpoint")
    save(sft, tmp_path / "again")
    own = run(temperatures.sweep, {**inputs, "policy": tmp_path / "again"}, tmp_path / "own")
    hot = own[own["temperature"] > 0]
    assert (hot[DIVERGENCES] == 0).all(axis=None)
    assert own[own["temperature"] == 0][DIVERGENCES].isna().all(axis=None)


def test_no_cells_but_the_kl_at_0_are_missing(inputs, tmp_path):
    table = run(temperatures.sweep, inputs, tmp_path / "swept")
    assert table.drop(columns=DIVERGENCES).notna().all(axis=None)
    assert table.loc[table["temperature"] > 0, DIVERGENCES].notna().all(axis=None)
    assert np.isfinite(table.loc[table["temperature"] > 0, "entropy"]).all()


def test_several_samples_at_temperature_0_are_refused(policy, tokenizer):
    prompts = pd.DataFrame({"prompt_id": ["a"], "prompt": ["a"], "prompt_ids": [[5]]})
    options: Any = {"samples": 2, "max_new_tokens": 4, "temperature": 0.0, "seed": 0, "stream": 0}
    with pytest.raises(ValueError, match="2 samples of a prompt at temperature 0"):
        generation.generate(policy, tokenizer, prompts, context=None, **options)


def test_a_greedy_token_that_is_not_the_likeliest_is_caught(policy, tokenizer):
    special = {"eos_id": None, "pad_id": tokenizer.pad_token_id}
    noise = keyed_uniforms(0, 0, range(3), 6)
    drawn = sample(policy, [[5, 6], [7], [8]], noise, **special)
    with torch.no_grad(), pytest.raises(RuntimeError, match="differ from a full forward pass"):
        generation.check_sampler(policy, drawn, 0.0, Ledger())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "name one temperature or more"),
        ((1.0, 0.5), "in ascending order"),
        ((0.5, 0.5), "in ascending order"),
        ((-0.1, 0.5), "must be at least 0"),
        ((0.5, float("nan")), "must be finite"),
        (("hot",), "expected float, got str"),
    ],
)
def test_bad_temperatures_are_one_line(values, message):
    with pytest.raises(UserError, match=message):
        TemperaturesSpec(values)


def test_whole_numbers_are_temperatures():
    assert TemperaturesSpec((0, 1)) == TemperaturesSpec((0.0, 1.0))
    assert all(type(value) is float for value in TemperaturesSpec((0, 1)).values)


def steps(protocol: SimulatedProtocol) -> Step:
    step = Step("any", "s0", "a:b", 1, {})
    return evaluation(protocol, step, step, step, step, step, 4)


def test_the_step_is_the_evaluations_but_for_the_temperatures():
    judged = steps(SimulatedProtocol())
    swept = temperature_sweep(judged, TemperaturesSpec(VALUES))
    assert swept.identity["recipe"].pop("temperatures") == {"values": list(VALUES)}
    for field in ("recipe", "seed", "threads", "upstream", "assets"):
        assert swept.identity[field] == judged.identity[field]
    assert swept.fingerprint != judged.fingerprint
    other = temperature_sweep(judged, TemperaturesSpec((0.0, 1.0)))
    assert other.fingerprint != temperature_sweep(judged, TemperaturesSpec(VALUES)).fingerprint


def test_a_single_sample_a_prompt_is_refused():
    protocol = dataclasses.replace(SimulatedProtocol(), evaluation=EvaluationSpec(samples=1))
    with pytest.raises(UserError, match=r"evaluation\.samples = 1.*at least 2"):
        temperature_sweep(steps(protocol), TemperaturesSpec())
