"""The proxy against the gold reward, pair by pair."""

import numpy as np
import pytest
from synthetic_tables import toy_scores

from analysis.reward_model import pair_agreement, proxy_quality


def sft(**columns):
    return toy_scores(arm="sft", setting=np.nan, stage="sft", **columns)


def test_pairs_by_hand():
    # Pairs (0,1) agree, (0,2) disagree, (1,2) has equal gold, (0,3) is a tie of the proxy.
    agreed = pair_agreement([1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 1.0, 2.0])
    assert agreed.tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]


def test_accuracy_is_clustered_by_prompt():
    row = proxy_quality(sft(reward_proxy=[0.0, 1.0, 1.0, 0.0])).iloc[0]
    assert row["pairwise_accuracy"] == 0.5 and row["pairwise_accuracy_se"] == pytest.approx(0.5)
    assert (row["n_pairs"], row["n_prompts"]) == (2, 2)
    assert row["pearson"] == pytest.approx(0.0)


def test_undefined_is_null_and_absent_is_no_row():
    row = proxy_quality(sft(reward_proxy=1.0)).iloc[0]
    assert row["pairwise_accuracy"] == 0.5 and np.isnan(row["pearson"])
    assert proxy_quality(sft(reward_proxy=np.nan)).empty
    assert proxy_quality(toy_scores()).empty
