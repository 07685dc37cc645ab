"""Somebody's pairs as what every arm stands on: token ids, splits by prompt, training pairs."""

import csv
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data import brought
from pipelines.data.checks import Checked, check, prompt_key, prompts_of_file
from pipelines.data.encoding import Encoder
from pipelines.data.pairs import SIDES, Pair, read_pairs
from pipelines.data.pipeline import PAIRS, PROMPTS, TEST
from pipelines.data.prompts import read_prompts
from pipelines.data.rows import unit_of
from pipelines.data.specs import DataSpec
from pipelines.shared.corpus import TEXTS, prompt_hash
from pipelines.shared.errors import UserError
from pipelines.shared.models import load_config, load_tokenizer
from pipelines.shared.preferences import MARGIN_COLUMNS, PAIR_COLUMNS
from pipelines.shared.steps import Context

SPLITS = ("evaluation", "validation", "judge", "preference")
TRAINING, HELD_OUT = "preference", "evaluation"


def prepare(context: Context) -> None:
    """Step: write tokenizer/, texts.parquet (prompt, prompt_ids, prompt_id, split; each prompt
    once), all_pairs.parquet (with their splits) and left_out.csv (line, problem, detail).

    Raises:
        UserError: the file is refused (see `checks.RULES`), or too little of it is left.
    """
    spec: DataSpec = context.spec("data")
    start = context.inputs["start"] / "checkpoint"
    tokenizer = load_tokenizer(start)
    encoder = Encoder(tokenizer)
    longest = spec.max_length or getattr(load_config(start), "max_position_embeddings", 0)
    if not longest:
        raise UserError("the model does not say how many positions it has: set data.max_length")
    room = context.spec("sampling").max_new_tokens
    path = brought.of(context, PAIRS)
    test = brought.of(context, TEST) if TEST in context.step.assets else None
    limits: dict[str, Any] = {"lengths": encoder.lengths, "longest": longest, "room": room}
    try:
        held_out = _checked(test, limits, frozenset()) if test else None
        keys = prompts_of_file(test) if test else frozenset()
        found = _checked(path, limits, keys)
        rows = [(pair, split_of(pair.prompt, spec)) for pair in found.pairs]
        rows += [(pair, HELD_OUT) for pair in (held_out.pairs if held_out else [])]
        table = encoded(rows, encoder)
        prompts = table[["prompt_id", "prompt", "prompt_ids", "split"]]
        if PROMPTS in context.step.assets:
            more = _prompts(brought.of(context, PROMPTS), encoder, longest - room, spec, keys)
            prompts = pd.concat([prompts, more], ignore_index=True)
    except ValueError as error:  # of the tokenizer
        raise UserError(f"{path}: {error}") from None
    if TRAINING not in set(table["split"]):
        raise UserError(f"{path}: no pairs are left to train on")
    tokenizer.save_pretrained(context.path / "tokenizer")
    table.to_parquet(context.path / "all_pairs.parquet")
    texts = sampled_on(prompts, spec.evaluation_prompts)
    if (texts["split"] == HELD_OUT).sum() < 2:
        raise UserError(
            f"{path}: fewer than 2 prompts are held out to judge policies on: raise "
            "data.share_evaluation, or name a file of test pairs with --test"
        )
    texts.to_parquet(context.path / TEXTS)
    _write_left_out(context.path / "left_out.csv", found)
    kinds = {kind: len(found.of(kind)) for kind in dict.fromkeys(p.kind for p in found.problems)}
    context.log(
        {
            "rows": found.rows,
            **{f"rows/{kind}": count for kind, count in kinds.items()},
            **{f"pairs/{name}": int((table["split"] == name).sum()) for name in SPLITS},
            **{f"prompts/{name}": int((texts["split"] == name).sum()) for name in SPLITS},
        }
    )


def _checked(path: Path, limits: dict[str, Any], test_prompts: frozenset[str]) -> Checked:
    """A file's pairs. Raises `UserError` for the first row that makes it unfit."""
    found = check(read_pairs(path), **limits, test_prompts=test_prompts)
    if found.refused:
        first = found.refused[0]
        raise UserError(
            f"{path}, {unit_of(path)} {first.number}: {first.detail} (all such rows: "
            f"`rlhf-vs-dpo check-data {path.name}`)"
        )
    return found


def split_of(prompt: Any, spec: DataSpec) -> str:
    """The split of a prompt, by the sha256 of its words: however it is typed, it is in one."""
    share = int(hashlib.sha256(prompt_key(prompt).encode()).hexdigest()[:8], 16) / 2**32
    for name in SPLITS[:-1]:
        width = getattr(spec, f"share_{name}")
        if share < width:
            return name
        share -= width
    return TRAINING


