"""Real reviews with human labels: a tokenizer, token ids, and splits by prompt."""

import bz2
import hashlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from pipelines.shared.assets import ROTTEN_TOMATOES
from pipelines.shared.specs import CorpusSpec, SamplingSpec
from pipelines.shared.steps import Context
from pipelines.shared.wheels import read

END = "<|endoftext|>"
PAD = "<|pad|>"
TEXTS = "texts.parquet"  # of the corpus step: prompts with their splits, and what they are from
SPLITS = ("sft", "preference", "validation", "evaluation")


def parse_reviews(raw: bytes) -> pd.DataFrame:
    """The corpus file as columns text and fresh (True: the critic's verdict was "fresh").

    Plot summaries, empty texts and repeated texts are dropped.
    """
    table = pd.read_csv(io.BytesIO(bz2.decompress(raw)))
    table = table[table["category"].isin(["fresh", "rotten"])].dropna(subset=["text"])
    reviews = pd.DataFrame(
        {"text": table["text"].str.strip(), "fresh": table["category"] == "fresh"}
    )
    return reviews[reviews["text"] != ""].drop_duplicates("text").reset_index(drop=True)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer (Sennrich et al. 2016), as a Transformers one; PAD is not EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def split_of(prompt_ids: Sequence[int], spec: CorpusSpec) -> str:
    """The split of a prompt, by the sha256 of its ids alone: a prompt can be in one split only."""
    widths = (spec.share_sft, spec.share_preference, spec.share_validation)
    return by_share(prompt_hash(prompt_ids), SPLITS, widths)


def by_share(digest: str, splits: Sequence[str], widths: Sequence[float]) -> str:
    """The split that a sha256 (hex) falls into.

    Args:
        widths: the share of each split but the last, which has the rest.
    """
    share = int(digest[:8], 16) / 2**32
    for split, width in zip(splits, widths, strict=False):
        if share < width:
            return split
        share -= width
    return splits[-1]


def prompt_hash(prompt_ids: Sequence[int]) -> str:
    """sha256 (hex) of the ids; its head is the prompt_id of every table."""
    return hashlib.sha256(" ".join(map(str, prompt_ids)).encode()).hexdigest()


def training_prompts(context: Context) -> list[list[int]]:
    """Token ids of the prompts that an arm samples on: those that the pairs are made from."""
    sampling: SamplingSpec = context.spec("sampling")
    reviews = pd.read_parquet(context.inputs["corpus"] / TEXTS)
    prompts = prompts_of(reviews, "preference", sampling.prompts)
    return prompts["prompt_ids"].map(list).tolist()


def prompts_of(
    reviews: pd.DataFrame, split: str, count: int, at_most: bool = False
) -> pd.DataFrame:
    """The first `count` distinct prompts of a split (0: all), in the order of their hash.

    Args:
        at_most: fewer will do.

    Returns:
        columns prompt_id, prompt, prompt_ids.

    Raises:
        UserError: the split has fewer, or none.
    """
    from pipelines.shared.errors import UserError

    chosen = (
        reviews[reviews["split"] == split].drop_duplicates("prompt_id").sort_values("prompt_id")
    )
    if len(chosen) < (1 if at_most else max(count, 1)):
        raise UserError(
            f"the {split} split has {len(chosen)} distinct prompts, {count} were asked for: "
            "ask for fewer (--set sampling.prompts or evaluation.prompts), or raise its share"
        )
    return chosen.head(count or len(chosen))[["prompt_id", "prompt", "prompt_ids"]].reset_index(
        drop=True
    )


def prepare(context: Context) -> None:
    """Step: write tokenizer/ and texts.parquet (text, fresh, ids, prompt, prompt_ids, prompt_id,
    split).

    The tokenizer is fitted on the text of all reviews, labels unseen: a prompt is defined by its
    tokens, so the splits need the tokenizer first. Every arm shares it.
    """
    spec: CorpusSpec = context.spec("corpus")
    reviews = parse_reviews(read(ROTTEN_TOMATOES, context.runtime.cache))
    if spec.max_reviews:
        order = reviews["text"].map(lambda text: hashlib.sha256(text.encode()).hexdigest())
        reviews = reviews.loc[order.sort_values().index[: spec.max_reviews]].sort_index()
        reviews = reviews.reset_index(drop=True)
    tokenizer = train_tokenizer(reviews["text"], spec.vocab_size)
    tokenizer.save_pretrained(context.path / "tokenizer")
    reviews["ids"] = tokenizer(list(reviews["text"]))["input_ids"]
    # A review no longer than its prompt has nothing left to complete.
    reviews = reviews[reviews["ids"].map(len) > spec.prompt_tokens].reset_index(drop=True)
    reviews["prompt_ids"] = reviews["ids"].map(lambda ids: ids[: spec.prompt_tokens])
    reviews["prompt"] = [tokenizer.decode(ids) for ids in reviews["prompt_ids"]]
    reviews["prompt_id"] = reviews["prompt_ids"].map(lambda ids: prompt_hash(ids)[:16])
    reviews["split"] = [split_of(ids, spec) for ids in reviews["prompt_ids"]]
    reviews.to_parquet(context.path / TEXTS)
    counts = reviews["split"].value_counts()
    context.log(
        {
            "reviews": len(reviews),
            **{f"reviews/{name}": int(counts.get(name, 0)) for name in SPLITS},
        }
    )
