"""Reward against KL: where each policy is, and where the best possible ones would be.

All rewards are the gold reward, all KLs the sequence-level reverse KL to the SFT model in nats. The
reference curves (the optimum of the KL-regularised objective, and best-of-n) come from one set of
samples of the SFT model.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import gammaln, logsumexp

from analysis.statistics import KEYS, POLICY, finals, interval, prompt_means, standard_error
from pipelines.evaluate.schema import FRONTIER, conform

if TYPE_CHECKING:
    from analysis.study import Study

ESTIMATORS = ("k1", "k3", "rb")
TRUSTED_ESS = 10.0
# 20 a decade from 0.01 to 100, in reward units per nat: wider than any reward model needs.
GRID = tuple(float(f"{10 ** (k / 20):.4g}") for k in range(-40, 41))
ORDER = ["arm", "setting", "seed", "variant", "step", "kl_estimator"]


def frontier(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean reward and KL of every policy and snapshot, once per KL estimator (k1, k3, rb).

    Means are of per-prompt means; standard errors are theirs, std(ddof=1) / sqrt(prompts).

    Args:
        scores: SCORES with arm, setting, seed, variant, run and stage (see `Study.scores`).

    Returns:
        FRONTIER; KL in nats, entropy in nats a token, length in tokens; `final` marks each run's
        largest step.
    """
    columns = [
        "kl_k1",
        "kl_k3",
        "kl_rb",
        "reward_gold",
        "reward_proxy",
        "entropy",
        "length",
        "temperature",
    ]
    means = prompt_means(scores, columns).groupby([*KEYS, "step"], dropna=False)
    table = means[columns].mean(skipna=False)
    table["reward_gold_se"] = means["reward_gold"].agg(standard_error)
    table["n_prompts"] = means.size()
    table["n_samples"] = scores.groupby([*KEYS, "step"], dropna=False)["sample"].nunique()
    errors = {name: means[f"kl_{name}"].agg(standard_error) for name in ESTIMATORS}
    parts = [
        table.assign(kl=table[f"kl_{name}"], kl_se=errors[name], kl_estimator=name)
        for name in ESTIMATORS
    ]
    whole = pd.concat([part.reset_index() for part in parts], ignore_index=True)
    last = finals(scores).groupby("run")["step"].first()
    whole = whole.assign(ess=np.nan, final=whole["step"] == whole["run"].map(last))
    return conform(whole[list(FRONTIER)], "frontier").sort_values(ORDER, ignore_index=True)


def points(scores: pd.DataFrame) -> pd.DataFrame:
    """Reward and KL of every policy and snapshot over its seeds (see `statistics.interval`).

    Returns:
        arm, setting, variant, step, final; kl (nats, rb) and reward_gold, each with _se and _margin
        (half the 95% interval); seeds.
    """
    means = prompt_means(scores, ["kl_rb", "reward_gold"]).rename(columns={"kl_rb": "kl"})
    rows = []
    for key, group in means.groupby([*POLICY, "step"], dropna=False):
        row = dict(zip([*POLICY, "step"], key, strict=True))
        for name in ("kl", "reward_gold"):
            found = interval(group, name)
            row |= {name: found.mean, f"{name}_se": found.se}
            row |= {f"{name}_margin": found.high - found.mean, "seeds": found.seeds}
        rows.append(row)
    table = pd.DataFrame(rows)
    last = table.groupby(POLICY, dropna=False)["step"].transform("max")
    return table.assign(final=table["step"] == last)


def reference_matrices(reference: pd.DataFrame) -> tuple[pd.Index, np.ndarray, np.ndarray]:
    """Prompt ids (P), rewards (P, N) and lengths (P, N) of the reference samples.

    Raises:
        ValueError: prompts do not have equally many samples.
    """
    rows = reference.sort_values(["prompt_id", "sample"], kind="stable")
    counts = rows.groupby("prompt_id").size()
    if counts.nunique() != 1:
        raise ValueError("reference samples are not equally many for each prompt")
    shape = (len(counts), int(counts.iloc[0]))
    rewards = rows["reward_gold"].to_numpy(float).reshape(shape)
    return counts.index, rewards, rows["length"].to_numpy(float).reshape(shape)


def optimum_per_prompt(reference: pd.DataFrame, beta: float) -> pd.DataFrame:
    """The KL-regularised optimum at coefficient `beta`, estimated for each prompt.

    pi*(y|x) = pi_ref(y|x) exp(r(x,y)/beta) / Z(x) maximises E[r] - beta KL(pi || pi_ref) (Rafailov
    et al. 2023, eq. 4). With N samples of pi_ref, self-normalised importance weights w =
    softmax(r/beta):

        E*[r] = sum_i w_i r_i        log Z = log mean_i exp(r_i/beta)
        KL* = E*[r]/beta - log Z     ESS = 1 / sum_i w_i^2        J* = beta log Z

    J* is low on average (Jensen; never above max_i r_i), the more so the smaller the ESS: with 256
    samples of Gaussian rewards, by 1% of its gain over E[r] at ESS 50 and by 5% at ESS 10.

    Args:
        reference: REFERENCE_SCORES, equally many samples N of each prompt.
        beta: reward units per nat, above 0.

    Returns:
        Index prompt_id; columns reward, kl (nats), objective (reward units), ess (samples), length.

    Raises:
        ValueError: beta is not above 0, or prompts have unequal numbers of samples.
    """
    if not beta > 0:
        raise ValueError(f"beta = {beta}: the optimum is defined for beta above 0")
    prompts, rewards, lengths = reference_matrices(reference)
    scaled = rewards / beta
    log_sum = logsumexp(scaled, axis=1, keepdims=True)
    weights = np.exp(scaled - log_sum)
    reward = (weights * rewards).sum(axis=1)
    log_z = log_sum[:, 0] - np.log(rewards.shape[1])
    return pd.DataFrame(
        {
            "reward": reward,
            # Cancellation can leave -1e-16 where all rewards are equal.
            "kl": np.maximum(reward / beta - log_z, 0.0),
            "objective": beta * log_z,
            "ess": 1 / (weights**2).sum(axis=1),
            "length": (weights * lengths).sum(axis=1),
        },
        index=prompts,
    )


