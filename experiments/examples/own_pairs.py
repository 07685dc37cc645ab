"""A model and a file of pairs to try `custom` on, where you have none at hand: real text, no hub.

Pairs: what critics said of one film, a "fresh" review preferred to a "rotten" one, in the form of
Anthropic's hh-rlhf. Model: a GPT-2 of 2.7 million weights, trained on all of the reviews (whatever
their verdict) in about three minutes on two CPU cores.

    python experiments/examples/own_pairs.py OUT [--pairs 2000] [--epochs 1]
    rlhf-vs-dpo run custom --model OUT/model --pairs OUT/pairs.jsonl.gz
"""

import argparse
import bz2
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipelines.shared.allocator import keep_freed_memory
from pipelines.shared.assets import ROTTEN_TOMATOES, default_cache
from pipelines.shared.corpus import train_tokenizer
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec
from pipelines.shared.wheels import read

BATCH, RATE = 32, 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    films = reviews()
    with gzip.open(options.out / "pairs.jsonl.gz", "wt", encoding="utf-8") as file:
        for row in pairs(films, options.pairs):
            file.write(json.dumps(row) + "\n")
    texts = [dialogue(film, text) for film, text in zip(films["film"], films["text"], strict=True)]
    pretrain(texts, options.epochs, options.out / "model")
    print(f"wrote {options.out / 'pairs.jsonl.gz'} and {options.out / 'model'}")


def reviews() -> pd.DataFrame:
    """Columns film, text and fresh."""
    raw = bz2.decompress(read(ROTTEN_TOMATOES, default_cache()))
    table = pd.read_csv(io.BytesIO(raw)).dropna(subset=["text"])
    table = table[table["category"].isin(["fresh", "rotten"])].drop_duplicates("text")
    film = table["movie_name"].str.replace("_", " ").str.title()
    return pd.DataFrame(
        {"film": film, "text": table["text"].str.strip(), "fresh": table["category"] == "fresh"}
    ).reset_index(drop=True)


def dialogue(film: str, text: str) -> str:
    return f"\n\nHuman: What did a critic say of the film {film}?\n\nAssistant: {text}"


def pairs(films: pd.DataFrame, count: int) -> list[dict[str, str]]:
    """At most `count` pairs, drawn evenly from all pairs of a film's fresh and rotten reviews."""
    rows = []
    for film, own in films.groupby("film"):
        for good in own.loc[own["fresh"], "text"]:
            for bad in own.loc[~own["fresh"], "text"]:
                rows.append({"chosen": dialogue(film, good), "rejected": dialogue(film, bad)})
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    return [rows[place] for place in order]


def pretrain(texts: list[str], epochs: int, folder: Path) -> None:
    """Maximum likelihood on texts, EOS at their ends; writes a folder in Transformers' format."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts, vocab_size=4096)
    model = new_policy(ModelSpec(layers=4, width=192, heads=4, context=256), tokenizer)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    steps = epochs * len(rows) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = np.random.default_rng(0)
    for step in range(steps):
        chosen = [rows[place] for place in generator.choice(len(rows), BATCH, replace=False)]
        batch = tokenizer.pad({"input_ids": chosen}, return_tensors="pt", padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: {loss.item():.3f} nats a token", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
