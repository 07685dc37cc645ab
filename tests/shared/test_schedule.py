"""When steps run, by hand."""

import pytest

from pipelines.dpo.specs import DPOSpec
from pipelines.shared.schedule import critical_path, makespan, remaining
from pipelines.shared.steps import Step


def make(label: str, threads: int = 1, **upstream: Step) -> Step:
    return Step(
        stage="test",
        label=label,
        function="nowhere:nothing",
        version=1,
        recipe={"dpo": DPOSpec(beta=1 + sum(map(ord, label)))},
        threads=threads,
        upstream=upstream,
    )


SECONDS = {"base": 4.0, "short": 1.0, "long": 5.0, "top": 2.0, "alone": 3.0}


def seconds(step: Step) -> float | None:
    return SECONDS.get(step.label)


@pytest.fixture
def steps() -> list[Step]:
    """base (both cores) > short, long > top; alone waits for nothing."""
    base = make("base", threads=2)
    short, long = make("short", base=base), make("long", base=base)
    return [make("alone"), base, short, long, make("top", short=short, long=long)]


def test_what_remains_is_the_longest_chain(steps):
    rank = remaining(steps, seconds)
    assert [rank[step.fingerprint] for step in steps] == [3, 11, 3, 7, 2]


def test_a_step_that_nobody_can_predict_counts_as_a_second(steps):
    rank = remaining(steps, lambda step: None)
    assert [rank[step.fingerprint] for step in steps] == [1, 3, 2, 2, 1]


def test_the_critical_path(steps):
    assert [step.label for step in critical_path(steps, seconds)] == ["base", "long", "top"]
    assert critical_path([], seconds) == []
    # What is done does not count: base is not among the steps any more.
    assert [step.label for step in critical_path(steps[2:], seconds)] == ["long", "top"]


def test_a_wide_step_of_the_longest_chain_is_not_kept_waiting():
    narrow = [make(f"n{i}") for i in range(6)]
    start = make("base")
    wide, after = make("long", threads=2, base=start), None
    after = make("top", wide=wide)
    lasts = {"base": 1.0, "long": 5.0, "top": 4.0} | {f"n{i}": 3.0 for i in range(6)}
    # base 0-1 beside n0 0-3; wide waits for n0 and is next, 3-8; top 8-12 beside the narrow ones.
    steps = [start, *narrow, wide, after]
    assert makespan(steps, lambda step: lasts[step.label], cores=2) == 3 + 5 + (4 + 15) / 2 + 0.5


def test_the_time_it_all_takes(steps):
    # base 0-4 on both cores; long 4-9 beside alone 4-7 and short 7-8; top 9-11.
    assert makespan(steps, seconds, cores=2) == 11
    # one core: everything in turn, a step of two threads as well
    assert makespan(steps, seconds, cores=1) == sum(SECONDS.values())
    assert makespan([], seconds, cores=2) == 0
