"""What the laws of over-optimisation are fitted to: each policy's gain and KL, prompt by prompt.

Three rewards are measured from the SFT model, r(x) - r_SFT(x) on each prompt x:

- gold: the gold reward, less its mean over the SFT model's reference samples.
- proxy: the reward model of the policy's own seed and variant, less its mean over the samples of
  the SFT model that it scored too (for best-of-n-proxy: over the reference samples).
- implicit: beta log(pi/ref) of the policy's own samples, the reward that DPO has learned (Rafailov
  et al. 2023). Its mean is beta KL(pi || ref) by definition, whatever the policy is worth: it is no
  independent proxy, only DPO's own account of its gain, and settings with unequal beta do not lie
  on one curve. It is not measured from the SFT model, whose mean of it, -beta KL(ref || pi), the
  stored samples do not tell.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.frontiers.best_of_n import judged, measured_kl, sizes, tied_weights
from analysis.statistics import standard_error
from analysis.studies.catalogue import BEST_OF_N, GOLD, PROXY
from analysis.studies.reference import reference_matrices, sft_rewards
from analysis.studies.study import Study, sft_run

REWARDS = {"gold": "gold reward", "proxy": "reward model", "implicit": "implicit reward"}
WHOSE = ["arm", "variant", "reward"]
POINT = ["setting", "seed", "step", "final"]
IMPLICIT_NOTE = "implicit reward = beta KL by definition: no independent proxy"
SEVERAL_BETAS = "; its points are of several betas and on no one curve"
GOLD_NOTE = "trains on the gold reward"


@dataclass(frozen=True)
class Curve:
    """The policies of one arm and variant, by one reward.

    Attributes:
        arm, variant: whose.
        reward: a key of `REWARDS`.
        points: one row per policy or snapshot: setting, seed, step, final.
        kl: (P prompts, n points) nats, Rao-Blackwellised; of best-of-n, measured on the samples.
        gain: (P, n) reward units.
        note: what a reader must know of this reward; "" for nothing.
        one: whether all points may lie on one curve; not so for an implicit reward, beta KL, with
            several betas.
    """

    arm: str
    variant: str
    reward: str
    points: pd.DataFrame
    kl: np.ndarray
    gain: np.ndarray
    note: str = ""
    one: bool = True


def curves(study: Study, snapshots: bool = True) -> list[Curve]:
    """Every trained arm and best-of-n, in display order, by every reward that it has.

    Best of n is in steps of n up to half of the reference samples (see `best_of_n.sizes`), each an
    unbiased mean over these samples; n = 1 is the SFT model and left out. Best of n by the gold
    reward has no reward model of its own and only a gold gain. `implicit` is of arms whose loss has
    beta as the coefficient of J.

    Args:
        snapshots: also the policies on the way, not only the final ones: a run is a path in the
            plane of KL and reward, and Gao et al. (2022) fit to the whole path.
    """
    made = [*_trained(study, snapshots), *_best_of_n(study)]
    order = list(REWARDS)
    place = study.catalogue.place
    return sorted(made, key=lambda own: (place(own.arm), own.variant, order.index(own.reward)))


def table(curves: list[Curve]) -> pd.DataFrame:
    """Mean gain and KL of each point, for figures.

    Returns:
        arm, variant, reward, setting, seed, step, final, kl, kl_se (nats), gain, gain_se (reward
        units); standard errors over prompts.
    """
    parts = [
        own.points.assign(
            arm=own.arm,
            variant=own.variant,
            reward=own.reward,
            kl=own.kl.mean(axis=0),
            kl_se=[standard_error(values) for values in own.kl.T],
            gain=own.gain.mean(axis=0),
            gain_se=[standard_error(values) for values in own.gain.T],
        )
        for own in curves
    ]
    columns = [*WHOSE, *POINT, "kl", "kl_se", "gain", "gain_se"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _trained(study: Study, snapshots: bool) -> list[Curve]:
    """The curves of the arms that train on something."""
    columns = ["reward_gold", "reward_proxy", "kl_rb", "kl_k1"]
    by = study.scores.groupby(["run", "step", "prompt_id"])[columns]
    means = by.mean(skipna=False).unstack("prompt_id")  # (run, step) x (column, prompt)
    start = sft_rewards(study.reference).to_numpy(float)
    found = []
    for (arm, variant), points in _policies(study, means.index, snapshots).items():
        at = pd.MultiIndex.from_frame(points[["run", "step"]])
        gold, proxy, kl, k1 = (means[name].reindex(at).to_numpy(float).T for name in columns)
        base = pd.MultiIndex.from_frame(points[["sft", "sft_step"]])
        base_proxy = means["reward_proxy"].reindex(base).to_numpy(float).T
        note = GOLD_NOTE if study.catalogue.trains_on(arm) == "gold" else ""
        kept = points[POINT]
        gains = {"gold": gold - start[:, None], "proxy": proxy - base_proxy}
        found += [Curve(arm, variant, name, kept, kl, gain, note) for name, gain in gains.items()]
        if _has_implicit_reward(study, arm):
            beta, one = points["setting"], points["setting"].nunique() == 1
            note = IMPLICIT_NOTE + ("" if one else SEVERAL_BETAS)
            implicit = beta.to_numpy() * k1
            found.append(Curve(arm, variant, "implicit", kept, kl, implicit, note, one))
    return found


def _policies(
    study: Study, evaluated: pd.MultiIndex, snapshots: bool
) -> dict[tuple[str, str], pd.DataFrame]:
    """Of each arm and variant that trains, its policies: `POINT`, run, step, sft and sft_step.

    Args:
        evaluated: (run, step) of all that was evaluated.
    """
    steps: dict[str, list[int]] = {}
    for run, step in evaluated:
        steps.setdefault(run, []).append(step)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for arm in study.manifest["arms"]:
        if not study.catalogue.trains_on(arm["arm"]):
            continue
        run, base = arm["evaluation"][:8], sft_run(study, arm)
        for step in sorted(steps[run]) if snapshots else [max(steps[run])]:
            whose = {"setting": arm["setting"], "seed": arm["seed"], "run": run, "step": step}
            start = {"sft": base or "", "sft_step": max(steps[base]) if base else 0}
            final = step == max(steps[run])
            rows.setdefault((arm["arm"], arm["variant"]), []).append(
                {**whose, **start, "final": final}
            )
    return {key: pd.DataFrame(own).astype({"setting": float}) for key, own in rows.items()}


def _has_implicit_reward(study: Study, arm: str) -> bool:
    """Whether an arm's setting is the beta of a reward beta log(pi/ref) that its loss learns."""
    catalogue = study.catalogue
    return (
        catalogue.families[arm] == "dpo"
        and catalogue.trains_on(arm) == "loss"
        and arm in catalogue.aimed
    )