def optimum(reference: pd.DataFrame, betas: Iterable[float], run: str = "") -> pd.DataFrame:
    """The estimated optimum at each beta, averaged over prompts (arm "optimum", setting beta).

    `ess` is the median over prompts: the mean would be carried by prompts whose rewards are all
    alike (ESS near N) and hide that the estimate has collapsed on most others.

    Args:
        reference: REFERENCE_SCORES.
        betas: reward units per nat, each above 0.
        run: first 8 hex digits of the reference samples' fingerprint.

    Returns:
        FRONTIER, one row per beta, kl_estimator "importance".
    """
    rows = []
    for beta in sorted(set(betas)):
        per_prompt = optimum_per_prompt(reference, beta)
        rows.append(
            {
                "arm": "optimum",
                "setting": beta,
                "kl": per_prompt["kl"].mean(),
                "kl_se": standard_error(per_prompt["kl"]),
                "kl_estimator": "importance",
                "reward_gold": per_prompt["reward"].mean(),
                "reward_gold_se": standard_error(per_prompt["reward"]),
                "length": per_prompt["length"].mean(),
                "ess": per_prompt["ess"].median(),
            }
        )
    return _reference_rows(rows, reference, run)


def best_of_n(
    reference: pd.DataFrame, ns: Iterable[int] | None = None, run: str = ""
) -> pd.DataFrame:
    """Best of n samples by the gold reward, for each n, from one set of N samples a prompt.

    Unbiased over all subsets of size n, with r_(1) <= ... <= r_(N) (Nakano et al. 2021, app. I; Gao
    et al. 2023):

        E[max of n] = sum_i C(i-1, n-1) / C(N, n) r_(i)

    The KL is log n - (n-1)/n, an upper bound of the true one (Beirami et al. 2024). The effective
    sample size is 1 / sum_i w_i^2 of those weights, the same for every prompt.

    Args:
        reference: REFERENCE_SCORES.
        ns: from 1 to N; by default the powers of 2.
        run: first 8 hex digits of the reference samples' fingerprint.

    Returns:
        FRONTIER, one row per n (arm "best-of-n", setting n), kl_estimator "analytic".

    Raises:
        ValueError: an n is not between 1 and N.
    """
    _, rewards, lengths = reference_matrices(reference)
    total = rewards.shape[1]
    order = np.argsort(rewards, axis=1, kind="stable")
    rewards, lengths = np.take_along_axis(rewards, order, 1), np.take_along_axis(lengths, order, 1)
    rows = []
    for n in sorted(set(ns if ns is not None else (2**k for k in range(total.bit_length())))):
        weights = best_of_n_weights(n, total)
        per_prompt = rewards @ weights
        rows.append(
            {
                "arm": "best-of-n",
                "setting": n,
                "kl": np.log(n) - (n - 1) / n,
                "kl_estimator": "analytic",
                "reward_gold": per_prompt.mean(),
                "reward_gold_se": standard_error(per_prompt),
                "length": (lengths @ weights).mean(),
                "ess": 1 / (weights**2).sum(),
            }
        )
    return _reference_rows(rows, reference, run)


def best_of_n_weights(n: int, total: int) -> np.ndarray:
    """Probability that the i-th smallest of `total` samples is the largest of a random n of them.

    Returns:
        C(i-1, n-1) / C(total, n) for i = 1..total, shape (total,); sums to 1.

    Raises:
        ValueError: n is not between 1 and total.
    """
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} needs n between 1 and the {total} samples of a prompt")
    i = np.arange(n, total + 1)
    # Log-gamma: the binomials of 256 samples overflow where their ratio does not.
    log_weights = gammaln(i) - gammaln(n) - gammaln(i - n + 1)
    log_weights -= gammaln(total + 1) - gammaln(n + 1) - gammaln(total - n + 1)
    weights = np.zeros(total)
    weights[n - 1 :] = np.exp(log_weights)
    return weights


def frontier_table(study: "Study") -> pd.DataFrame:
    """FRONTIER of the whole study: policies, snapshots, optimum (ESS >= 10) and best-of-n."""
    settings = [value for value in study.scores["setting"].dropna().unique() if value > 0]
    best = optimum(study.reference, {*GRID, *settings}, study.reference_run)
    parts = [
        frontier(study.scores),
        best_of_n(study.reference, run=study.reference_run),
        best[best["ess"] >= TRUSTED_ESS],
    ]
    whole = pd.concat(parts, ignore_index=True).sort_values(ORDER, ignore_index=True)
    return conform(whole, "frontier")


def _reference_rows(rows: list[dict], reference: pd.DataFrame, run: str) -> pd.DataFrame:
    """Rows made from the reference samples as FRONTIER, with what they all share filled in."""
    prompts, rewards, _ = reference_matrices(reference)
    table = pd.DataFrame(rows).reindex(columns=list(FRONTIER))
    return conform(
        table.assign(
            seed=0,
            step=0,
            n_prompts=len(prompts),
            n_samples=rewards.shape[1],
            run=run,
            temperature=reference["temperature"].mean(),
            stage="reference-samples",
            variant="",
            final=True,
        ),
        "frontier",
    )
