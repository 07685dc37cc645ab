"""The settings of the enumerable task and of what is studied on it."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.dpo.specs import DPOSpec, OnlineDPOSpec
from pipelines.rlhf.specs import GRPOSpec, PPOSpec, RLOOSpec
from pipelines.shared.errors import UserError
from pipelines.shared.specs import RewardModelSpec, Spec, setting


@dataclass(frozen=True)
class OracleLabelsSpec(Spec):
    """The comparisons of the enumerable task."""

    section: ClassVar[str] = "labels"
    kind: str = setting(
        "exact",
        "all pairs with their exact probability, or pairs of samples with drawn labels",
        choices=("exact", "sampled"),
    )
    pairs: int = setting(6000, "how many, if sampled", at_least=1)
    at_most: int = setting(0, "of all pairs, drawn evenly, if exact; 0: every one", at_least=0)
    temperature: float = setting(
        1.0, "P(i preferred to j) = sigmoid((r_i - r_j) / temperature)", above=0
    )


@dataclass(frozen=True)
class AblationSpec(Spec):
    """What is changed about PPO beside its settings."""

    section: ClassVar[str] = "ablation"
    temperature: float = setting(1.0, "of rollout, reference and update", above=0)
    broken: str = setting("", "see pipelines/exact/ablations.py; empty: nothing")


@dataclass(frozen=True)
class TaskSpec(Spec):
    """The enumerable task of the experiment `exact`."""

    section: ClassVar[str] = "task"
    symbols: int = setting(4, "that a completion is made of", at_least=2, at_most=26)
    length: int = setting(3, "tokens of a completion at most", at_least=1, at_most=6)
    eos: bool = setting(False, "completions may end before in EOS; else all have that length")
    prompts: int = setting(4, "of one and two symbols", at_least=1)
    width: int = setting(64, "of the one-layer transformer", at_least=8)
    heads: int = setting(4, "attention heads", at_least=1)
    reference_sequences: int = setting(8192, "that the reference is trained on", at_least=256)

    def __post_init__(self) -> None:
        super().__post_init__()
        there_are = self.symbols + self.symbols**2
        if self.prompts > there_are:
            raise UserError(f"task.prompts = {self.prompts}: there are only {there_are}")
        if (self.symbols + self.eos) ** self.length > 20_000:
            raise UserError(
                f"task.symbols = {self.symbols}, task.length = {self.length}: too many completions "
                "to enumerate, make it smaller"
            )


@dataclass(frozen=True)
class OracleProtocol:
    """Every decision of a study of the enumerable task."""

    task: TaskSpec = TaskSpec()
    labels: OracleLabelsSpec = OracleLabelsSpec()
    reward_model: RewardModelSpec = RewardModelSpec()
    ppo: PPOSpec = PPOSpec()
    dpo: DPOSpec = DPOSpec()
    online_dpo: OnlineDPOSpec = OnlineDPOSpec()
    rloo: RLOOSpec = RLOOSpec()
    grpo: GRPOSpec = GRPOSpec()
    ablation: AblationSpec = AblationSpec()
