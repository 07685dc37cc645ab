"""What a step will cost, from what like steps have cost before."""

import contextlib
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.shared.steps import Step

PREDICTED = ("seconds", "flops", "peak_memory_bytes")
MOST_DIFFERENCES = 3  # recipe fields in which a run may differ and still predict


class Estimator:
    """Predicts seconds and FLOPs of a step as the median over the most similar recorded runs.

    Reads results/runs and the records of published experiments. Runs of the same stage and thread
    count whose recipe differs in at most `MOST_DIFFERENCES` fields count; those with the fewest
    differences are used.
    """

    def __init__(self, results: Path) -> None:
        self.records: dict[str, list[Mapping[str, Any]]] = {}
        self.known: dict[str, dict[str, float] | None] = {}  # predictions, by fingerprint
        for pattern in ("runs/*/*/record.json", "experiments/*/runs/*.json"):
            for path in sorted(results.glob(pattern)):
                if not path.parent.name.startswith((".", "failed-")):
                    with contextlib.suppress(
                        ValueError, KeyError
                    ):  # not a record: predicts nothing
                        self.add(json.loads(path.read_text()))

    def add(self, record: Mapping[str, Any]) -> None:
        """Take another finished run into account."""
        self.records.setdefault(record["stage"], []).append(record)
        self.known.clear()

    def cost(self, step: Step) -> dict[str, float] | None:
        """Predicted `seconds`, `flops` and `peak_memory_bytes`."""
        if step.fingerprint not in self.known:
            self.known[step.fingerprint] = self._predicted(step)
        return self.known[step.fingerprint]

    def _predicted(self, step: Step) -> dict[str, float] | None:
        wanted = dict(_leaves(step.identity["recipe"]))
        near: dict[int, list[Mapping[str, Any]]] = {}
        for record in self.records.get(step.stage, []):
            if record["identity"]["threads"] == step.threads:
                found = dict(_leaves(record["identity"]["recipe"]))
                apart = sum(
                    wanted.get(key) != found.get(key) for key in wanted.keys() | found.keys()
                )
                near.setdefault(apart, []).append(record)
        if not near or min(near) > MOST_DIFFERENCES:
            return None
        best = near[min(near)]
        return {name: statistics.median(r["cost"][name] for r in best) for name in PREDICTED}


def _leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{at}.{key}")
    else:
        yield at, tree
