"""rlhf-vs-dpo check-data: what a file of preference pairs is like, before anything is trained."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import study_options
from pipelines.data.checks import RULES, Checked, CountTokens, check, prompt_key, summary
from pipelines.data.model_folders import check_folder
from pipelines.data.pairs import Pair, Text, plain, read_pairs
from pipelines.data.rows import unit_of
from pipelines.shared.errors import UserError

SHOWN = 10  # rows of a kind that are named; --all names every one
add = study_options.add_check_data


def run(options: argparse.Namespace, console: Console) -> int:
    """Check and show. Exit status 2 where the file would be refused."""
    count, longest = None, options.max_length
    if options.model is not None:
        count, own = tokens_of(options.model)
        longest = longest or own
    elif longest is not None:
        raise UserError("--max-length counts tokens: name the model whose they are with --model")
    test = prompts_of(options.test) if options.test is not None else frozenset()
    found = check(read_pairs(options.pairs), count_tokens=count, longest=longest, test_prompts=test)
    unit = unit_of(options.pairs)
    show(found, unit, console, every=options.all)
    if found.refused:
        first = found.refused[0]
        raise UserError(
            f"{options.pairs}, {unit} {first.number}: {first.detail}"
            + (f" ({len(found.refused)} such rows)" if len(found.refused) > 1 else "")
        )
    if not found.pairs:
        raise UserError(f"{options.pairs}: no row is left to train on")
    return 0


def prompts_of(path: Path) -> frozenset[str]:
    """The keys of a file's prompts.

    Raises:
        UserError: a row is no pair: its prompt could be trained on unseen.
    """
    keys = set()
    for row in read_pairs(path):
        if not isinstance(row, Pair):
            raise UserError(f"{path}, {unit_of(path)} {row[0]}: {row[1]}")
        keys.add(prompt_key(row.prompt))
    return frozenset(keys)


def show(found: Checked, unit: str, console: Console, every: bool = False) -> None:
    """The problems by kind with their lines, and what the pairs that are kept are like."""
    if found.problems:
        table = Table(box=None, pad_edge=False)
        for name in ("problem", "rows", "what is done", f"{unit}s"):
            table.add_column(name, justify="right" if name == "rows" else "left")
        for kind, (done, why) in RULES.items():
            problems = found.of(kind)
            if not problems:
                continue
            shown = problems if every else problems[:SHOWN]
            lines = [
                f"{each.number}" + (f" ({each.detail})" if each.detail else "") for each in shown
            ]
            if len(problems) > len(shown):
                lines.append(f"and {len(problems) - len(shown)} more (--all)")
            table.add_row(kind, str(len(problems)), f"{done}: {why}", escape("\n".join(lines)))
        console.print(table)
    if found.pairs:
        like = summary(found.pairs)
        console.print(f"{like.prompts:,} prompts, at most {like.most:,} pairs of one")
        console.print(
            f"characters (medians): prompt {like.prompt_length:,.0f}, chosen "
            f"{like.chosen_length:,.0f}, rejected {like.rejected_length:,.0f}"
        )
        if like.longer_chosen is not None:
            console.print(f"the longer completion was chosen in {like.longer_chosen:.0%}")
    console.print(f"{len(found.pairs):,} of {found.rows:,} rows can be trained on")


def tokens_of(model: str) -> tuple[CountTokens, int | None]:
    """A function that counts a model's tokens, and how many positions it has.

    Raises:
        UserError: there is no such model, or it is refused (`check_folder`).
    """
    from transformers import AutoConfig, AutoTokenizer

    if Path(model).is_dir():
        check_folder(Path(model))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        config: Any = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model {model}: is neither a model's folder nor at hand from the hub "
            f"({str(error).splitlines()[0]}): name a folder in Transformers' format, or fetch it "
            f"with `hf download {model}` where the hub can be reached"
        ) from None

    def count(prompt: Text, completion: Text) -> int:
        if isinstance(prompt, tuple) and isinstance(completion, tuple) and tokenizer.chat_template:
            both = [{"role": role, "content": content} for role, content in prompt + completion]
            return len(tokenizer.apply_chat_template(both, tokenize=True, return_dict=False))
        texts = [plain(prompt), plain(completion)]
        return sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))

    return count, getattr(config.get_text_config(), "max_position_embeddings", None)
