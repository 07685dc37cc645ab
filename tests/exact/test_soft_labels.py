"""The soft-label trainers against TRL's own, which have hard labels only."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from scipy.special import expit
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from trl import DPOConfig, RewardConfig

from pipelines.dpo.dpo import ExactIdsDPOTrainer, SoftLabelDPOTrainer
from pipelines.exact.specs import OracleLabelsSpec
from pipelines.exact.steps import calibration, comparisons
from pipelines.rlhf.reward_model import AccountedRewardTrainer, SoftLabelRewardTrainer
from pipelines.shared.models import load_policy, new_reward_model

PLAIN = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_length": None,
    "per_device_train_batch_size": 6,
    "remove_unused_columns": False,
}


def pairs_of(made, preference: float) -> Dataset:
    task = made.task
    chosen, rejected = [0, 5, 9, 14, 20, 33], [7, 3, 11, 60, 2, 1]
    columns = {
        "prompt_ids": [task.prompts[row % 4] for row in range(6)],
        "chosen_ids": [task.completions[y] for y in chosen],
        "rejected_ids": [task.completions[y] for y in rejected],
        "ref_chosen_logps": [-1.0] * 6,
        "ref_rejected_logps": [-2.0] * 6,
        "preference": [preference] * 6,
    }
    return Dataset.from_dict(columns)


def dpo_loss_of(made, folder, kind, preference: float) -> float:
    args = DPOConfig(str(folder), beta=0.3, precompute_ref_log_probs=True, **PLAIN)
    policy = load_policy(made.folder / "checkpoint")
    trainer = kind(
        model=policy,
        args=args,
        train_dataset=pairs_of(made, preference),
        processing_class=made.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        return float(trainer.compute_loss(policy, batch))


def reward_loss_of(made, folder, kind, preference: float) -> float:
    torch.manual_seed(0)
    model = new_reward_model(made.folder / "checkpoint")
    trainer = kind(
        model=model,
        args=RewardConfig(str(folder), **PLAIN),
        train_dataset=pairs_of(made, preference),
        processing_class=made.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        return float(trainer.compute_loss(model, batch))


@pytest.mark.parametrize("kind", [AccountedRewardTrainer, SoftLabelRewardTrainer])
def test_reward_models_run_their_last_mlp_at_the_ends_alone(fixed, tmp_path, kind, monkeypatch):
    seen, forward = [], GPT2MLP.forward
    monkeypatch.setattr(
        GPT2MLP, "forward", lambda self, given: seen.append(given.dim()) or forward(self, given)
    )
    reward_loss_of(fixed, tmp_path, kind, 1.0)
    assert seen[-1] == 2  # (N, width), where others get (B, T, width)


@pytest.mark.parametrize(
    ("loss_of", "hard", "soft"),
    [
        (dpo_loss_of, ExactIdsDPOTrainer, SoftLabelDPOTrainer),
        (reward_loss_of, AccountedRewardTrainer, SoftLabelRewardTrainer),
    ],
)
def test_a_certain_label_gives_trls_loss_and_others_lie_between(
    fixed, tmp_path, loss_of, hard, soft
):
    theirs = loss_of(fixed, tmp_path, hard, 1.0)
    right, wrong, half = (loss_of(fixed, tmp_path, soft, p) for p in (1.0, 0.0, 0.5))
    assert right == pytest.approx(theirs, abs=1e-5)
    assert half == pytest.approx((right + wrong) / 2, abs=1e-5)
    assert abs(right - wrong) > 1e-3


def test_exact_comparisons_are_all_pairs_with_their_probability(fixed):
    task = fixed.task
    table = comparisons(task, OracleLabelsSpec(kind="exact"), seed=0)
    assert len(table) == 4 * 64 * 63 // 2
    assert not table.duplicated(["prompt", "chosen", "rejected"]).any()
    row = table.iloc[3000]
    x, y, z = (int(row[name]) for name in ("prompt", "chosen", "rejected"))
    assert row["preference"] == pytest.approx(expit(task.rewards[x, y] - task.rewards[x, z]))
    some = comparisons(task, OracleLabelsSpec(kind="exact", at_most=50), seed=0)
    assert len(some) == 50 and (some["chosen"] != some["rejected"]).all()


def test_sampled_comparisons_agree_with_the_truth_as_often_as_they_should(fixed):
    task = fixed.task
    table = comparisons(task, OracleLabelsSpec(kind="sampled", pairs=6000), seed=0)
    assert (table["preference"] == 1).all() and set(table["prompt"]) == {0, 1, 2, 3}
    margin = (
        task.rewards[table["prompt"], table["chosen"]]
        - task.rewards[table["prompt"], table["rejected"]]
    )
    apart = margin != 0
    expected = expit(np.abs(margin[apart])).mean()
    assert (margin[apart] > 0).mean() == pytest.approx(expected, abs=0.02)
    drawn = pd.concat([table["chosen"], table["rejected"]])[table["prompt"].eq(0).tolist() * 2]
    share = drawn.value_counts(normalize=True).reindex(range(64), fill_value=0)
    np.testing.assert_allclose(share, np.exp(task.ref_logp[0]), atol=0.02)
    other = comparisons(task, OracleLabelsSpec(kind="sampled", pairs=6000), seed=1)
    assert not other.equals(table)


def test_the_truth_is_calibrated_and_noise_is_not(fixed):
    task = fixed.task
    perfect = calibration(task, task.rewards + 3.0)
    assert perfect["accuracy"] == 1 and perfect["calibration_error"] == pytest.approx(0, abs=1e-9)
    upside_down = calibration(task, -task.rewards)
    assert upside_down["accuracy"] == 0 and upside_down["calibration_error"] > 0.3
