"""Who scores completions in training."""

import joblib
import numpy as np
import pytest
import torch

from pipelines.shared.judges import gold_judge, judge_of, learnt_judge
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import pack
from pipelines.shared.models import load_reward_model, new_reward_model, rewards


class Length:
    """A classifier whose log-odds are the number of letters."""

    def decision_function(self, texts):
        return np.array([float(len(text)) for text in texts])


@pytest.fixture
def folders(policy, tokenizer, tmp_path):
    """What a step has upstream: SFT model, gold reward, reward model."""
    sft, gold, learnt = (tmp_path / name for name in ("sft", "gold", "reward_model"))
    policy.save_pretrained(sft / "checkpoint")
    tokenizer.save_pretrained(sft / "checkpoint")
    new_reward_model(sft / "checkpoint").save_pretrained(learnt / "checkpoint")
    gold.mkdir()
    joblib.dump(Length(), gold / "classifier.joblib")
    return {"sft": sft, "gold": gold, "reward_model": learnt}


@pytest.fixture
def sequences(tokenizer):
    prompts = [tokenizer("a fine")["input_ids"], tokenizer("a")["input_ids"]]
    completions = [tokenizer(" film")["input_ids"], tokenizer(" dull, moving film")["input_ids"]]
    completions[0].append(tokenizer.eos_token_id)
    return pack(prompts, completions, tokenizer.pad_token_id)


def test_a_batch_comes_apart_as_it_was_put_together(tokenizer):
    prompts, completions = [[5, 6, 7], [8]], [[9], [10, 11, 12, 13]]
    assert pack(prompts, completions, tokenizer.pad_token_id).unpacked() == (prompts, completions)


def test_the_gold_judge_reads_prompt_and_completion_without_eos(folders, sequences, tokenizer):
    scores = gold_judge(folders["gold"], tokenizer)(sequences)
    assert scores.tolist() == [len("a fine film"), len("a dull, moving film")]
    assert scores.dtype == torch.float32


def test_the_learnt_judge_is_the_reward_model_and_costs(folders, sequences):
    model = load_reward_model(folders["reward_model"] / "checkpoint")
    ledger = Ledger()
    scores = learnt_judge(model, ledger)(sequences)
    assert torch.equal(scores, rewards(model, sequences).detach())
    assert not scores.requires_grad
    expected = ModelCost.of(model).forward(*sequences.shape, 0, read=sequences.shape[0])
    assert ledger.totals(0)["flops"] == expected


def test_a_step_has_the_judge_that_is_upstream(folders, sequences, make_context):
    learnt = load_reward_model(folders["reward_model"] / "checkpoint")
    both = judge_of(make_context(folders))
    assert torch.equal(both(sequences), rewards(learnt, sequences).detach())
    gold = judge_of(make_context({name: folders[name] for name in ("sft", "gold")}))
    assert gold(sequences).tolist() == [11, 19]


@pytest.fixture
def make_context(tmp_path):
    from types import SimpleNamespace

    def make(inputs):
        return SimpleNamespace(
            inputs=inputs, ledger=Ledger(), runtime=SimpleNamespace(device="cpu")
        )

    return make
