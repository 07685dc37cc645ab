"""Somebody's pairs as what every arm stands on: token ids, splits by prompt, training pairs."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data import brought
from pipelines.data.checks import Checked, Problem, check, prompt_key, prompts_of_file
from pipelines.data.encoding import Encoder
from pipelines.data.pairs import SIDES, Pair, Text, read_pairs
from pipelines.data.pipeline import PAIRS, PROMPTS, TEST
from pipelines.data.prompts import read_prompts
from pipelines.data.rows import unit_of
from pipelines.data.specs import DataSpec
from pipelines.shared.corpus import TEXTS, by_share, prompt_hash
from pipelines.shared.errors import UserError
from pipelines.shared.models import load_config, load_tokenizer
from pipelines.shared.preferences import MARGIN_COLUMNS, PAIR_COLUMNS
from pipelines.shared.steps import Context

SPLITS = ("evaluation", "validation", "judge", "preference")
TRAINING, HELD_OUT = "preference", "evaluation"


def prepare(context: Context) -> None:
    """Step: write tokenizer/, texts.parquet (prompt, prompt_ids, prompt_id, split; each prompt
    once), all_pairs.parquet (with their splits) and left_out.csv (file, line, problem, detail).

    Raises:
        UserError: a file is refused (see `checks.RULES`), or too little of it is left.
    """
    spec: DataSpec = context.spec("data")
    start = context.inputs["start"] / "checkpoint"
    tokenizer = load_tokenizer(start)
    encoder = Encoder(tokenizer)
    limits: dict[str, Any] = {
        "encode": encoder.both,
        "longest": longest_of(start, spec),
        "room": context.spec("room").tokens,
    }
    path = brought.of(context, PAIRS)
    keys: frozenset[str] = frozenset()
    if TEST in context.step.assets:
        test = brought.of(context, TEST)
        keys = prompts_of_file(test) | {read_key(row, encoder) for row in _texts_of(test, encoder)}
    found = {path: _checked(path, limits, keys)}
    if keys:
        _leave_out_tested(found[path], keys, encoder)
    rows = [(pair, split_of(read_key(pair.prompt, encoder), spec)) for pair in found[path].pairs]
    if TEST in context.step.assets:
        found[test] = _checked(test, limits, frozenset())
        rows += [(pair, HELD_OUT) for pair in found[test].pairs]
    if not any(split == TRAINING for _, split in rows):
        raise UserError(f"{path}: no pairs are left to train on")
    table = encoded(rows, encoder)
    prompts = table[["prompt_id", "prompt", "prompt_ids", "split"]]
    if PROMPTS in context.step.assets:
        own = brought.of(context, PROMPTS)
        more = _prompts(own, encoder, limits["longest"] - limits["room"], spec, keys)
        context.log({"prompts of their own": len(more)})
        prompts = pd.concat([prompts, more], ignore_index=True)
    texts = prompts.drop_duplicates("prompt_id").sort_values("prompt_id", ignore_index=True)
    if prompts.groupby("prompt_id")["split"].nunique().max() > 1:
        raise RuntimeError("a prompt is in two splits")
    if (texts["split"] == HELD_OUT).sum() < 2:
        raise UserError(
            f"{path}: fewer than 2 prompts are held out to judge policies on: raise "
            "data.share_evaluation, or name a file of test pairs with --test"
        )
    tokenizer.save_pretrained(context.path / "tokenizer")
    table.to_parquet(context.path / "all_pairs.parquet")
    texts.to_parquet(context.path / TEXTS)
    _write_left_out(context.path / "left_out.csv", found)
    _log_counts(context, found, table, texts)


def longest_of(start: Path, spec: DataSpec) -> int:
    """Tokens that a prompt and what follows it may have together.

    Raises:
        UserError: the model has fewer positions than asked for, or does not say how many.
    """
    positions = getattr(load_config(start), "max_position_embeddings", None)
    if positions is None and not spec.max_length:
        raise UserError("the model does not say how many positions it has: set data.max_length")
    if positions is not None and spec.max_length > positions:
        raise UserError(f"data.max_length = {spec.max_length}: the model has {positions} positions")
    return spec.max_length or int(positions or 0)


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


def _texts_of(path: Path, encoder: Encoder) -> Iterator[Text]:
    """The prompts of a file of pairs that can be encoded; `_checked` tells of the others."""
    for row in read_pairs(path):
        if isinstance(row, Pair):
            try:
                encoder.prompt(row.prompt)
            except ValueError:
                continue
            yield row.prompt


def read_key(prompt: Text, encoder: Encoder) -> str:
    """The key of a prompt as the model reads it: two that have the same ids have the same key."""
    return prompt_key(encoder.text(encoder.prompt(prompt)))


def _leave_out_tested(found: Checked, keys: frozenset[str], encoder: Encoder) -> None:
    """Take out pairs whose prompts are in the test file in other words of the same tokens."""
    tested = [pair for pair in found.pairs if read_key(pair.prompt, encoder) in keys]
    numbers = {pair.number for pair in tested}
    found.pairs = [pair for pair in found.pairs if pair.number not in numbers]
    found.problems += [Problem(pair.number, "in the test file", "in tokens") for pair in tested]
    found.problems.sort(key=lambda problem: problem.number)


def split_of(key: str, spec: DataSpec) -> str:
    """The split of a prompt, by the sha256 of its key: however it is typed, it is in one."""
    widths = (spec.share_evaluation, spec.share_validation, spec.share_judge)
    return by_share(hashlib.sha256(key.encode()).hexdigest(), SPLITS, widths)


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
    in gets none, nor does one that is too long or is judged on in the test file."""
    made = []
    for prompt in read_prompts(path):
        try:
            ids, key = list(encoder.prompt(prompt)), read_key(prompt, encoder)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        split = split_of(key, spec)
        tested = {key, prompt_key(prompt)} & test_prompts
        if not ids or len(ids) > longest or tested or split == "judge":
            continue
        identity = prompt_hash(ids)[:16]
        row = {"prompt_id": identity, "prompt": encoder.text(ids), "prompt_ids": ids}
        made.append({**row, "split": split})
    return pd.DataFrame(made, columns=["prompt_id", "prompt", "prompt_ids", "split"])


