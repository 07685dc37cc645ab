"""PPOTrainer on a reward that anyone can check."""

import copy
import dataclasses

import pytest
import torch
from datasets import Dataset
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from pipelines.rlhf import PPOConfig, PPOTrainer
from pipelines.rlhf.actor_critic import ActorCritic
from pipelines.rlhf.checks import check_ratio
from pipelines.rlhf.prompts import PromptStream
from pipelines.shared.ledger import ModelCost
from pipelines.shared.logprobs import pack
from pipelines.shared.models import new_reward_model, rewards, token_values

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


def config(tmp_path, **changes) -> PPOConfig:
    settings = {
        "kl_coef": 0.01,
        "updates": 12,
        "rollouts": 64,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "max_completion_length": 6,
        "learning_rate": 3e-3,
    } | changes
    settings = {"bf16": False, "save_strategy": "no"} | settings
    return PPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **settings,
    )


@pytest.fixture
def critic(policy, tmp_path):
    policy.save_pretrained(tmp_path / "sft")
    torch.manual_seed(0)
    return new_reward_model(tmp_path / "sft").eval()


def count_of_even_tokens(completion_ids, **columns) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) for ids in completion_ids]


def new_trainer(
    policy, critic, tokenizer, tmp_path, reward=count_of_even_tokens, **changes
) -> PPOTrainer:
    return PPOTrainer(
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_funcs=reward,
        value_model=critic,
        args=config(tmp_path, **changes),
        train_dataset=Dataset.from_dict({"prompt_ids": PROMPTS}),
        processing_class=tokenizer,
    )


def train(policy, critic, tokenizer, tmp_path, **changes) -> PPOTrainer:
    trainer = new_trainer(policy, critic, tokenizer, tmp_path, **changes)
    trainer.train()
    return trainer


def history(trainer: PPOTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def test_the_reward_rises_and_the_kl_starts_at_0(policy, critic, tokenizer, tmp_path):
    trainer = train(policy, critic, tokenizer, tmp_path)
    scores, kl = history(trainer, "objective/score"), history(trainer, "objective/kl")
    assert len(scores) == 12
    assert scores[-1] > scores[0] + 1.0
    assert kl[0] == pytest.approx(0, abs=1e-4) and kl[-1] > 0.1


def test_a_larger_coefficient_keeps_the_policy_closer(policy, critic, tokenizer, tmp_path):
    near = train(copy.deepcopy(policy), copy.deepcopy(critic), tokenizer, tmp_path, kl_coef=3.0)
    far = train(policy, critic, tokenizer, tmp_path, kl_coef=0.0)
    assert history(near, "objective/kl")[-1] < 0.5 * history(far, "objective/kl")[-1]


def test_the_same_seed_gives_the_same_weights(policy, critic, tokenizer, tmp_path):
    def weights():
        model = copy.deepcopy(policy)
        train(model, copy.deepcopy(critic), tokenizer, tmp_path, updates=2)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(), weights())


def test_a_policy_that_differs_between_rollout_and_update_is_caught(
    policy, critic, tokenizer, tmp_path
):
    class Warmer(PPOTrainer):
        """Updates at another temperature than it sampled at."""

        def compute_loss(self, model, inputs, *args, **kwargs):
            self.args.temperature = 1.01
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Warmer(
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_funcs=count_of_even_tokens,
        value_model=critic,
        args=config(tmp_path, updates=1),
        train_dataset=Dataset.from_dict({"prompt_ids": PROMPTS}),
        processing_class=tokenizer,
    )
    with pytest.raises(RuntimeError, match="ratio is off 1"):
        trainer.train()


