"""What a step will cost, from what like steps have cost before."""

import contextlib
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.shared.steps import Step, closure

PREDICTED = ("seconds", "flops", "peak_memory_bytes")
GROWN = ("start", "reward-model", "gold")  # stages that adopt a pretrained model
MOST_DIFFERENCES = 3  # recipe fields in which a run may differ and still predict


class Estimator:
    """Predicts seconds and FLOPs of a step as the median over the most similar recorded runs.

    Reads results/runs and the records of published experiments. Runs of the same stage, thread
    count, model and kind of device (a CPU or not) whose recipe differs in at most
    `MOST_DIFFERENCES` fields count; those with the fewest differences are used.
    """

    def __init__(self, results: Path, device: str = "cpu") -> None:
        self.accelerated = device != "cpu"
        self.records: dict[str, list[Mapping[str, Any]]] = {}
        self.identities: dict[str, Mapping[str, Any]] = {}  # by fingerprint
        self.models: dict[str, frozenset[str]] = {}  # what they stand on, by fingerprint
        self.known: dict[str, dict[str, float] | None] = {}  # predictions, by fingerprint
        for pattern in ("runs/*/*/record.json", "experiments/*/runs/*.json"):
            for path in sorted(results.glob(pattern)):
                if not path.parent.name.startswith((".", "failed-")):
                    with contextlib.suppress(
                        ValueError, KeyError
                    ):  # not a record: predicts nothing
                        self.add(json.loads(path.read_text()))

    def add(self, record: Mapping[str, Any]) -> None:
        """Take another finished run into account, if it was on a device of this kind."""
        if bool(record.get("accelerators")) != self.accelerated:
            return
        self.records.setdefault(record["stage"], []).append(record)
        self.identities[record["fingerprint"]] = record["identity"]
        self.known.clear()
        self.models.clear()

    def cost(self, step: Step) -> dict[str, float] | None:
        """Predicted `seconds`, `flops` and `peak_memory_bytes`."""
        if step.fingerprint not in self.known:
            self.known[step.fingerprint] = self._predicted(step)
        return self.known[step.fingerprint]

    def _predicted(self, step: Step) -> dict[str, float] | None:
        wanted, model = dict(_leaves(step.identity["recipe"])), models_of(step)
        near: dict[int, list[Mapping[str, Any]]] = {}
        for record in self.records.get(step.stage, []):
            alike = record["identity"]["threads"] == step.threads
            if alike and self._models(record["fingerprint"]) == model:
                found = dict(_leaves(record["identity"]["recipe"]))
                apart = sum(
                    wanted.get(key) != found.get(key) for key in wanted.keys() | found.keys()
                )
                near.setdefault(apart, []).append(record)
        if not near or min(near) > MOST_DIFFERENCES:
            return None
        best = near[min(near)]
        return {name: statistics.median(r["cost"][name] for r in best) for name in PREDICTED}

    def _models(self, fingerprint: str) -> frozenset[str]:
        """`models_of` a step that has run, as far as what it stands on has a record."""
        if fingerprint not in self.models:
            identity = self.identities.get(fingerprint)
            below = identity["upstream"].values() if identity else ()
            own = _own_models(identity) if identity else frozenset()
            self.models[fingerprint] = own.union(*map(self._models, below))
        return self.models[fingerprint]


def models_of(step: Step) -> frozenset[str]:
    """What tells how large the models are that a step stands on: made from scratch, or brought."""
    return frozenset().union(*(_own_models(each.identity) for each in closure([step])))


def _own_models(identity: Mapping[str, Any]) -> frozenset[str]:
    """The shape of a model that a step makes, or the digest of one that it adopts."""
    recipe = identity["recipe"]
    made = [json.dumps(recipe["model"], sort_keys=True)] if "model" in recipe else []
    brought = identity["assets"].values() if identity["stage"] in GROWN else ()
    return frozenset([*made, *brought])


def _leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{at}.{key}")
    else:
        yield at, tree
