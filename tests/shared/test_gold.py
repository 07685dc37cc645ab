"""The three kinds of gold reward, told apart by their folders."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pipelines.shared.errors import UserError
from pipelines.shared.gold import FUNCTION, SOURCE, load_gold
from pipelines.shared.logprobs import pack
from pipelines.shared.models import load_reward_model, new_reward_model, rewards


@pytest.fixture
def table(tokenizer):
    texts = [("a fine", " film"), ("a", " dull, moving film"), ("it is", " here")]
    eos = [tokenizer.eos_token_id]
    return pd.DataFrame(
        {
            "prompt": [prompt for prompt, _ in texts],
            "completion": [text for _, text in texts],
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt, _ in texts],
            "completion_ids": [tokenizer(text)["input_ids"] + eos for _, text in texts],
        }
    )


def function(folder, source, name="score"):
    (folder / SOURCE).write_text(source)
    (folder / FUNCTION).write_text(json.dumps({"function": name}))
    return load_gold(folder)


def test_a_function_gets_prompts_and_completions(tmp_path, table):
    source = "def score(prompts, completions): return [len(p) * 100 + len(c) for p, c in "
    gold = function(tmp_path, source + "zip(prompts, completions)]\n")
    assert gold(table).tolist() == [605, 118, 505]


def test_a_file_may_have_dataclasses(tmp_path, table):
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from typing import ClassVar\n@dataclass\nclass A:\n    x: ClassVar[int] = 1\n"
        "def score(prompts, completions): return [A.x] * len(prompts)\n"
    )
    assert function(tmp_path, source)(table).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def score(prompts, completions): return [1.0]", "1 rewards for 3 completions"),
        ("def score(prompts, completions): return [1, float('nan'), 2]", "gave nan for .* dull"),
        ("def score(prompts, completions): return [1, None, 2]", "not numbers"),
        ("def score(prompts, completions): return 1 / 0", "raised ZeroDivisionError"),
        ("def score(prompts, completions): raise ValueError('a\\nb')", "raised ValueError: a"),
        ("def score(prompts, completions): return '123'", "returned a str"),
        ("def score(prompts, completions): return None", "returned a NoneType"),
        ("def score(prompts, completions): completions.pop(); return [1, 2]", "2 rewards for 3"),
        ("def other(): pass", "AttributeError"),
        ("def score(", "SyntaxError"),
    ],
)
def test_a_broken_function_is_one_line(tmp_path, table, source, message):
    with pytest.raises(UserError, match=message) as error:
        function(tmp_path, source)(table)
    assert "\n" not in str(error.value)


@pytest.fixture
def classifier(policy, tokenizer, tmp_path):
    """Saves a classifier of so many labels, and returns its folder."""

    def make(labels):
        policy.save_pretrained(tmp_path / "policy")
        model = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "policy", num_labels=labels
        )
        torch.nn.init.normal_(model.score.weight)
        model.save_pretrained(tmp_path / "gold" / "checkpoint")
        tokenizer.save_pretrained(tmp_path / "gold" / "checkpoint")
        return tmp_path / "gold"

    return make


def test_a_reward_model_of_this_project_reads_the_very_ids(policy, tokenizer, table, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    model = new_reward_model(tmp_path / "policy")
    model.config.reward_mean = 2.0
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    stored = load_reward_model(tmp_path / "checkpoint")
    sequences = pack(
        table["prompt_ids"].tolist(), table["completion_ids"].tolist(), tokenizer.pad_token_id
    )
    expected = rewards(stored, sequences).detach().numpy()
    np.testing.assert_allclose(load_gold(tmp_path)(table), expected, atol=1e-6)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_classifier_of_ones_own_reads_the_text(classifier, tokenizer, table, labels):
    folder = classifier(labels)
    (folder / FUNCTION).write_text(json.dumps({"function": ""}))
    model = AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint").eval()
    logits = [
        model(**tokenizer(prompt + text, return_tensors="pt")).logits[0]
        for prompt, text in zip(table["prompt"], table["completion"], strict=True)
    ]
    expected = [(row[-1] - row[0] if labels == 2 else row[0]).item() for row in logits]
    np.testing.assert_allclose(load_gold(folder)(table), expected, rtol=1e-4)


def test_a_classifier_of_three_labels_is_no_reward(classifier):
    folder = classifier(3)
    with pytest.raises(UserError, match="3 labels"):
        load_gold(folder)


def test_what_does_not_fit_a_classifier_is_not_cut(classifier, table):
    """Cut on the right, the completion would go, and every policy would get its prompts' score."""
    folder = classifier(1)
    (folder / FUNCTION).write_text(json.dumps({"function": ""}))
    long = table.assign(prompt=["a fine film " * 9] * 3)
    with pytest.raises(UserError, match=r"tokens of prompt and completion, .* reads 24"):
        load_gold(folder)(long)


def test_a_classifier_without_padding_reads_one_text_at_a_time(classifier, tokenizer, table):
    folder = classifier(1)
    (folder / FUNCTION).write_text(json.dumps({"function": ""}))
    expected = load_gold(folder)(table)
    stored = json.loads((folder / "checkpoint" / "tokenizer_config.json").read_text())
    del stored["pad_token"]
    (folder / "checkpoint" / "tokenizer_config.json").write_text(json.dumps(stored))
    np.testing.assert_allclose(load_gold(folder)(table), expected, rtol=1e-4)
