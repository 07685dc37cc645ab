"""Pairs: all of them, labelled by Bradley-Terry, with the ids that were sampled."""

import numpy as np
import pandas as pd
import pytest

from pipelines.shared.preferences import PAIR_COLUMNS, all_pairs, simulated_labels, swapped


@pytest.fixture
def completions() -> pd.DataFrame:
    rows = [
        {
            "prompt_id": prompt,
            "prompt": prompt,
            "prompt_ids": [1, 2],
            "sample": sample,
            "completion": f"{prompt}{sample}",
            "completion_ids": [sample, 9],
            "finished": sample % 2 == 0,
            "reward": float(sample),
        }
        for prompt in ("p", "q")
        for sample in range(4)
    ]
    return pd.DataFrame(rows)


def test_four_completions_give_six_pairs_of_one_prompt(completions):
    pairs = all_pairs(completions)
    assert len(pairs) == 12
    assert (pairs["chosen"].str[0] == pairs["rejected"].str[0]).all()
    assert set(zip(pairs["chosen"], pairs["rejected"], strict=True)) >= {
        ("p0", "p1"),
        ("p2", "p3"),
        ("q0", "q3"),
    }


def test_swapping_moves_every_column_of_a_pair(completions):
    pairs = all_pairs(completions)
    swap = np.arange(len(pairs)) % 2 == 1
    mixed = swapped(pairs, swap)
    assert list(mixed.columns) == list(PAIR_COLUMNS)
    for before, after, exchanged in zip(
        pairs.to_dict("records"), mixed.to_dict("records"), swap, strict=True
    ):
        for column in ("", "_ids", "_finished", "_reward"):
            here, there = f"chosen{column}", f"rejected{column}"
            assert after[here] == before[there if exchanged else here]
            assert after[there] == before[here if exchanged else there]
        assert after["chosen_sample"] == after["chosen_reward"]
        assert after["rejected_sample"] == after["rejected_reward"]


def test_labels_follow_bradley_terry():
    count = 40_000
    first, second = np.full(count, 1.0), np.full(count, 0.0)
    for temperature, noise in ((1.0, 0.0), (0.5, 0.0), (1.0, 0.3)):
        labels = simulated_labels(first, second, temperature, noise, np.random.default_rng(0))
        prefers_second = 1 / (1 + np.exp(1.0 / temperature))
        expected = prefers_second * (1 - noise) + (1 - prefers_second) * noise
        assert labels.mean() == pytest.approx(expected, abs=0.01)
