"""DPO (Rafailov et al. 2023).

Objective (eq. 7): min -log sigmoid(beta [log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)]),
whose optimum is that of RLHF's J = E[r] - beta KL for the reward that explains the labels.
Swept: beta, J's own coefficient; the paper's values are 0.05, 0.1, 1 and 5.
Cost: a forward pass of the reference over the pairs' completions, once for all betas, and forward
and backward passes over both sides of the pairs. No reward network, no sampling.
"""

from pipelines.arms.arm import Arm
from pipelines.dpo.pipeline import dpo
from pipelines.dpo.specs import DPOSpec

DPO = Arm(
    name="dpo",
    family="dpo",
    summary="DPO on the same pairs",
    policy=lambda given: dpo(
        given.protocol, given.sft, given.pairs, given.reference_logprobs, given.seed
    ),
    settings=DPOSpec(),
    sweep=("dpo.beta", (0.05, 0.1, 0.3, 1.0, 5.0)),
    coefficient=True,
)
