"""What is wrong with somebody's preference pairs, row by row, and what is done about it.

RULES says it all: which problems make a file unfit, which rows are left out, and which are kept and
only counted. Prompts are compared without regard to case, white space and ways to write a
character, so that a prompt that was typed twice is one prompt.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pipelines.data.pairs import SIDES, Pair, Text, plain, read_pairs
from pipelines.data.rows import unit_of
from pipelines.shared.errors import UserError

# Token ids of a prompt and of a completion of it; a ValueError says why there are none.
Encode = Callable[[Text, Text], tuple[Sequence[int], Sequence[int]]]
REFUSED, LEFT_OUT, KEPT = "refused", "left out", "kept"

RULES = {  # kind of problem: (what is done, and why)
    "malformed": (REFUSED, "a row that is no pair: mend it or take it out"),
    "empty prompt": (LEFT_OUT, "there is nothing to complete"),
    "empty completion": (LEFT_OUT, "a side without a token cannot be learnt from"),
    "identical": (LEFT_OUT, "both completions are the same: there is nothing to prefer"),
    "duplicate": (LEFT_OUT, "the same pair as before; the first is kept"),
    "contradiction": (KEPT, "the pair of before with its sides exchanged: people disagree"),
    "too long": (LEFT_OUT, "cutting would change what was compared"),
    "in the test file": (LEFT_OUT, "its prompt is in the test file, too"),
}


@dataclass(frozen=True)
class Problem:
    """Something about one row.

    Attributes:
        number: of its line or row.
        kind: of RULES.
        detail: what more there is to say, or "".
    """

    number: int
    kind: str
    detail: str = ""

    @property
    def done(self) -> str:
        """REFUSED, LEFT_OUT or KEPT."""
        return RULES[self.kind][0]


@dataclass
class Checked:
    """Pairs that can be trained on, and everything that was found.

    Attributes:
        rows: how many the file has.
        pairs: what is kept.
        problems: in the order of the file.
    """

    rows: int = 0
    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def of(self, kind: str) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind == kind]

    @property
    def refused(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.done == REFUSED]


def check(
    rows: Iterable[Pair | tuple[int, str]],
    *,
    encode: Encode | None = None,
    longest: int | None = None,
    room: int = 0,
    test_prompts: frozenset[str] = frozenset(),
) -> Checked:
    """Go through the rows of `pairs.read_pairs`.

    Args:
        encode: None where no tokenizer is at hand.
        longest: tokens that prompt and completion may have together.
        room: tokens that are written after each prompt, and have to fit as well.
        test_prompts: keys (`prompt_key`) of prompts that must not be trained on.
    """
    result = Checked()
    seen: dict[tuple[Text, Text, Text], int] = {}
    for row in rows:
        result.rows += 1
        if not isinstance(row, Pair):
            result.problems.append(Problem(row[0], "malformed", row[1]))
            continue
        found = next(_problems(row, seen, test_prompts), None)
        if (found is None or found.done == KEPT) and encode is not None:
            found = _in_tokens(row, encode, longest, room) or found
        if found is not None:
            result.problems.append(found)
        if found is None or found.done == KEPT:
            result.pairs.append(row)
            seen.setdefault((row.prompt, row.chosen, row.rejected), row.number)
    return result


def _problems(
    pair: Pair,
    seen: dict[tuple[Text, Text, Text], int],
    test_prompts: frozenset[str],
) -> Iterator[Problem]:
    """What is wrong with a pair, what is worst first."""
    number = pair.number
    if not plain(pair.prompt).strip():
        yield Problem(number, "empty prompt")
    for side in SIDES:
        if not plain(getattr(pair, side)).strip():
            yield Problem(number, "empty completion", side)
    if pair.chosen == pair.rejected:
        yield Problem(number, "identical")
    if prompt_key(pair.prompt) in test_prompts:
        yield Problem(number, "in the test file")
    before = seen.get((pair.prompt, pair.chosen, pair.rejected))
    if before is not None:
        yield Problem(number, "duplicate", f"of {before}")
    other = seen.get((pair.prompt, pair.rejected, pair.chosen))
    if other is not None:
        yield Problem(number, "contradiction", f"of {other}")


def _in_tokens(pair: Pair, encode: Encode, longest: int | None, room: int) -> Problem | None:
    """What is wrong with a pair, or with what is written after its prompt, once it is token ids."""
    try:
        (prompt, chosen), (_, rejected) = (encode(pair.prompt, getattr(pair, s)) for s in SIDES)
    except ValueError as error:
        return Problem(pair.number, "malformed", str(error))
    if not prompt:
        return Problem(pair.number, "empty prompt", "the tokenizer knows nothing of it")
    if list(chosen) == list(rejected):
        return Problem(pair.number, "identical", "in tokens")
    if longest is None:
        return None
    tokens = len(prompt) + max(len(chosen), len(rejected))
    if tokens > longest:
        return Problem(pair.number, "too long", f"{tokens} tokens, {longest} fit")
    if len(prompt) + room > longest:
        detail = f"a prompt of {len(prompt)} tokens, {longest - room} leave room for {room} more"
        return Problem(pair.number, "too long", detail)
    return None


def prompt_key(prompt: Text) -> str:
    """The same for prompts that differ in case, white space and ways to write a character alone."""
    return " ".join(unicodedata.normalize("NFKC", plain(prompt)).casefold().split())


def prompts_of_file(path: Path) -> frozenset[str]:
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


@dataclass(frozen=True)
class Summary:
    """What pairs are like. Lengths are medians, in characters.

    Attributes:
        most: pairs of one prompt.
        longer_chosen: share of the pairs of unequal lengths whose longer completion was chosen
            (near 1, what is learnt may be a taste for length); None where there are none.
    """

    pairs: int
    prompts: int
    most: int
    prompt_length: float
    chosen_length: float
    rejected_length: float
    longer_chosen: float | None


def summary(pairs: list[Pair]) -> Summary:
    """Raises ValueError where there are no pairs."""
    if not pairs:
        raise ValueError("no pairs to describe")
    prompts = Counter(prompt_key(pair.prompt) for pair in pairs)
    lengths = {
        name: [len(plain(getattr(pair, name))) for pair in pairs] for name in ("prompt", *SIDES)
    }
    longer = [c > r for c, r in zip(*(lengths[side] for side in SIDES), strict=True) if c != r]
    return Summary(
        len(pairs),
        len(prompts),
        max(prompts.values()),
        median(lengths["prompt"]),
        median(lengths["chosen"]),
        median(lengths["rejected"]),
        sum(longer) / len(longer) if longer else None,
    )
