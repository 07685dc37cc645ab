"""IPO (Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
Preferences").

Objective (eq. 17): min (h - 1 / (2 beta))^2, h = log pi(y_w)/ref(y_w) - log pi(y_l)/ref(y_l) of
whole completions; beta is the paper's tau.
Swept: beta. It weighs the KL against the probability of being preferred, not against the reward:
it is not J's coefficient.
Cost: DPO's.
"""

from pipelines.arms.arm import Arm
from pipelines.arms.pairs import from_pairs
from pipelines.dpo.specs import IPOSpec

IPO = Arm(
    name="ipo",
    family="dpo",
    summary="IPO on whole completions, as in the paper",
    policy=from_pairs("ipo", "ipo"),
    settings=IPOSpec(),
    sweep=("ipo.beta", (0.05, 0.1, 0.3, 1.0)),
)
