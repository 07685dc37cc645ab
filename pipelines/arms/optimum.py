"""The estimated optimum of the KL-regularised objective, from samples of the SFT model.

Objective: max_pi E[r] - beta KL(pi || ref) with the gold reward, whose optimum is
pi*(y|x) proportional to ref(y|x) exp(r(x, y) / beta) (Rafailov et al. 2023, eq. 4); its reward and
KL are estimated by weighting samples of ref, and not drawn where the effective sample size is
below 10.
Swept: beta, over four decades.
Cost: the samples. It is a bound for the others, not a method.
"""

from pipelines.arms.arm import Arm

OPTIMUM = Arm(
    name="optimum",
    family="sampling",
    summary="the estimated optimum: the most reward that its KL can buy",
    estimate=lambda given: given.reference_samples,
    trains_on="",
)