def _write_left_out(path: Path, found: Mapping[Path, Checked]) -> None:
    """The problems of every file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "line", "problem", "done", "detail"])
        for source, checked in found.items():
            for each in checked.problems:
                writer.writerow([source.name, each.number, each.kind, each.done, each.detail])


def _log_counts(
    context: Context, found: Mapping[Path, Checked], table: pd.DataFrame, texts: pd.DataFrame
) -> None:
    """How many rows, problems, pairs and prompts there are."""
    problems = Counter(each.kind for checked in found.values() for each in checked.problems)
    context.log(
        {
            "rows": sum(checked.rows for checked in found.values()),
            **{f"rows/{kind}": count for kind, count in problems.items()},
            **{f"pairs/{name}": int((table["split"] == name).sum()) for name in SPLITS},
            **{f"prompts/{name}": int((texts["split"] == name).sum()) for name in SPLITS},
        }
    )


def pairs_of(context: Context, split: str) -> pd.DataFrame:
    """The pairs of a split, in the order of the file."""
    table = pd.read_parquet(context.inputs["corpus"] / "all_pairs.parquet")
    return table[table["split"] == split].reset_index(drop=True)


def sided(table: pd.DataFrame, side: str) -> pd.DataFrame:
    """One side of pairs, as a table of completions."""
    return table[["prompt_id", "prompt", "prompt_ids"]].assign(
        completion=table[side], completion_ids=table[f"{side}_ids"]
    )


def completions(context: Context) -> None:
    """Step: write completions.parquet (prompt_id, prompt, prompt_ids, sample, completion,
    completion_ids, finished): each completion of a training pair once."""
    table = pairs_of(context, TRAINING)
    both = pd.concat([sided(table, side) for side in SIDES], ignore_index=True)
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
