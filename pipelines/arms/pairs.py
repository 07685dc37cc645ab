"""How the arms of DPO's family make their step: all from the same pairs, by one trainer."""

from collections.abc import Callable

from pipelines.arms.arm import Ingredients
from pipelines.shared.steps import Step


def from_pairs(name: str, section: str, reference: bool = True) -> Callable[[Ingredients], Step]:
    """An arm whose loss, by its section, is in pipelines/dpo/family.py.

    Args:
        reference: whether the loss reads the reference's log-probs.
    """
    reads = ("pairs", "reference_logprobs") if reference else ("pairs",)

    def make(given: Ingredients) -> Step:
        return given.step(name, given.protocol.arm(section), "pipelines.dpo.family:train", *reads)

    return make
