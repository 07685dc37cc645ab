"""Options of the commands that read what studies left behind.

Nothing here needs pandas: `--help` and the other commands do not wait for it.
"""

import argparse
from pathlib import Path
from typing import Any

Parser = argparse.ArgumentParser
LABEL_BETWEEN = "ppo/dpo"
LABEL_PAIRS = 50
BETWEEN_HELP = (
    "policies: ARM[:SETTING], chosen (of two samples of the SFT model the one that the labeller "
    "prefers; where people compared, what they preferred), or a run's id (8 hex digits, as in "
    "tables/frontier.csv); as "
    "ppo:0.1/dpo:0.1,dpo:0.1/chosen"
)


OWN = {  # options of experiments on what the user brings, and what they take
    "model": ("DIR|HUB_ID", "your causal language model, in Transformers' format (safetensors)"),
    "pairs": ("FILE|HUB_ID[:FILE]", "your preference pairs, or a data set's; see check-data"),
    "test": ("FILE", "pairs to judge on, whose prompts are not trained on; default: a split"),
    "demonstrations": (
        "FILE",
        "prompts with completions to fine-tune on; default: the pairs' chosen completions",
    ),
    "prompts": ("FILE", "more prompts, without pairs, to sample on"),
    "gold": (
        "FILE.py:FUNCTION|DIR|HUB_ID",
        "what to judge by: a function of prompts and completions, or a classifier; default: a "
        "reward model of held-out pairs",
    ),
}


def add_own(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Options of a study on the user's own model and pairs.

    Args:
        prefix: of their names, for commands that have a --pairs or --model of another meaning.
    """
    group = parser.add_argument_group("your own model and pairs (experiment custom)")
    for name, (takes, says) in OWN.items():
        group.add_argument(f"--{prefix}{name}", dest=f"own_{name}", metavar=takes, help=says)
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="NAME=DIR|HUB_ID",
        help="a checkpoint that was trained elsewhere, as an arm of that name",
    )


def add_claims(
    commands: Any, common: argparse.ArgumentParser, chosen: argparse.ArgumentParser
) -> None:
    """rlhf-vs-dpo claims; it is of all studies, and takes none to choose."""
    commands.add_parser(
        "claims", parents=[common], help="what papers have said against what the studies measured"
    )


def add_label(
    commands: Any, common: argparse.ArgumentParser, chosen: argparse.ArgumentParser
) -> None:
    """rlhf-vs-dpo label."""
    label = commands.add_parser(
        "label",
        parents=[common, chosen],
        help="people as judges, or as labellers of training pairs: a page, and its answers",
    )
    task = label.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, metavar="PAGE.html", help="write a page of pairs")
    task.add_argument(
        "--read", type=Path, nargs="+", metavar="ANSWERS.jsonl", help="read what judges downloaded"
    )
    label.add_argument("--pairs", type=int, help=f"how many pairs of texts; default: {LABEL_PAIRS}")
    label.add_argument(
        "--between",
        metavar="A/B[,A/B]",
        help=f"{BETWEEN_HELP}; default: {LABEL_BETWEEN}, at equal settings",
    )
    label.add_argument(
        "--policy-seed", type=int, metavar="SEED", help="of the policies; default: the lowest"
    )
    label.add_argument(
        "--collect",
        action="store_true",
        default=None,
        help="pairs of the SFT model's completions instead, to train on",
    )
    label.add_argument("--seed", type=int, help="of the order and the sides; default: 0")
    label.add_argument("--question", help="that is asked of each pair; default: by experiment")
    label.add_argument("--key", type=Path, metavar="PAGE.key.json", help="of the page, to --read")
    label.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="training pairs: .jsonl with text (prompt, chosen, rejected), .parquet with token ids",
    )
    label.add_argument(
        "--same-person",
        action="append",
        metavar="NAME",
        help="answers of that name from several browsers are of one person (to --read)",
    )


def add_win_rates(
    commands: Any, common: argparse.ArgumentParser, chosen: argparse.ArgumentParser
) -> None:
    """rlhf-vs-dpo win-rates; `chosen`, of an experiment, has none that it needs."""
    command = commands.add_parser(
        "win-rates",
        parents=[common],
        help="win rates of a table of judgements, raw and length-controlled",
        description=(
            "Win rates in percent against one baseline, with standard errors, raw and at equal "
            "output lengths (Dubois et al. 2024), by descending raw win rate."
        ),
    )
    command.add_argument(
        "judgements",
        type=Path,
        metavar="JUDGEMENTS",
        help="CSV, or CSV with gzip, with the columns model, instruction, preference (1: the "
        "baseline's output is better, 2: the model's), len_model, len_baseline",
    )
    command.add_argument(
        "--out", type=Path, required=True, help="CSV to write, with gzip where it ends in .gz"
    )


def add_check_data(
    commands: Any, common: argparse.ArgumentParser, chosen: argparse.ArgumentParser
) -> None:
    """rlhf-vs-dpo check-data; `chosen`, of an experiment, has none that it needs."""
    command = commands.add_parser(
        "check-data",
        parents=[common],
        help="what is wrong with a file of preference pairs, row by row",
        description=(
            "Reads preference pairs (prompt, chosen, rejected; dialogues as in hh-rlhf; or lists "
            "of messages) and names every row that is malformed, empty, identical, repeated, too "
            "long or also in the test file, with what would be done about it."
        ),
    )
    command.add_argument(
        "pairs", type=Path, metavar="FILE", help=".jsonl, .json, .csv or .parquet, also with .gz"
    )
    command.add_argument(
        "--test", type=Path, metavar="FILE", help="pairs whose prompts must not be trained on"
    )
    command.add_argument(
        "--model", help="folder or hub id of the model to be trained: counts its tokens"
    )
    command.add_argument(
        "--max-length",
        type=int,
        help="tokens of prompt and completion together; default: the model's positions",
    )
    command.add_argument("--all", action="store_true", help="name every row, however many")
