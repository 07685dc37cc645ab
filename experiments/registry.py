"""The experiments by name."""

from experiments.sentiment import SENTIMENT
from experiments.sentiment_tuning import SENTIMENT_TUNING
from experiments.study import Experiment
from pipelines.shared.errors import unknown

EXPERIMENTS = {experiment.name: experiment for experiment in (SENTIMENT, SENTIMENT_TUNING)}


def find(name: str) -> Experiment:
    """The experiment of that name. Raises `UserError` with the nearest right name."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
