"""The experiments by name, and the study that a command line chooses."""

import argparse

from experiments.custom import CUSTOM
from experiments.exact import EXACT
from experiments.hh import HH
from experiments.imdb import IMDB
from experiments.overoptimization import OVEROPTIMIZATION
from experiments.ppo_details import PPO_DETAILS
from experiments.sentiment import SENTIMENT
from experiments.sentiment_finickiness import SENTIMENT_FINICKINESS
from experiments.sentiment_temperatures import SENTIMENT_TEMPERATURES
from experiments.sentiment_tuning import SENTIMENT_TUNING
from experiments.study import Experiment, Study
from experiments.study_options import OWN
from experiments.tldr import TLDR
from pipelines.shared.errors import UserError, unknown

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        SENTIMENT,
        SENTIMENT_TUNING,
        SENTIMENT_FINICKINESS,
        SENTIMENT_TEMPERATURES,
        CUSTOM,
        IMDB,
        TLDR,
        HH,
        OVEROPTIMIZATION,
        EXACT,
        PPO_DETAILS,
    )
}


def find(name: str) -> Experiment:
    """The experiment of that name. Raises `UserError` with the nearest right name."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


def chosen(options: argparse.Namespace) -> Study:
    """The study that experiment, --scale, --arms, --seeds, --set and what is the user's own choose.

    Raises:
        UserError: one of them is unknown or does not fit.
    """
    arms = [arm.strip() for arm in options.arms.split(",")] if options.arms is not None else None
    given = vars(options)  # an option that a command does not have is one that was not given
    known = {name: given.get(f"own_{name}") for name in OWN}
    own = {name: str(value) for name, value in known.items() if value is not None}
    imports = {}
    for text in given.get("imports", []):
        name, equals, place = text.partition("=")
        if not (equals and name and place) or name in imports:
            raise UserError(f"--import {text}: write NAME=DIR, each name once")
        imports[name] = place
    experiment = find(options.experiment).given(own).importing(imports)
    return experiment.resolve(options.scale, arms, options.seeds, options.assignments)
