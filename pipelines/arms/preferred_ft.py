"""Preferred-FT: maximum likelihood on the preferred completions (Rafailov et al. 2023, sec. 6).

Objective: max_pi E_(x,y_w) [log pi(y_w|x)]. The rejected completions are not used.
Swept: nothing (the paper repeats it with several seeds). Its KL is measured to the shared SFT
model, like every arm's.
Cost: one forward and backward pass over the chosen completions: half of DPO's, and no reference.
"""

from pipelines.arms.arm import Arm
from pipelines.baselines.specs import PreferredFTSpec

PREFERRED_FT = Arm(
    name="preferred-ft",
    family="supervised",
    summary="SFT once more, on the preferred completions",
    policy=lambda given: given.step(
        "preferred-ft",
        given.protocol.arm("preferred_ft"),
        "pipelines.baselines.preferred_ft:train",
        "pairs",
    ),
    settings=PreferredFTSpec(),
)
