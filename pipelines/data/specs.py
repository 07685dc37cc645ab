"""Settings of a comparison on somebody's own model and pairs."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.shared.errors import UserError
from pipelines.shared.specs import (
    EvaluationSpec,
    Protocol,
    RewardModelSpec,
    SFTSpec,
    Spec,
    setting,
)


@dataclass(frozen=True)
class DataSpec(Spec):
    """How pairs are cut and split. A prompt, however often it occurs, is in one split only."""

    section: ClassVar[str] = "data"
    max_length: int = setting(
        0, "tokens of prompt and completion together (0: the model's positions)", at_least=0
    )
    share_evaluation: float = setting(
        0.15, "share of prompts that policies are judged on; 0 with a test file", at_least=0
    )
    share_validation: float = setting(0.05, "share of prompts for tuning", at_least=0)
    share_judge: float = setting(
        0.30,
        "share of prompts whose pairs train the judge where no gold reward is given",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        used = self.share_evaluation + self.share_validation + self.share_judge
        if used >= 1:
            raise UserError(f"data.share_* sum to {used:g}: they must leave a share to train on")


@dataclass(frozen=True)
class FineTuneSpec(SFTSpec):
    """Stage 1 from a pretrained model: maximum likelihood on the chosen completions."""

    epochs: int = setting(1, "passes over them; 0: the model is taken as it is", at_least=0)
    batch_size: int = setting(16, "sequences per optimiser step", at_least=1)
    learning_rate: float = setting(2e-5, "AdamW's peak; cosine to 0", above=0)
    weight_decay: float = setting(0.0, "AdamW's", at_least=0)


@dataclass(frozen=True)
class JudgeSpec(RewardModelSpec):
    """The gold reward where none is given: a reward model of pairs held out from training."""

    section: ClassVar[str] = "judge"
    batch_size: int = setting(16, "pairs per optimiser step", at_least=1)


@dataclass(frozen=True)
class OwnEvaluationSpec(EvaluationSpec):
    """The one meter; of fewer held-out prompts than it asks for it takes all."""

    at_most: ClassVar[bool] = True
    prompts: int = setting(
        64, "held-out prompts at most; all of their pairs are judged", at_least=2
    )


@dataclass(frozen=True)
class RoomSpec(Spec):
    """What has to fit behind a prompt."""

    section: ClassVar[str] = "room"
    tokens: int = setting(1, "that policies may write", at_least=1)


@dataclass(frozen=True)
class OwnProtocol(Protocol):
    """Somebody's own model and pairs."""

    sft: FineTuneSpec = FineTuneSpec()
    evaluation: OwnEvaluationSpec = OwnEvaluationSpec()
    data: DataSpec = DataSpec()
    judge: JudgeSpec = JudgeSpec()
