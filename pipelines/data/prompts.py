"""Prompts without pairs, alone or with a completion: columns `prompt` and `completion`, text or
messages, of a file in any format of `rows`."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.data.pairs import Malformed, Text, messages_of, plain
from pipelines.data.rows import Row, read_rows, unit_of
from pipelines.shared.errors import UserError


def read_prompts(path: Path) -> Iterator[Text]:
    """The prompts of a file, empty ones left out.

    Raises:
        UserError: the file cannot be read, or a row has no prompt; names its line.
    """
    for row in read_rows(path):
        prompt = _column(path, row, "prompt")
        if plain(prompt).strip():
            yield prompt


def read_demonstrations(path: Path) -> Iterator[tuple[Text, Text]]:
    """Prompts with a completion each, those with an empty one left out.

    Raises:
        UserError: the file cannot be read, or a row lacks one of them or has one as text and one as
            messages; names its line.
    """
    for row in read_rows(path):
        prompt, completion = (_column(path, row, name) for name in ("prompt", "completion"))
        if isinstance(prompt, str) != isinstance(completion, str):
            raise UserError(
                f"{path}, {unit_of(path)} {row.number}: prompt and completion must both be text, "
                "or both lists of messages"
            )
        if plain(prompt).strip() and plain(completion).strip():
            yield prompt, completion


def _column(path: Path, row: Row, name: str) -> Text:
    """Text or messages of a row. Raises `UserError` where it has none."""
    value = row.fields.get(name)
    try:
        if row.problem:
            raise Malformed(row.problem)
        if isinstance(value, list):
            value = messages_of(value, name)
        if not isinstance(value, str | tuple):
            raise Malformed(f"has no {name} (text, or a list of messages)")
        plain(value).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}, {unit_of(path)} {row.number}: holds half a character (a lone surrogate)"
        ) from None
    except Malformed as problem:
        raise UserError(f"{path}, {unit_of(path)} {row.number}: {problem}") from None
    return value
