"""Batches of a table of completions."""

import pandas as pd
import torch

from pipelines.shared.generation import packed_batches

PAD = 1


def test_batches_are_of_like_lengths_and_know_their_rows():
    lengths = [(2, 3), (4, 1), (2, 5), (2, 3), (4, 6)]
    table = pd.DataFrame(
        {
            "prompt_ids": [[10 + row] * prompt for row, (prompt, _) in enumerate(lengths)],
            "completion_ids": [[20 + row] * size for row, (_, size) in enumerate(lengths)],
        },
        index=[7, 3, 3, 0, 9],  # places are counted, whatever the index
    )
    batches = list(packed_batches(table, PAD, torch.device("cpu"), size=2))
    assert [places.tolist() for places, _ in batches] == [[4, 1], [2, 0], [3]]
    assert [batch.shape for _, batch in batches] == [(2, 10), (2, 7), (1, 5)]
    for places, batch in batches:
        prompts, completions = batch.unpacked()
        assert prompts == table["prompt_ids"].iloc[places].tolist()
        assert completions == table["completion_ids"].iloc[places].tolist()