def test_a_saved_checkpoint_is_a_transformers_folder(policy, critic, tokenizer, tmp_path):
    trainer = train(
        policy, critic, tokenizer, tmp_path, updates=1, save_strategy="steps", save_steps=4
    )
    for folder in (tmp_path / "checkpoint-4", tmp_path / "saved"):
        trainer.save_model(str(tmp_path / "saved"))
        saved = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(saved.lm_head.weight, policy.lm_head.weight)
        assert (folder / "value" / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollouts": 63}, "rollouts = 63 must be a multiple of 2"),
        ({"gradient_accumulation_steps": 3}, "must be a multiple of 6 = num_mini_batches 2 x"),
        ({"max_steps": 5}, "the length of training is `updates`"),
        ({"fp16": True}, "fp16 overflows"),
        ({"kl_control": "adaptiv"}, "kl_control = 'adaptiv': must be fixed or adaptive"),
        ({"temperature": 0.0}, "temperature = 0.0: must be above 0"),
        ({"kl_control": "adaptive", "kl_coef": 0.0}, "adaptive control multiplies it"),
        ({"lam": 1.1}, "lam = 1.1: must be between 0 and 1"),
        ({"kl_coef": -0.1}, "kl_coef = -0.1: must be at least 0"),
        ({"missing_eos_score": -1.0, "missing_eos_penalty": 1.0}, "not both"),
        ({"eval_strategy": "epoch"}, "does not evaluate"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_a_configuration_can_be_copied(tmp_path):
    args = config(tmp_path)
    assert dataclasses.replace(args, seed=1).max_steps == args.max_steps


def test_dropout_is_off_in_rollout_and_update(policy, critic, tokenizer, tmp_path):
    """A dropout that stayed on would fail the ratio check."""
    for network in (policy, critic):
        for block in network.transformer.h:
            block.attn.resid_dropout.p = block.mlp.dropout.p = 0.5
    train(policy, critic, tokenizer, tmp_path, updates=2)


def test_seeds_do_not_share_their_shuffles(policy, critic, tokenizer, tmp_path):
    trainer = train(policy, critic, tokenizer, tmp_path, updates=1)
    rollout = trainer._roll_out([0] * 64)

    def order(seed, update):
        trainer.args.seed = seed
        return next(trainer._split(dataclasses.replace(rollout, update=update))).scores

    assert not torch.equal(order(0, 5), order(1, 4))
    assert torch.equal(order(0, 5), order(0, 5))


def test_check_ratio():
    check_ratio(torch.tensor([1.0, 1.00005]), 1e-4)
    for bad in (1.001, 0.99, float("nan")):
        with pytest.raises(RuntimeError, match="likely dropout"):
            check_ratio(torch.tensor([1.0, bad]), 1e-4)


def test_every_prompt_comes_before_any_comes_again(tmp_path):
    args = config(tmp_path, rollouts=4, updates=5, num_ppo_epochs=1)
    batches = list(PromptStream(10, args))
    assert len(batches) == len(PromptStream(10, args)) == args.max_steps == 10
    assert batches[0] == batches[1] and batches[0] != batches[2]
    drawn = [index for batch in batches[::2] for index in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert drawn[:10] != drawn[10:20]


def test_rewards_are_read_at_the_last_real_token(critic):
    mixed = pack([[5, 6, 7], [8]], [[9, 10, 11, 12], [13, 14]], pad_id=1)
    with torch.no_grad():
        together = rewards(critic, mixed)
        alone = rewards(critic, pack([[8]], [[13, 14]], pad_id=1))
        at_end = token_values(critic, pack([[8]], [[13, 14]], pad_id=1))[0, 2]
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone[0], at_end)


def test_rewards_equal_transformers_own_pooling(critic, tokenizer):
    """The classifier that TRL trained is the function that PPO maximises."""
    ids = torch.tensor([[5, 6, 7, 9, 10], [8, 13, 14, 1, 1]])
    with torch.no_grad():
        theirs = critic(
            input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()
        ).logits[:, 0]
        ours = rewards(critic, pack([[5, 6, 7], [8]], [[9, 10], [13, 14]], pad_id=1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_scores_are_centred_by_the_models_reward_mean(critic):
    sequences = pack([[5, 6, 7]], [[9, 10]], pad_id=1)
    with torch.no_grad():
        before = rewards(critic, sequences)
        critic.config.reward_mean = 0.75
        torch.testing.assert_close(rewards(critic, sequences), before - 0.75)


def test_a_value_is_that_of_the_state_before_its_token(policy, critic):
    """Changing a token must not change its own value, only later ones."""
    networks = ActorCritic(policy, critic)
    first, second = (pack([[5, 6, 7]], [[9, token, 11]], pad_id=1) for token in (10, 20))
    with torch.no_grad():
        a, b = networks.values(first)[0], networks.values(second)[0]
    torch.testing.assert_close(a[:2], b[:2])
    assert (a[2] - b[2]).abs() > 1e-4 and len(a) == 4


def test_the_ledger_counts_every_token(policy, critic, tokenizer, tmp_path):
    trainer = train(policy, critic, tokenizer, tmp_path, updates=2)
    phases = trainer.ledger.phases()
    assert 2 * 64 <= phases["rollout"]["tokens_generated"] <= 2 * 64 * 6
    trained = sum(book["tokens_trained"] for book in phases.values())
    assert trained > 2 * phases["rollout"]["tokens_generated"]
    assert ModelCost.of(critic).head == 0


@pytest.mark.parametrize("share_trunk", [False, True])
def test_the_ledger_agrees_with_the_counter(policy, critic, tokenizer, tmp_path, share_trunk):
    trainer = PPOTrainer(
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=critic,
        args=config(tmp_path, updates=2, rollouts=8, share_trunk=share_trunk),
        train_dataset=Dataset.from_dict({"prompt_ids": PROMPTS}),
        processing_class=tokenizer,
    )
    # The counter does not see the fused CPU attention; its plain form does the same.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        trainer.train()
    booked = trainer.ledger.totals(0)["flops"]
    # The one column of the value head is in no ledger.
    assert booked == pytest.approx(counted.get_total_flops(), rel=2e-3)
