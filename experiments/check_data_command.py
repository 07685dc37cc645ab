"""rlhf-vs-dpo check-data: what a file of preference pairs is like, before anything is trained."""

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import study_options
from pipelines.data.checks import RULES, Checked, Encode, check, prompts_of_file, summary
from pipelines.data.pairs import read_pairs
from pipelines.data.rows import unit_of
from pipelines.shared.errors import UserError

SHOWN = 10  # rows of a kind that are named; --all names every one
add = study_options.add_check_data


def run(options: argparse.Namespace, console: Console) -> int:
    """Check and show. Exit status 2 where the file would be refused."""
    encode, longest = None, options.max_length
    if options.model is not None:
        encode, own = tokens_of(options.model)
        longest = longest or own
    elif longest is not None:
        raise UserError("--max-length counts tokens: name the model whose they are with --model")
    test = prompts_of_file(options.test) if options.test is not None else frozenset()
    found = check(read_pairs(options.pairs), encode=encode, longest=longest, test_prompts=test)
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


def tokens_of(given: str) -> tuple[Encode, int | None]:
    """A function that makes token ids as a model reads them, and how many positions it has.

    Raises:
        UserError: there is no such model, or it is refused.
    """
    from transformers import AutoConfig, AutoTokenizer

    from pipelines.data import brought
    from pipelines.data.encoding import Encoder

    folder: Any = brought.model(given).path
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        config: Any = AutoConfig.from_pretrained(folder)
        encoder = Encoder(tokenizer)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {given}: {str(error).splitlines()[0]}") from None
    return encoder.both, getattr(config.get_text_config(), "max_position_embeddings", None)
