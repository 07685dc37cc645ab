"""Whom a policy meets at each sampling temperature: what the labeller chose, and the SFT model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.judging import chosen
from analysis.judging.contests import GOLD, PROXY, REWARDS, check_complete
from analysis.studies.labeller import labeller_of
from analysis.studies.reference import reference_matrices
from analysis.studies.study import Study

# A reward model's scores of one text differ by less than this: padding changes their rounding.
TIE = 1e-4
Samples = dict[Any, dict[str, np.ndarray]]  # by temperature and column, (P, S)


@dataclass(frozen=True)
class Opponent:
    """What the labeller chose: the SFT model's samples, each with the probability to be chosen.

    Attributes:
        weights: (P, N), rows sum to 1.
        rewards: of each sample, (P, N), by judge; only of the judges that have scored them.
    """

    weights: np.ndarray
    rewards: Mapping[str, np.ndarray]


def against_fixed(drawn: Samples, fixed: Opponent) -> dict[str, dict[Any, np.ndarray]]:
    """Win rates (P) against what the labeller chose, by judge and temperature."""
    rates = {}
    for judge, theirs in fixed.rewards.items():
        # All temperatures at once: the opponents of a prompt are sorted and searched once.
        parts = [values[REWARDS[judge]] for values in drawn.values()]
        wins, ties, _ = chosen.shares(np.concatenate(parts, axis=1), theirs, fixed.weights)
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        split = np.split(wins + ties / 2, ends, axis=1)
        means = (points.mean(axis=1) for points in split)
        rates[judge] = dict(zip(drawn, means, strict=True))
    return rates


def against_paired(own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Win rate (P) of samples (P, S) against samples (P, S) of other rows of noise, s != t.

    With one sample each there is no noise (greedy), and the two are compared. Rewards within 1e-4
    are a tie.
    """
    count = own.shape[1]
    apart = own[:, :, None] - theirs[:, None, :]
    values = (np.where(np.abs(apart) < TIE, 0.0, np.sign(apart)) + 1) / 2
    if count > 1:
        values = values[:, ~np.eye(count, dtype=bool)]
    return values.reshape(len(own), -1).mean(axis=1)


def reward_model_of(study: Study, step: str) -> str:
    """Fingerprint of the reward model that scores a step's samples."""
    return study.records[step]["identity"]["upstream"]["reward_model"]


def labellers_choice(study: Study, reward_model: str) -> Opponent | None:
    """What the labeller of a reward model's pairs chose; None where it is not the simulated one."""
    labels = labeller_of(study, reward_model)
    if labels is None:
        return None
    _, gold = reference_matrices(study.reference, ["reward_gold"])
    check_complete(gold, "reward_gold of the reference samples", "sample them again")
    rewards = {GOLD: gold}
    for step, table in study.proxy_scores.items():
        if reward_model_of(study, step) == reward_model:
            _, scores = reference_matrices(table, ["reward_proxy"])
            where = f"reward_proxy of the reference samples (runs/{step[:8]}.parquet)"
            check_complete(scores, where, "score them again")
            rewards[PROXY] = scores
    return Opponent(chosen.chosen_weights(gold, *labels), rewards)
