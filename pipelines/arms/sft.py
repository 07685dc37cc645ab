"""SFT: the start and the reference of every arm.

Objective: maximum likelihood, max_pi E_(x,y)~data [log pi(y|x)].
Swept: nothing. Its KL is 0, and its reward what the others start from.
Cost: itself; every other arm pays for it too.
"""

from pipelines.arms.arm import Arm

SFT = Arm(
    name="sft",
    family="start",
    summary="the SFT model: start and reference of every arm",
    policy=lambda given: given.sft,
    trains_on="",
)