def _best_of_n(study: Study) -> list[Curve]:
    """The curves of best of n by gold and by each reward model; seeds are reward models."""
    judges: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for row in study.manifest["estimates"]:
        if row["arm"] in BEST_OF_N:
            key = (row["arm"], row["variant"])
            judges.setdefault(key, []).append((row["seed"], row["step"]))
    found = []
    for (arm, variant), seeds in judges.items():
        rewards = ["gold", "proxy"] if arm == PROXY else ["gold"]
        points, kls, gains = [], [], []
        for seed, step in seeds:
            samples = judged(study.reference, study.proxy_scores[step] if arm == PROXY else None)
            _, *values = reference_matrices(samples, [f"reward_{reward}" for reward in rewards])
            scores = values[-1]  # gold's own, or the reward model's
            for n in sizes(scores.shape[1])[1:]:
                weights = tied_weights(scores, n)
                points.append({"setting": float(n), "seed": seed, "step": 0, "final": True})
                kls.append(measured_kl(scores, n))
                gains.append([(weights * own).sum(1) - own.mean(1) for own in values])
        for place, reward in enumerate(rewards if points else []):
            gain = np.stack([own[place] for own in gains], axis=1)
            note = "chosen by the gold reward" if arm == GOLD else ""
            kl = np.stack(kls, axis=1)
            found.append(Curve(arm, variant, reward, pd.DataFrame(points), kl, gain, note))
    return found
