"""An arm of your own: offset DPO (Amini et al. 2024, "Direct Preference Optimization with an
Offset"), which asks for a larger margin where the labeller's rewards are further apart.

Objective: min -log sigmoid(h - alpha (r_w - r_l)), h as in DPO. Swept: beta. Cost: DPO's.

    rlhf-vs-dpo run sentiment --scale smoke --load experiments/examples/my_arm.py --arms my-arm,dpo
"""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.arms import Arm, register
from pipelines.dpo.specs import PairSpec
from pipelines.shared.specs import setting


@dataclass(frozen=True)
class MyArmSpec(PairSpec):
    section: ClassVar[str] = "my_arm"
    beta: float = setting(0.1, "strength of the implicit KL constraint", above=0)
    alpha: float = setting(0.5, "offset per unit of reward", at_least=0)


def train(context):
    from pipelines.dpo.family import dpo_loss, train_pairs  # here: the command line needs no torch

    def loss(spec, pairs):
        chosen, rejected = pairs.rewards(spec.beta)
        return dpo_loss(chosen - spec.alpha * pairs.margins, rejected)

    train_pairs(context, loss, margins=True)


READS = ("pairs", "reference_logprobs")
register(Arm("my-arm", "own", "DPO with an offset", settings=MyArmSpec(), needs=("margins",),
             policy=lambda given: given.step(
                 "my-arm", given.protocol.arm("my_arm"), "my_arm:train", *READS),
             sweep=("my_arm.beta", (0.1, 1.0))))  # fmt: skip
