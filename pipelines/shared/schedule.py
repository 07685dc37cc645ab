"""When steps run: the longest chain of what is to come first, as many at once as cores allow.

Seconds are predictions; a step that nobody can predict counts as `UNKNOWN` of them.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pipelines.shared.steps import Step

UNKNOWN = 1.0  # seconds: where nothing is known, the number of steps decides

Seconds = Callable[[Step], float | None]


def remaining(steps: Sequence[Step], seconds: Seconds) -> dict[str, float]:
    """Of each step, by fingerprint: seconds of the longest chain that begins with it.

    Args:
        steps: dependencies first.
    """
    after: dict[str, float] = dict.fromkeys((step.fingerprint for step in steps), 0.0)
    result: dict[str, float] = {}
    for step in reversed(steps):
        own = seconds(step)
        result[step.fingerprint] = after[step.fingerprint] + (UNKNOWN if own is None else own)
        for upstream in step.upstream.values():
            if upstream.fingerprint in after:
                chain = max(after[upstream.fingerprint], result[step.fingerprint])
                after[upstream.fingerprint] = chain
    return result


def ready(todo: Iterable[Step], left: set[str]) -> list[Step]:
    """The steps that wait for none of those with these fingerprints."""
    return [s for s in todo if not any(u.fingerprint in left for u in s.upstream.values())]


def to_start(
    todo: Iterable[Step], left: set[str], rank: Mapping[str, float], fits: Callable[[Step], bool]
) -> Iterator[Step]:
    """The steps to start now, one after another: the one that begins the longest chain first.

    Where that one does not fit nothing else is started, or those that fit would keep it waiting.

    Args:
        left: fingerprints of the steps that are not done. rank: see `remaining`.
        fits: asked of each step when those before it have been started.
    """
    waiting = sorted(ready(todo, left), key=lambda step: -rank[step.fingerprint])
    for place, step in enumerate(waiting):
        if fits(step):
            yield step
        elif place == 0:
            return


def critical_path(steps: Sequence[Step], seconds: Seconds) -> list[Step]:
    """The chain of steps that takes longest: no number of cores makes the study shorter."""
    rank, path = remaining(steps, seconds), []
    candidates = ready(steps, set(rank))
    while candidates:
        path.append(max(candidates, key=lambda step: rank[step.fingerprint]))
        last = path[-1].fingerprint
        candidates = [s for s in steps if any(u.fingerprint == last for u in s.upstream.values())]
    return path


def makespan(steps: Sequence[Step], seconds: Seconds, cores: int) -> float:
    """Seconds until the last step is done, if they run as `executors.run_local` runs them where
    memory is no concern."""
    rank = remaining(steps, seconds)
    todo, now = {step.fingerprint: step for step in steps}, 0.0
    running: list[tuple[float, int, Step]] = []
    free, left, count = cores, set(rank), 0

    def fits(step: Step) -> bool:
        return not running or step.threads <= free

    while todo or running:
        for step in to_start(todo.values(), left, rank, fits):
            own = seconds(step)
            end = now + (UNKNOWN if own is None else own)
            heapq.heappush(running, (end, count, step))
            free, count = free - step.threads, count + 1
            del todo[step.fingerprint]
        now, _, done = heapq.heappop(running)
        free += done.threads
        left.discard(done.fingerprint)
    return now
