"""The stages of somebody's own study: the model as it starts, its SFT model, and its judge."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipelines.data import brought, fine_tune, gold, start
from pipelines.data.pipeline import MODEL
from pipelines.data.specs import JudgeSpec
from pipelines.rlhf import reward_model
from pipelines.shared.errors import UserError
from pipelines.shared.specs import Runtime


@pytest.fixture
def model(policy, tokenizer, tmp_path):
    """A folder of a GPT-2 as it is often saved: dropout on, and no padding token of its own."""
    folder = tmp_path / "model"
    policy.config.resid_pdrop = 0.1
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stored = AutoTokenizer.from_pretrained(folder)
    stored.pad_token = stored.eos_token
    stored.save_pretrained(folder)
    return folder


def adopted(folder, tmp_path):
    digest = brought.digest_of(folder)
    out = tmp_path / "start"
    out.mkdir()
    context = SimpleNamespace(
        step=SimpleNamespace(assets={MODEL: digest}),
        runtime=Runtime(results=tmp_path, cache=tmp_path, brought={digest: folder}),
        path=out,
        log=lambda row: None,
    )
    start.adopt(context)
    return out / "checkpoint"


def test_a_model_starts_without_dropout_and_with_padding_of_its_own(model, policy, tmp_path):
    checkpoint = adopted(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, None)
    stored = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert stored.config.resid_pdrop == 0.0
    assert stored.config.pad_token_id == tokenizer.pad_token_id < stored.config.vocab_size
    ids = torch.tensor([[5, 6, 7, 8]])
    known = policy.config.vocab_size
    expected = policy(ids).logits
    torch.testing.assert_close(stored(ids).logits[..., :known], expected, rtol=1e-4, atol=1e-4)


def test_weights_that_are_missing_are_not_made_up(tokenizer, tmp_path):
    folder = tmp_path / "llama"
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **size)
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"has no lm_head\.weight") as error:
        adopted(folder, tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def corpus(tmp_path):
    """all_pairs.parquet with a pair in each split, and two of one chosen completion in training."""
    made = [
        ("p", "preference", [5, 6], [7, 1], [8, 1]),
        ("p", "preference", [5, 6], [7, 1], [9, 9, 1]),
        ("q", "judge", [5], [10, 1], [11, 1]),
        ("r", "judge", [6], [10, 1], [11, 1]),
        ("s", "evaluation", [7], [12, 1], [13, 1]),
    ]
    columns = ["prompt_id", "split", "prompt_ids", "chosen_ids", "rejected_ids"]
    table = pd.DataFrame(made, columns=columns)
    table = table.assign(prompt="x", chosen="c", rejected="r", line=range(1, 6))
    folder = tmp_path / "corpus"
    folder.mkdir()
    table.to_parquet(folder / "all_pairs.parquet")
    return folder


def test_sft_learns_the_chosen_completions_and_not_the_prompts(corpus):
    rows = fine_tune.chosen_rows(SimpleNamespace(inputs={"corpus": corpus}), "preference")
    assert rows["input_ids"][:] == [[5, 6, 7, 1]], "each once"
    assert rows["labels"][:] == [[-100, -100, 7, 1]]
    assert len(fine_tune.chosen_rows(SimpleNamespace(inputs={"corpus": corpus}), "validation")) == 0


def test_the_judge_is_trained_on_its_own_pairs(corpus, model, tmp_path, monkeypatch):
    checkpoint = adopted(model, tmp_path)
    seen, logged = {}, []

    def learn(context, spec, model, tokenizer, pairs, completions):
        seen.update(pairs=pairs, completions=completions)

    monkeypatch.setattr(reward_model, "learn", learn)
    monkeypatch.setattr(
        gold, "load_gold", lambda *_: lambda table: table["completion_ids"].map(max).to_numpy()
    )
    context = SimpleNamespace(
        spec={"judge": JudgeSpec(batch_size=2)}.__getitem__,
        inputs={"corpus": corpus, "start": checkpoint.parent},
        runtime=Runtime(results=tmp_path, cache=tmp_path),
        path=tmp_path,
        log=logged.append,
    )
    gold.learn(context)
    assert set(seen["pairs"]["prompt_id"]) == {"q", "r"}
    assert set(seen["completions"]["prompt_id"]) == {"p"}, "scores are centred on what it judges"
    (row,) = logged  # of the pair of "s": 12 chosen, 13 rejected
    assert (row["held_out_pairs"], row["held_out_agreement"]) == (1, 0.0)
    context.spec = {"judge": JudgeSpec(batch_size=3)}.__getitem__
    with pytest.raises(UserError, match="2 pairs are held out for the judge, fewer than a batch"):
        gold.learn(context)
