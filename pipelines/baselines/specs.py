"""The settings of Preferred-FT, which learns from one side of the pairs only."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.shared.specs import Spec, setting


@dataclass(frozen=True)
class PreferredFTSpec(Spec):
    """Maximum likelihood on the chosen completions."""

    section: ClassVar[str] = "preferred_ft"
    epochs: int = setting(1, "passes over the chosen completions", at_least=1)
    batch_size: int = setting(64, "completions per optimiser step", at_least=1)
    learning_rate: float = setting(3e-4, "AdamW's peak; linear to 0", above=0)
    warmup: float = setting(0.1, "share of the steps that warm up linearly", at_least=0, below=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    snapshots: int = setting(3, "policies saved over training, the last one included", at_least=1)
