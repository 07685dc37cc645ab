"""Prompts as token ids, from text or messages, and the order in which PPO takes them."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from pipelines.rlhf.ppo_config import PPOConfig

BOUNDARIES = {"whitespace": re.compile(r"\s"), "newline": re.compile(r"\n")}


def encode_prompts(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, args: PPOConfig, context: int | None
) -> list[list[int]]:
    """Token ids of every prompt of a dataset in TRL's text or conversational format.

    Args:
        dataset: with a column prompt (text, or messages: a list of role and content), or prompt_ids
            (token ids, taken as they are).
        context: positions of the model; None: not known.

    Raises:
        ValueError: no prompts, no such column, or a prompt that is empty or, with the completion,
            longer than the context; the message names the row.
    """
    if len(dataset) == 0:
        raise ValueError("train_dataset has no prompts: there is nothing to roll out")
    columns = dataset.column_names
    if "prompt_ids" not in columns and "prompt" not in columns:
        raise ValueError(f"train_dataset has no column prompt or prompt_ids, only {columns}")
    if "prompt_ids" in columns:
        encoded = [list(ids) for ids in dataset["prompt_ids"]]
    else:
        encoded = [_encode(prompt, tokenizer, args) for prompt in dataset["prompt"]]
    room = None if context is None else context - args.max_completion_length
    for row, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {row} of train_dataset is empty: give it at least one token")
        if room is not None and len(ids) > room:
            raise ValueError(
                f"prompt {row} of train_dataset has {len(ids)} tokens, but only {room} of the "
                f"model's {context} positions are left beside the completion: drop it, shorten "
                "max_completion_length, or set max_prompt_length (which cuts text prompts)"
            )
        if args.max_prompt_length is not None and len(ids) > args.max_prompt_length:
            raise ValueError(
                f"prompt {row} of train_dataset has {len(ids)} tokens, max_prompt_length is "
                f"{args.max_prompt_length}: only text prompts are cut, drop or shorten it"
            )
    return encoded


def _encode(prompt: Any, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> list[int]:
    if not isinstance(prompt, str):
        text: Any = tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    text = prompt.rstrip() if args.strip_prompts else prompt
    ids = tokenizer(text)["input_ids"]
    if args.max_prompt_length is None or len(ids) <= args.max_prompt_length:
        return ids
    return truncate(text, ids, tokenizer, args.max_prompt_length, args.truncate_at)


def truncate(
    text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, length: int, at: str
) -> list[int]:
    """The end of a prompt in at most `length` tokens, beginning at a boundary and not mid-word.

    Where there is no boundary that late in the text, the cut is made between tokens.

    Args:
        text, ids: the prompt, and its tokens (more than `length`).
        at: whitespace, newline or token.
    """
    if at != "token":
        kept = str(tokenizer.decode(ids[-length:]))
        for boundary in BOUNDARIES[at].finditer(kept):
            shorter = tokenizer(kept[boundary.end() :])["input_ids"]
            if 0 < len(shorter) <= length:
                return shorter
    if ids[0] == tokenizer.bos_token_id and length > 1:  # it is no word to be cut
        return [ids[0], *ids[1 - length :]]
    return ids[-length:]


class PromptStream(Sampler[list[int]]):
    """Indices of each update's prompts, repeated for every micro-batch that the Trainer asks for.

    Prompts are reshuffled each time they are exhausted; the order depends on the seed alone. Every
    process sees the whole list, and takes its share of it at rollout.
    """

    def __init__(self, prompts: int, args: PPOConfig) -> None:
        self.prompts, self.args = prompts, args
        self.repeats = args.steps_per_update * args.gradient_accumulation_steps

    def __len__(self) -> int:
        return self.args.updates * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = []
        generator = torch.Generator().manual_seed(self.args.seed)
        shuffled = torch.randperm(self.prompts, generator=generator).tolist()
        for _ in range(self.args.updates):
            while len(order) < self.args.rollouts:
                order += shuffled
                if self.args.reshuffle_prompts:
                    shuffled = torch.randperm(self.prompts, generator=generator).tolist()
            batch, order = order[: self.args.rollouts], order[self.args.rollouts :]
            for _ in range(self.repeats):
                yield batch
