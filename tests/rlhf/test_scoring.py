"""Reward functions and reward models: how they are called, and what is refused."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification

from pipelines.rlhf import PPOConfig, PPOTrainer
from pipelines.rlhf.scoring import Scorer, as_scores
from pipelines.shared.logprobs import pack
from pipelines.shared.models import new_reward_model, rewards

PROMPTS = ["a fine", "a dull film", "it is"]


def constant(value):
    return lambda completions, **_: [value] * len(completions)


def trainer(policy, tokenizer, tmp_path, dataset=None, settings=None, **arguments) -> PPOTrainer:
    if dataset is None:
        dataset = Dataset.from_dict({"prompt": PROMPTS, "grade": [1.0, 2.0, 3.0]})
    defaults = {"updates": 1, "rollouts": 6, "num_ppo_epochs": 1, "num_mini_batches": 1}
    args = PPOConfig(
        str(tmp_path),
        **(defaults | {"max_completion_length": 5, "bf16": False} | (settings or {})),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    arguments = {"reward_funcs": constant(1.0)} | arguments
    return PPOTrainer(
        policy, args=args, train_dataset=dataset, processing_class=tokenizer, **arguments
    )


@pytest.fixture
def judge(policy, tmp_path):
    policy.save_pretrained(tmp_path / "sft")
    return new_reward_model(tmp_path / "sft").eval()


def test_a_function_gets_prompts_completions_ids_and_columns(policy, tokenizer, tmp_path):
    calls = []

    def score(prompts, completions, completion_ids, grade):
        calls.append((prompts, completions, completion_ids, grade))
        return grade

    ppo = trainer(policy, tokenizer, tmp_path, reward_funcs=score)
    rollout = ppo._roll_out([2, 0, 1])
    prompts, completions, ids, grade = calls[0]
    assert prompts == ["it is", "a fine", "a dull film"] and grade == [3.0, 1.0, 2.0]
    assert completions == tokenizer.batch_decode(ids, skip_special_tokens=True)
    mask = rollout.sequences.completion_mask
    assert [len(row) for row in ids] == mask.sum(-1).tolist()
    assert rollout.scores.tolist() == [3.0, 1.0, 2.0]


def test_messages_come_back_as_messages(policy, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    seen = []

    def score(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [1.0] * len(prompts)

    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "a fine"}]]})
    ppo = trainer(policy, tokenizer, tmp_path, dataset, reward_funcs=score)
    assert ppo._prompts == [tokenizer("a fine\n")["input_ids"]]
    ppo._roll_out([0])
    assert seen[0][0] == [[{"role": "user", "content": "a fine"}]]
    assert seen[0][1][0][0]["role"] == "assistant"


def test_functions_are_weighted_and_the_reward_model_added(policy, tokenizer, judge):
    scorer = Scorer(judge, [constant(2.0), constant(3.0)], [0.5, -1.0], tokenizer)
    sequences = pack([[5, 6, 7], [8, 9]], [[9, 10], [11, 12, 13]], pad_id=1)
    scores = scorer(sequences, [{"prompt": "x"}, {"prompt": "y"}], [0, 1])
    with torch.no_grad():
        torch.testing.assert_close(scores, rewards(judge, sequences) - 2.0)
        blind = Scorer(judge, [], None, tokenizer, reads_prompt=False)
        alone = rewards(judge, pack([[9], [11]], [[10], [12, 13]], pad_id=1))
    scores = blind(sequences, [{"prompt": "x"}, {"prompt": "y"}], [0, 1])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "constant returned None: it must return 2 numbers"),
        ([1.0], "constant returned 1 scores for 2 completions"),
        (torch.ones(2, 1), r"constant returned shape \(2, 1\) for 2 completions"),
        (["good", "bad"], "constant returned what is not a number"),
    ],
)
def test_what_is_not_a_score_each_is_refused(returned, message):
    with pytest.raises(ValueError, match=message):
        as_scores(returned, 2, "constant")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_score_that_is_missing_is_refused_at_the_step_with_its_sample(
    policy, tokenizer, tmp_path, bad
):
    def score(prompts, **columns):
        return [bad if prompt == "it is" else 1.0 for prompt in prompts]

    ppo = trainer(policy, tokenizer, tmp_path, reward_funcs=score)
    with pytest.raises(ValueError, match=r"reward function score gave .* for prompt 2 of train_d"):
        ppo.train()


def test_a_reward_model_that_is_not_finite_is_named(policy, tokenizer, tmp_path, judge):
    judge.score.weight.data.fill_(float("nan"))
    critic = copy.deepcopy(judge)
    critic.score.weight.data.zero_()
    ppo = trainer(
        policy, tokenizer, tmp_path, reward_funcs=None, reward_model=judge, value_model=critic
    )
    with pytest.raises(ValueError, match="the reward model gave nan for prompt"):
        ppo.train()


def changed(tokenizer, **tokens):
    other = copy.deepcopy(tokenizer)
    for name, value in tokens.items():
        setattr(other, name, value)
    return other


def small_judge(**changes):
    shape = {"vocab_size": 280, "n_embd": 8, "n_layer": 1, "n_head": 1, "pad_token_id": 1}
    return GPT2ForSequenceClassification(GPT2Config(**(shape | {"num_labels": 1} | changes)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_funcs": None}, "give a reward_model, reward_funcs, or both"),
        ({"dataset": Dataset.from_dict({"prompt": []})}, "train_dataset has no prompts"),
        ({"dataset": Dataset.from_dict({"text": ["a"]})}, "no column prompt or prompt_ids"),
        ({"dataset": Dataset.from_dict({"prompt": ["a", "  "]})}, "prompt 1 of .* is empty"),
        (
            {"dataset": Dataset.from_dict({"prompt": ["a", "a dull film " * 9]})},
            r"prompt 1 of train_dataset has \d+ tokens, but only 19 of the model's 24 positions",
        ),
        ({"reward_model": small_judge(vocab_size=99)}, "vocabulary of 99, the policy of"),
        ({"reward_model": small_judge(num_labels=2)}, "has 2 outputs: it must have one"),
        ({"settings": {"reward_weights": [1.0, 2.0]}}, "2 entries for 1 reward functions"),
        (
            {"settings": {"share_trunk": True}, "value_model": small_judge()},
            "share_trunk makes the critic a head of the policy",
        ),
    ],
)
def test_what_can_be_known_before_training_is_refused_then(
    policy, tokenizer, tmp_path, arguments, message
):
    with pytest.raises(ValueError, match=message) as error:
        trainer(policy, tokenizer, tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_tokenizers_that_cannot_work_are_refused(policy, tokenizer, tmp_path, judge):
    for other, message in (
        (changed(tokenizer, eos_token=None), "no EOS token"),
        (changed(tokenizer, pad_token=None), "no PAD token"),
        (changed(tokenizer, pad_token=tokenizer.eos_token), "PAD is its EOS"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(policy, other, tmp_path)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["new"])
    with pytest.raises(ValueError, match="tokenizer has another vocabulary"):
        trainer(policy, tokenizer, tmp_path, reward_model=judge, reward_processing_class=other)


def test_the_policy_cannot_be_its_own_reference_nor_the_judge_its_own_critic(
    policy, tokenizer, tmp_path, judge
):
    with pytest.raises(ValueError, match="ref_model is the policy itself"):
        trainer(policy, tokenizer, tmp_path, ref_model=policy)
    with pytest.raises(ValueError, match="value_model is the reward model itself"):
        trainer(policy, tokenizer, tmp_path, reward_model=judge, value_model=judge)
