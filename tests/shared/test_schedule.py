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


def test_the_time_it_all_takes(steps):
    # base 0-4 on both cores; long 4-9 beside alone 4-7 and short 7-8; top 9-11.
    assert makespan(steps, seconds, cores=2) == 11
    # one core: everything in turn, a step of two threads as well
    assert makespan(steps, seconds, cores=1) == sum(SECONDS.values())
    assert makespan([], seconds, cores=2) == 0
