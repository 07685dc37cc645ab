"""A row as a preference pair, in any of the forms in which pairs are published.

- explicit: columns prompt, chosen, rejected, all text;
- implicit: chosen and rejected are whole dialogues that part after the last "\n\nAssistant:"
  (Anthropic/hh-rlhf);
- conversational: chosen and rejected are lists of messages (role, content), with the prompt before
  them in a column of its own, as messages or text, or as their common beginning
  (HuggingFaceH4/ultrafeedback_binarized).

All rows of a file must have one form: a file of several is two files that were put together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.rows import Row, read_rows, unit_of
from pipelines.shared.errors import UserError

ASSISTANT = "\n\nAssistant:"
SIDES = ("chosen", "rejected")
EXPLICIT, IMPLICIT, CONVERSATIONAL = "explicit", "implicit", "conversational"

Messages = tuple[tuple[str, str], ...]  # (role, content)
Text = str | Messages


@dataclass(frozen=True)
class Pair:
    """A prompt with two completions, as text or as messages.

    Attributes:
        number: of its line or row.
    """

    number: int
    prompt: Text
    chosen: Text
    rejected: Text


class Malformed(ValueError):
    """A row is no pair; the message says why, without the row's number."""


def form_of(fields: Mapping[str, Any]) -> str:
    """The form of a row.

    Raises:
        Malformed: it has none of them.
    """
    missing = [name for name in SIDES if name not in fields]
    if missing:
        has = ", ".join(sorted(map(str, fields))) or "none"
        raise Malformed(f"has no {' and no '.join(missing)} (its columns: {has})")
    kinds = {type(fields[name]) for name in SIDES}
    if kinds == {list}:
        return CONVERSATIONAL
    if kinds != {str}:
        raise Malformed("chosen and rejected must both be text, or both lists of messages")
    prompt = fields.get("prompt")
    if prompt is None:
        return IMPLICIT
    if not isinstance(prompt, str):
        raise Malformed("prompt must be text where chosen and rejected are")
    return EXPLICIT


def pair_of(row: Row) -> Pair:
    """The row as a pair.

    Raises:
        Malformed: it is none.
    """
    if row.problem:
        raise Malformed(row.problem)
    form = form_of(row.fields)
    if form == EXPLICIT:
        parts = tuple(row.fields[name] for name in ("prompt", *SIDES))
    elif form == IMPLICIT:
        parts = split_dialogues(*(row.fields[name] for name in SIDES))
    else:
        parts = split_messages(row.fields)
    for name, part in zip(("prompt", *SIDES), parts, strict=True):
        try:
            plain(part).encode()
        except UnicodeEncodeError:
            raise Malformed(f"{name} holds half a character (a lone surrogate)") from None
    return Pair(row.number, *parts)


def plain(text: Text) -> str:
    """A text, or the contents of its messages."""
    return text if isinstance(text, str) else "\n".join(content for _, content in text)


def split_dialogues(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and answers of two dialogues: the prompt goes to the end of the last "Assistant:".

    Raises:
        Malformed: there is none, or the dialogues differ before it.
    """
    ends = [text.rfind(ASSISTANT) for text in (chosen, rejected)]
    if -1 in ends:
        raise Malformed(f"has no prompt column, and no {ASSISTANT!r} to part prompt and answer at")
    prompt, other = (
        text[: end + len(ASSISTANT)] for text, end in zip((chosen, rejected), ends, strict=True)
    )
    if prompt != other:
        raise Malformed("chosen and rejected differ before their last answer: they share no prompt")
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def split_messages(fields: Mapping[str, Any]) -> tuple[Messages, Messages, Messages]:
    """Prompt and completions as messages.

    Raises:
        Malformed: they are no messages, or have no prompt in common.
    """
    chosen, rejected = (messages_of(fields[name], name) for name in SIDES)
    prompt = fields.get("prompt")
    if isinstance(prompt, list):
        return messages_of(prompt, "prompt"), chosen, rejected
    if prompt is not None and not isinstance(prompt, str):
        raise Malformed("prompt must be text or a list of messages")
    if isinstance(prompt, str) and all(side[0][0] == "assistant" for side in (chosen, rejected)):
        return (("user", prompt),), chosen, rejected
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise Malformed("chosen and rejected do not begin alike: they share no prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def messages_of(value: list[Any], name: str) -> Messages:
    """A list of messages, checked. Raises `Malformed`."""
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise Malformed(f"{name} has a message without a role and a content of text")
    if not value:
        raise Malformed(f"{name} has no messages")
    return tuple((message["role"], message["content"]) for message in value)


def read_pairs(path: Path) -> Iterator[Pair | tuple[int, str]]:
    """The pairs of a file; for a row that is none, its number and what is wrong with it.

    Raises:
        UserError: the file cannot be read, has no rows, or its columns are no pairs' at all.
    """
    first = None
    for row in read_rows(path):
        try:
            form = form_of(row.fields) if not row.problem else None
            if first is None and form is not None:
                first = row.number, form
            if form is not None and first is not None and form != first[1]:
                raise Malformed(f"is {form}, where the first pair (at {first[0]}) is {first[1]}")
            yield pair_of(row)
        except Malformed as problem:
            yield row.number, str(problem)
            if first is None and not row.problem and not set(SIDES).intersection(row.fields):
                raise UserError(
                    f"{path}, {unit_of(path)} {row.number}: {problem}; pairs need prompt, chosen "
                    "and rejected, or chosen and rejected with the prompt in both"
                ) from None
    if first is None:
        raise UserError(f"{path}: has no pairs") from None
