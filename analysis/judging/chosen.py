"""What the simulated labeller would choose of two SFT completions, as an opponent: "chosen".

The pairs that preference learning starts from have a chosen side, and DPO's paper reports win rates
against it (Rafailov et al. 2023, section 6). Here it is that of the held-out prompts: of a random
pair of reference samples (of the same SFT model, at the same temperature) the one that the pairs'
own labeller prefers. Its wins are expected numbers, without noise from labels or choice of pairs.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from analysis.judging.contests import (
    CHOSEN,
    GOLD,
    PROXY,
    SFT,
    Contest,
    Run,
    Runs,
    check_complete,
    contest_of,
)
from analysis.studies.labeller import Labeller, labeller_of
from analysis.studies.reference import reference_matrices

if TYPE_CHECKING:
    from analysis.studies.study import Study

AT_ONCE = 64  # prompts whose samples are compared with one another in one array


def chosen_weights(rewards: np.ndarray, temperature: float, noise: float) -> np.ndarray:
    """Probability that each sample is the chosen one of a random pair of its prompt's samples.

    w_i = sum_{j != i} p_ij / C(N, 2), with p_ij = (1 - noise) s_ij + noise (1 - s_ij) and s_ij =
    sigmoid((r_i - r_j) / temperature): Bradley-Terry labels, a share of which is flipped, as
    `preferences.simulated_labels` draws them.

    Args:
        rewards: gold, (P, N).

    Returns:
        (P, N); rows sum to 1.

    Raises:
        ValueError: fewer than 2 samples of a prompt.
    """
    prompts, samples = rewards.shape
    if samples < 2:
        raise ValueError("a pair takes 2 samples of a prompt")
    weights = np.empty((prompts, samples))
    for start in range(0, prompts, AT_ONCE):
        part = rewards[start : start + AT_ONCE]
        prefers = expit((part[:, :, None] - part[:, None, :]) / temperature)
        # No sample is paired with itself: there its probability is one half.
        weights[start : start + AT_ONCE] = prefers.sum(axis=2) - 0.5
    flipped = (samples - 1) - weights
    return ((1 - noise) * weights + noise * flipped) / (samples * (samples - 1) / 2)


def shares(values: np.ndarray, opponents: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Probability that each value wins, ties and loses against an opponent drawn by weight.

    Args:
        values: (P, M).
        opponents, weights: (P, N); the weights of a prompt sum to 1.

    Returns:
        (3, P, M).
    """
    order = np.argsort(opponents, axis=1)
    ascending = np.take_along_axis(opponents, order, axis=1)
    below = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    below = np.concatenate([np.zeros((len(below), 1)), below / below[:, -1:]], axis=1)
    wins, upto = np.empty(values.shape), np.empty(values.shape)
    for place, (row, own) in enumerate(zip(ascending, values, strict=True)):
        wins[place] = below[place, np.searchsorted(row, own, side="left")]
        upto[place] = below[place, np.searchsorted(row, own, side="right")]
    return np.array([wins, upto - wins, 1 - upto])


def against_chosen(study: "Study", runs: Runs) -> list[Contest]:
    """Every policy, the SFT model too, against the chosen of two SFT completions.

    By gold; by a reward model where its scores of the reference samples are stored. None where the
    pairs are not of the simulated labeller.

    Raises:
        UserError: a reward of a reference sample is missing.
    """
    prompts, gold, length = reference_matrices(study.reference, ["reward_gold", "length"])
    where = f"the reference samples (runs/{study.reference_run}.parquet)"
    check_complete(gold, f"reward_gold of {where}", "sample them again")
    if gold.shape[1] < 2:
        return []
    assert list(prompts) == list(runs.prompts)
    found = {run.name: labeller_of(study, run.evaluation) for run in runs.every}
    labels = {name: made for name, made in found.items() if made is not None}
    weights = {made: chosen_weights(gold, *made) for made in set(labels.values())}
    lengths = {made: (weight * length).sum(axis=1) for made, weight in weights.items()}
    scored = {GOLD: {"": gold}, PROXY: _proxies(study)}
    met = []
    for judge, opponents in scored.items():
        outcomes = _outcomes(runs, judge, opponents, labels, weights)
        for policy in [*runs.trained, *({SFT} & runs.of.keys())]:
            of = [run for _, run in sorted(runs.of[policy].items()) if run.name in outcomes]
            longer = [run.lengths.mean(axis=1) - lengths[labels[run.name]] for run in of]
            if of:
                counts = np.array([outcomes[run.name] for run in of])
                who, seeds = (policy, CHOSEN, judge), [run.seed for run in of]
                met.append(contest_of(who, seeds, runs.prompts, counts, np.array(longer)))
    return met


def _outcomes(
    runs: Runs,
    judge: str,
    opponents: Mapping[str, np.ndarray],
    labels: Mapping[str, Labeller],
    weights: Mapping[Labeller, np.ndarray],
) -> dict[str, np.ndarray]:
    """Expected wins, ties and losses of each prompt, (3, P), of the runs that meet an opponent.

    Args:
        opponents: scores of the reference samples, (P, N), by reward model; "" for gold.
        labels: of each run.
        weights: of the reference samples, (P, N).
    """
    met: dict[tuple[Labeller, str], list[Run]] = {}
    for run in (run for seeds in runs.of.values() for run in seeds.values()):
        made, model = labels.get(run.name), "" if judge == GOLD else run.reward_model
        if made is not None and model in opponents and judge in run.rewards:
            met.setdefault((made, model), []).append(run)
    found: dict[str, np.ndarray] = {}
    for (made, model), group in met.items():
        # All runs at once: the opponents of a prompt are sorted and searched once.
        every = np.concatenate([run.rewards[judge] for run in group], axis=1)
        ends = np.cumsum([run.lengths.shape[1] for run in group])[:-1]
        parts = np.split(shares(every, opponents[model], weights[made]), ends, axis=2)
        for run, part in zip(group, parts, strict=True):
            # As many chosen completions as samples: as many comparisons as against SFT.
            found[run.name] = part.sum(axis=2) * run.lengths.shape[1]
    return found


def _proxies(study: "Study") -> dict[str, np.ndarray]:
    """Scores (P, N) of the reference samples by each reward model that scored them."""
    found = {}
    for step, table in study.proxy_scores.items():
        _, scores = reference_matrices(table, ["reward_proxy"])
        what = f"reward_proxy of the reference samples (runs/{step[:8]}.parquet)"
        check_complete(scores, what, "score them again")
        found[study.records[step]["identity"]["upstream"]["reward_model"]] = scores
    return found