def encoded(rows: Iterable[tuple[Pair, str]], encoder: Encoder) -> pd.DataFrame:
    """Pairs as prompt_id, prompt, prompt_ids, chosen, chosen_ids, rejected, rejected_ids, split and
    line (of the file)."""
    made = []
    for pair, split in rows:
        prompt = list(encoder.prompt(pair.prompt))
        ids = {side: encoder.completion(pair.prompt, getattr(pair, side)) for side in SIDES}
        made.append(
            {
                "prompt_id": prompt_hash(prompt)[:16],
                "prompt": encoder.text(prompt),
                "prompt_ids": prompt,
                **{side: encoder.text(ids[side]) for side in SIDES},
                **{f"{side}_ids": ids[side] for side in SIDES},
                "split": split,
                "line": pair.number,
            }
        )
    return pd.DataFrame(made)


def _prompts(
    path: Path, encoder: Encoder, longest: int, spec: DataSpec, test_prompts: frozenset[str]
) -> pd.DataFrame:
    """Prompts without pairs, split as those of the pairs are; a split that only pairs are of use
    in gets none."""
    made = []
    for prompt in read_prompts(path):
        ids, split = list(encoder.prompt(prompt)), split_of(prompt, spec)
        if len(ids) > longest or prompt_key(prompt) in test_prompts or split == "judge":
            continue
        identity = prompt_hash(ids)[:16]
        row = {"prompt_id": identity, "prompt": encoder.text(ids), "prompt_ids": ids}
        made.append({**row, "split": split})
    return pd.DataFrame(made, columns=["prompt_id", "prompt", "prompt_ids", "split"])


def sampled_on(prompts: pd.DataFrame, most: int) -> pd.DataFrame:
    """Each prompt once, and of those that policies are judged on at most so many."""
    texts = prompts.drop_duplicates("prompt_id").sort_values("prompt_id")
    held_out = texts["split"].isin([HELD_OUT, "validation"])
    kept = pd.concat([texts[~held_out], texts[held_out].groupby("split").head(most)])
    return kept.reset_index(drop=True)


def _write_left_out(path: Path, found: Checked) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["line", "problem", "done", "detail"])
        writer.writerows([p.number, p.kind, p.done, p.detail] for p in found.problems)


def pairs_of(context: Context, split: str) -> pd.DataFrame:
    """The pairs of a split, in the order of the file."""
    table = pd.read_parquet(context.inputs["corpus"] / "all_pairs.parquet")
    return table[table["split"] == split].reset_index(drop=True)


def completions(context: Context) -> None:
    """Step: write completions.parquet (prompt_id, prompt, prompt_ids, sample, completion,
    completion_ids, finished): each completion of a training pair once."""
    table = pairs_of(context, TRAINING)
    both = pd.concat(
        [
            table[["prompt_id", "prompt", "prompt_ids"]].assign(
                completion=table[side], completion_ids=table[f"{side}_ids"]
            )
            for side in SIDES
        ],
        ignore_index=True,
    )
    both = both.assign(key=both["completion_ids"].map(tuple))
    both = both.drop_duplicates(["prompt_id", "key"]).sort_values(["prompt_id", "key"])
    both["sample"] = both.groupby("prompt_id").cumcount()
    both = both.assign(finished=True).drop(columns="key").reset_index(drop=True)
    both.to_parquet(context.path / "completions.parquet")
    context.log({"completions": len(both), "prompts": int(both["prompt_id"].nunique())})


def pairs(context: Context) -> None:
    """Step: write pairs.parquet (`PAIR_COLUMNS` without `MARGIN_COLUMNS`: people give none)."""
    table = pairs_of(context, TRAINING)
    made = pd.read_parquet(context.inputs["completions"] / "completions.parquet")
    places = {
        (prompt, tuple(ids)): sample
        for prompt, ids, sample in zip(
            made["prompt_id"], made["completion_ids"], made["sample"], strict=True
        )
    }
    for side in SIDES:
        keys = zip(table["prompt_id"], table[f"{side}_ids"].map(tuple), strict=True)
        table[f"{side}_sample"] = [places[key] for key in keys]
        table[f"{side}_finished"] = True
    kept = [name for name in PAIR_COLUMNS if name not in MARGIN_COLUMNS]
    table[kept].to_parquet(context.path / "pairs.parquet")
    context.log({"pairs": len(table)})
