"""Prompts as text: what is cut, and where."""

import pytest
from datasets import Dataset

from pipelines.rlhf import PPOConfig
from pipelines.rlhf.prompts import PromptStream, encode_prompts

TEXT = "a fine, funny\nand moving film"


def encode(tokenizer, tmp_path, text=TEXT, **changes):
    args = PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **changes)
    [ids] = encode_prompts(Dataset.from_dict({"prompt": [text]}), tokenizer, args, None)
    return tokenizer.decode(ids)


def test_whitespace_at_the_end_goes_so_that_the_completion_begins_with_it(tokenizer, tmp_path):
    assert encode(tokenizer, tmp_path, "a fine \n") == "a fine"
    assert encode(tokenizer, tmp_path, "a fine ", strip_prompts=False) == "a fine "


def test_a_long_prompt_keeps_its_end_and_begins_at_a_boundary(tokenizer, tmp_path):
    ids = tokenizer(TEXT)["input_ids"]
    length = len(ids) - 2
    cut = tokenizer.decode(ids[-length:])
    assert not TEXT.startswith(cut)
    words = encode(tokenizer, tmp_path, max_prompt_length=length)
    assert TEXT.endswith(words) and TEXT[: -len(words)][-1].isspace()
    lines = encode(tokenizer, tmp_path, max_prompt_length=length, truncate_at="newline")
    assert lines == "and moving film"
    tokens = encode(tokenizer, tmp_path, max_prompt_length=length, truncate_at="token")
    assert tokens == cut


def test_a_word_longer_than_the_limit_is_cut_between_tokens(tokenizer, tmp_path):
    text = encode(tokenizer, tmp_path, "x" * 40, max_prompt_length=5)
    assert 0 < len(text) <= 40 and set(text) == {"x"}


def test_ids_are_never_cut(tokenizer, tmp_path):
    args = PPOConfig(str(tmp_path), use_cpu=True, bf16=False, max_prompt_length=2)
    with pytest.raises(ValueError, match="only text prompts are cut"):
        encode_prompts(Dataset.from_dict({"prompt_ids": [[5, 6, 7]]}), tokenizer, args, None)


def test_the_order_of_prompts_can_stay_what_it_was(tmp_path):
    def drawn(reshuffle):
        args = PPOConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            rollouts=4,
            updates=4,
            num_ppo_epochs=1,
            reshuffle_prompts=reshuffle,
        )
        batches = list(PromptStream(8, args))[:: args.steps_per_update]
        return [index for batch in batches for index in batch]

    kept, shuffled = drawn(False), drawn(True)
    assert kept[:8] == kept[8:] and shuffled[:8] != shuffled[8:]
    assert sorted(kept[:8]) == sorted(shuffled[8:]) == list(range(8))
