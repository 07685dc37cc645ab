"""Whose comparisons a policy or a reward model learned from."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import expit

if TYPE_CHECKING:
    from analysis.studies.study import Study


class Labeller(NamedTuple):
    """The simulated labeller: Bradley-Terry on the gold reward, as `preferences.simulated_labels`.

    Attributes:
        temperature: in units of gold reward.
        noise: share of the labels that are flipped.
    """

    temperature: float
    noise: float

    def prefers(self, difference: np.ndarray) -> np.ndarray:
        """Probability that it prefers a sample with so much more gold reward than the other."""
        first = expit(difference / self.temperature)
        return (1 - self.noise) * first + self.noise * (1 - first)


def labeller_of(study: "Study", step: str) -> Labeller | None:
    """Whose labels a step stands on: an evaluation, or a reward model.

    All policies of a seed and variant have the same pairs. None where there are none, where people
    labelled them, or where there are several labellers.

    Args:
        step: full fingerprint.
    """
    found = set[Labeller]()
    for upstream in study.closure(step):
        recipe = study.records[upstream]["identity"]["recipe"]
        if study.records[upstream]["stage"] == "pairs" and "labels" in recipe:
            labels = recipe["labels"]
            found.add(Labeller(float(labels["temperature"]), float(labels["noise"])))
    return found.pop() if len(found) == 1 else None
