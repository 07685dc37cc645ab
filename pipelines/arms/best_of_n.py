"""Best of n: n completions of the SFT model, of which the judge's favourite is given.

Objective: none; no policy is trained. Reward by the unbiased estimator from one set of samples
(Nakano et al. 2021, app. I); KL by log n - (n-1)/n, which is an upper bound (Beirami et al. 2024),
and measured on the samples.
Swept: n = 1, 2, 4 ... 128, as far as there are samples for it.
Cost: at inference: n completions for one, and their scores.
"""

from pipelines.arms.arm import Arm
from pipelines.evaluate.pipeline import proxy_scores

BEST_OF_N = Arm(
    name="best-of-n",
    family="sampling",
    summary="the best of n completions of the SFT model by the gold reward",
    estimate=lambda given: given.reference_samples,
    trains_on="",
)
BEST_OF_N_PROXY = Arm(
    name="best-of-n-proxy",
    family="sampling",
    summary="the best of n completions of the SFT model by the reward model",
    estimate=lambda given: proxy_scores(
        given.protocol, given.sft, given.reward_model, given.reference_samples, given.seed
    ),
    trains_on="",
)
