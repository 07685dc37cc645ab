"""Exceptions that reach the user as one line: bad input, and a step that broke."""

import difflib
from collections.abc import Iterable

MOST_NAMES = 8  # a longer list is cut to the names that are like the given one


class UserError(Exception):
    """Bad input or environment: one line that says what, where and what to do (exit status 2)."""


class StepFailed(Exception):
    """A step broke, and not by the user's input: one line, with the place of the details."""


def first_line(error: BaseException) -> str:
    """What an error says in one line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """A `UserError` for an unknown name, with the nearest right one.

    >>> print(unknown("arm", "dop", ["dpo", "ppo"]))
    unknown arm 'dop': did you mean 'dpo'? (known: dpo, ppo)
    """
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=MOST_NAMES, cutoff=0.4)
    shown = names if len(names) <= MOST_NAMES else sorted(close)
    hint = f": did you mean '{close[0]}'?" if close else ""
    listed = f" ({'known' if shown == names else 'like it'}: {', '.join(shown)})" if shown else ""
    return UserError(f"unknown {kind} '{given}'{hint}{listed}")
