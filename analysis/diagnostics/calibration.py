"""Does the reward model know how sure to be? Its preference probabilities against the labeller's.

A reward model trained by Bradley and Terry's loss says that it prefers sample i to j with
probability sigmoid(proxy_i - proxy_j). The simulated labeller's own probability is known: with
temperature T and a share of `noise` flipped,

    P = (1 - noise) sigmoid((gold_i - gold_j) / T) + noise sigmoid((gold_j - gold_i) / T)

so each pair is compared with a probability and not with one drawn label. Pairs are of one held-out
prompt; errors are clustered by prompt (see `prompt_pairs.clustered`), for one reward model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, log_expit, xlogy
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from analysis.diagnostics.prompt_pairs import clustered, differences
from analysis.statistics import finals, margin
from analysis.studies.labeller import Labeller, labeller_of
from analysis.studies.study import Study
from pipelines.evaluate.schema import CALIBRATION, RELIABILITY, conform

BINS = 10  # of equal width, from 0.5 to 1


@dataclass(frozen=True)
class Pairs:
    """N pairs of samples of one run, each turned so that the reward model prefers its first one.

    Attributes:
        margin: proxy reward of the first less that of the second, 0 or above.
        predicted: the reward model's probability that the first is preferred, 0.5 or above.
        actual: the labeller's; 0.5 at a tie of the proxy, where either could be the first.
        prompts: whose.
    """

    margin: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray
    prompts: np.ndarray

    @classmethod
    def of(cls, samples: pd.DataFrame, labeller: Labeller) -> "Pairs":
        """Args:
        samples: SCORES of one snapshot of one run.
        """
        groups, made = differences(samples, ["reward_proxy", "reward_gold"])
        proxy, gold = made["reward_proxy"], made["reward_gold"]
        prompts = np.broadcast_to(groups["prompt_id"].to_numpy(object)[:, None], proxy.shape)
        there = ~np.isnan(gold)
        proxy, gold, prompts = proxy[there], gold[there], prompts[there]
        actual = labeller.prefers(np.sign(proxy) * gold)
        return cls(np.abs(proxy), expit(np.abs(proxy)), actual, prompts)

    @property
    def bins(self) -> np.ndarray:
        """(N,) which bin each pair is in."""
        return np.minimum(((self.predicted - 0.5) * 2 * BINS).astype(int), BINS - 1)


def reliability(study: Study) -> pd.DataFrame:
    """How often the labeller prefers what the reward model prefers, by how sure this is.

    On the SFT model's samples of held-out prompts, a row per reward model and non-empty bin. A
    calibrated reward model has `actual` = `predicted` in every bin. (A pair is turned to the sample
    that the reward model prefers, so that it counts once; its mirror image says the same.)

    Returns:
        RELIABILITY; no rows for a reward model whose labels nobody simulated.
    """
    rows = []
    for arm, pairs in _judged(study):
        if arm["arm"] != "sft":
            continue
        whose = {"seed": arm["seed"], "variant": arm["variant"], "run": arm["evaluation"][:8]}
        for number in np.unique(pairs.bins):
            inside = pairs.bins == number
            actual, low, high = clustered(pairs.actual[inside], pairs.prompts[inside])
            rows.append(
                {
                    **whose,
                    "bin_low": 0.5 + number / (2 * BINS),
                    "bin_high": 0.5 + (number + 1) / (2 * BINS),
                    "predicted": pairs.predicted[inside].mean(),
                    "actual": actual,
                    "ci_low": np.maximum(low, 0),
                    "ci_high": np.minimum(high, 1),
                    "pairs": inside.sum(),
                    "prompts": len(set(pairs.prompts[inside])),
                }
            )
    table = conform(pd.DataFrame(rows, columns=list(RELIABILITY)), "reliability")
    return table.sort_values(["variant", "seed", "bin_low"], ignore_index=True)


def calibration(study: Study) -> pd.DataFrame:
    """Calibration of the reward model on the samples of every final policy.

    calibration_error: mean over pairs of |actual - predicted| of their bin (Guo et al. 2017, eq.
    3); with few pairs it is above 0 also for a calibrated model. Its interval holds the signs of
    the bins' errors fixed. log_loss: mean of -P log p - (1 - P) log (1 - p), nats; chance has log
    2; the least is the labeller's entropy, log_loss_floor, and `excess` is what is above it. slope:
    of the logistic regression of P on the proxy's differences, without intercept (Cox 1958): 1 is
    calibrated, below 1 the reward model is too sure, 0 it knows nothing.

    Returns:
        CALIBRATION, in the manifest's order; no rows where nobody simulated the labels, or the
        proxy has not judged all samples.
    """
    rows = [
        {
            **{name: arm[name] for name in ("arm", "setting", "seed", "variant")},
            **measures(pairs),
            "run": arm["evaluation"][:8],
        }
        for arm, pairs in _judged(study)
    ]
    return conform(pd.DataFrame(rows, columns=list(CALIBRATION)), "calibration")


def _judged(study: Study) -> list[tuple[Mapping[str, Any], Pairs]]:
    """The final policies whose samples a reward model of simulated labels has judged; the pairs."""
    last = {str(run): rows for run, rows in finals(study.scores).groupby("run")}
    found = []
    for arm in study.manifest["arms"]:
        samples = last[arm["evaluation"][:8]]
        labeller = labeller_of(study, arm["evaluation"])
        if labeller is not None and samples["reward_proxy"].notna().all():
            found.append((arm, Pairs.of(samples, labeller)))
    return found


def measures(pairs: Pairs) -> dict[str, float]:
    """The numbers of CALIBRATION; see `calibration`."""
    error = pairs.actual - pairs.predicted
    # Each pair's error towards its bin's side: the mean is the expected calibration error.
    sums = np.bincount(pairs.bins, weights=error, minlength=BINS)
    off, off_low, off_high = clustered(error * np.sign(sums)[pairs.bins], pairs.prompts)
    yes, no = pairs.actual, 1 - pairs.actual
    loss = -yes * log_expit(pairs.margin) - no * log_expit(-pairs.margin)
    floor = -xlogy(yes, yes) - xlogy(no, no)
    excess, excess_low, excess_high = clustered(loss - floor, pairs.prompts)
    slope, slope_low, slope_high = recalibration(pairs)
    return {
        "calibration_error": off,
        "calibration_error_low": np.maximum(off_low, 0),
        "calibration_error_high": off_high,
        "log_loss": loss.mean() if len(loss) else np.nan,
        "log_loss_floor": floor.mean() if len(floor) else np.nan,
        "excess": excess,
        "excess_low": np.maximum(excess_low, 0),
        "excess_high": excess_high,
        "slope": slope,
        "slope_low": slope_low,
        "slope_high": slope_high,
        "pairs": len(loss),
        "prompts": len(set(pairs.prompts)),
    }


def recalibration(pairs: Pairs) -> tuple[float, float, float]:
    """Slope of the logistic recalibration with its 95% interval; nan where the proxy is constant.

    The interval is the sandwich estimate clustered by prompt, with t_{P-1}.
    """
    prompts, group = np.unique(pairs.prompts, return_inverse=True)
    if len(prompts) < 2 or not pairs.margin.any():
        return np.nan, np.nan, np.nan
    model = GLM(pairs.actual, pairs.margin[:, None], family=Binomial())
    fitted = model.fit(cov_type="cluster", cov_kwds={"groups": group})
    slope, half = float(fitted.params[0]), float(margin(fitted.bse[0], len(prompts)))
    return slope, slope - half, slope + half
