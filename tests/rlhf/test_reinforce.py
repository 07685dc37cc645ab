"""REINFORCE, as the special case of PPO that it is."""

import copy

import torch
from datasets import Dataset

from pipelines.rlhf import PPOConfig, PPOTrainer
from pipelines.rlhf.losses import gae
from pipelines.rlhf.ppo_stage import ppo_arguments
from pipelines.rlhf.reinforce import as_ppo
from pipelines.rlhf.specs import ReinforceSpec


def even(completion_ids, **columns) -> list[float]:
    return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]


def test_each_rollout_is_used_once_in_one_step_and_nothing_is_clipped(policy, tokenizer, tmp_path):
    spec = ReinforceSpec(kl_coef=0.01, updates=4, rollouts=32, learning_rate=3e-3)
    trainer = PPOTrainer(
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_funcs=even,
        args=PPOConfig(
            str(tmp_path),
            **ppo_arguments(as_ppo(spec)),
            max_completion_length=6,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt_ids": [[5, 6, 7], [8, 9, 10]]}),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == spec.updates
    rows = [row for row in trainer.state.log_history if "policy/clip_fraction" in row]
    assert len(rows) == spec.updates
    for row in rows:
        assert row["policy/clip_fraction"] == 0
        assert row["policy/ratio_variance"] < 1e-8  # the ratio is 1 everywhere


def test_the_advantage_is_the_return_less_the_value():
    spec = as_ppo(ReinforceSpec())
    rewards = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.25, 3.0]], dtype=torch.float64)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    advantages, _ = gae(rewards, values, mask, gamma=spec.gamma, lam=spec.gae_lambda)
    assert advantages.tolist() == [[7 - 0.5, 6 - 0.25, 4 - 3.0]]
    assert not spec.whiten_advantages and spec.clip_range_value == 0


def test_its_settings_reach_the_trainer():
    spec = ReinforceSpec(
        kl_coef=0.2,
        updates=7,
        rollouts=10,
        learning_rate=5e-3,
        vf_coef=0.4,
        max_grad_norm=2.0,
        snapshots=2,
    )
    made = vars(as_ppo(spec))
    assert {name: made[name] for name in vars(spec)} == vars(spec)
