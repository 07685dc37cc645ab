"""Exceptions that reach the user as one line: bad input, and a step that broke."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or environment: one line that says what, where and what to do (exit status 2)."""


class StepFailed(Exception):
    """A step broke for another reason than the user's input: one line, with the place of the
    details.
    """


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """A `UserError` for an unknown name, with the nearest right one.

    >>> print(unknown("arm", "dop", ["dpo", "ppo"]))
    unknown arm 'dop': did you mean 'dpo'? (known: dpo, ppo)
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f": did you mean '{near[0]}'?" if near else ":"
    return UserError(f"unknown {kind} '{given}'{hint} (known: {', '.join(names)})")
