"""Prompts without pairs: a column `prompt`, text or messages, of a file in any format of `rows`."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.data.pairs import Malformed, Text, messages_of, plain
from pipelines.data.rows import read_rows, unit_of
from pipelines.shared.errors import UserError


def read_prompts(path: Path) -> Iterator[Text]:
    """The prompts of a file, empty ones left out.

    Raises:
        UserError: the file cannot be read, or a row has no prompt; names its line.
    """
    for row in read_rows(path):
        prompt = row.fields.get("prompt")
        try:
            if row.problem:
                raise Malformed(row.problem)
            if isinstance(prompt, list):
                prompt = messages_of(prompt, "prompt")
            if not isinstance(prompt, str | tuple):
                raise Malformed("has no prompt (text, or a list of messages)")
            plain(prompt).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{path}, {unit_of(path)} {row.number}: holds half a character (a lone surrogate)"
            ) from None
        except Malformed as problem:
            raise UserError(f"{path}, {unit_of(path)} {row.number}: {problem}") from None
        if plain(prompt).strip():
            yield prompt
