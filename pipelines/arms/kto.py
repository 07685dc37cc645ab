"""KTO (Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization").

Objective (eq. 8): min lambda_y - v(x, y), v = lambda_D sigmoid(beta (log-ratio - z0)) for chosen
and lambda_U sigmoid(beta (z0 - log-ratio)) for rejected completions; z0 is the batch's estimate of
KL(pi || ref), from mismatched prompts and completions, and has no gradient.
Swept: beta.
Cost: DPO's, and a forward pass of policy and reference over the mismatched completions.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import KTOSpec

KTO = Arm(
    name="kto",
    family="dpo",
    summary="KTO: single completions, good or bad, against the policy's own KL",
    policy=from_pairs("kto", "kto"),
    settings=KTOSpec(),
    sweep=("kto.beta", (0.05, 0.1, 0.3, 1.0)),
)
