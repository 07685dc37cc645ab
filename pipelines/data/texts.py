"""Labelled texts in a pretrained model's tokens: prompts, and splits by prompt.

Sources:
- rotten-tomatoes: review snippets with the critic's verdict, from a wheel;
- imdb: whole reviews, columns text and label (0 negative, 1 positive), train and test split
  (stanfordnlp/imdb on the hub).
"""

import hashlib
from pathlib import Path

import pandas as pd

from pipelines.data.encoding import Encoder
from pipelines.data.specs import TextsSpec
from pipelines.shared.assets import IMDB_TEST, IMDB_TRAIN, ROTTEN_TOMATOES
from pipelines.shared.corpus import SPLITS, TEXTS, by_share, parse_reviews, prompt_hash
from pipelines.shared.errors import UserError
from pipelines.shared.models import load_config, load_tokenizer
from pipelines.shared.steps import Context
from pipelines.shared.wheels import read

HELD_OUT = "evaluation"
BREAK = "<br />"  # a line's end in IMDb's reviews, which come from web pages


def prepare(context: Context) -> None:
    """Step: write tokenizer/ and texts.parquet (text, positive, ids, prompt, prompt_ids, prompt_id,
    split); ids end in EOS and are cut at corpus.max_tokens.

    Raises:
        UserError: the model has fewer positions than that.
    """
    spec: TextsSpec = context.spec("corpus")
    start = context.inputs["start"] / "checkpoint"
    positions = getattr(load_config(start), "max_position_embeddings", None)
    if positions is not None and spec.max_tokens > positions:
        raise UserError(
            f"corpus.max_tokens = {spec.max_tokens}: the model has {positions} positions"
        )
    texts = labelled_texts(spec.source, context.runtime.cache)
    if spec.max_texts:
        order = texts["text"].map(_digest)
        texts = texts.loc[order.sort_values().index[: spec.max_texts]].sort_index()
    tokenizer = load_tokenizer(start)
    tokenizer.save_pretrained(context.path / "tokenizer")
    table = encoded(texts.reset_index(drop=True), spec, Encoder(tokenizer))
    table.to_parquet(context.path / TEXTS)
    counts = table["split"].value_counts()
    context.log(
        {
            "texts": len(table),
            "texts_cut": int((table["ids"].map(len) == spec.max_tokens).sum()),
            "tokens": int(table["ids"].map(len).sum()),
            **{f"texts/{name}": int(counts.get(name, 0)) for name in SPLITS},
        }
    )


def encoded(texts: pd.DataFrame, spec: TextsSpec, encoder: Encoder) -> pd.DataFrame:
    """Texts with token ids, prompts and splits.

    A text that is no longer than its prompt has nothing left to complete, and is left out. So is a
    test text whose prompt a training text has as well: a prompt is in one split only.

    Args:
        texts: text, positive, and tested (of the source's own test split) where it has one.
    """
    whole = [list(encoder.prompt(text)) for text in texts["text"]]
    lengths = [prompt_tokens(text, spec) for text in texts["text"]]
    texts = texts.assign(
        ids=[[*ids, encoder.eos][: spec.max_tokens] for ids in whole],
        prompt_ids=[ids[:length] for ids, length in zip(whole, lengths, strict=True)],
    )
    longer = [len(ids) > length for ids, length in zip(whole, lengths, strict=True)]
    texts = texts[longer].reset_index(drop=True)
    texts["prompt"] = [encoder.text(ids) for ids in texts["prompt_ids"]]
    texts["prompt_id"] = texts["prompt_ids"].map(lambda ids: prompt_hash(ids)[:16])
    widths = (spec.share_sft, spec.share_preference, spec.share_validation)
    digests = texts["prompt_ids"].map(prompt_hash)
    texts["split"] = [by_share(digest, SPLITS, widths) for digest in digests]
    if "tested" in texts:
        training = set(texts.loc[~texts["tested"], "prompt_id"])
        texts.loc[texts["tested"], "split"] = HELD_OUT
        again = texts["tested"] & texts["prompt_id"].isin(training)
        # Training texts that the shares leave over are nobody's.
        texts = texts[~again & (texts["tested"] | (texts["split"] != HELD_OUT))]
    return texts.drop(columns="tested", errors="ignore").reset_index(drop=True)


def prompt_tokens(text: str, spec: TextsSpec) -> int:
    """How many tokens of a text are its prompt: drawn evenly, by the text itself."""
    choices = spec.longest_prompt - spec.shortest_prompt + 1
    return spec.shortest_prompt + int(_digest(text)[:8], 16) % choices


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def labelled_texts(source: str, cache: Path) -> pd.DataFrame:
    """Columns text, positive (bool) and, where the source has a test split, tested (bool); each
    text once."""
    if source == "rotten-tomatoes":
        reviews = parse_reviews(read(ROTTEN_TOMATOES, cache))
        return reviews.rename(columns={"fresh": "positive"})
    parts = {True: IMDB_TEST, False: IMDB_TRAIN}
    tables = [imdb_texts(asset.file(cache)).assign(tested=test) for test, asset in parts.items()]
    # A text of both splits stays in the test split alone.
    return pd.concat(tables, ignore_index=True).drop_duplicates("text", ignore_index=True)


def imdb_texts(path: Path) -> pd.DataFrame:
    """Columns text and positive of a split of stanfordnlp/imdb.

    Raises:
        UserError: it has other columns, or other labels than 0 and 1.
    """
    table = pd.read_parquet(path)
    if not {"text", "label"} <= set(table.columns):
        has = ", ".join(map(str, table.columns))
        raise UserError(f"{path}: has no columns text and label (its columns: {has})")
    if not table["label"].isin([0, 1]).all():
        wrong = table.loc[~table["label"].isin([0, 1]), "label"].iloc[0]
        raise UserError(f"{path}: label {wrong}: must be 0 (negative) or 1 (positive)")
    text = table["text"].str.replace(BREAK, "\n", regex=False).str.strip()
    made = pd.DataFrame({"text": text, "positive": table["label"] == 1})
    return made[made["text"] != ""]
