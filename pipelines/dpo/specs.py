"""The settings of DPO's family: arms that learn from pairs without a reward network."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.shared.errors import UserError
from pipelines.shared.specs import Spec, setting


@dataclass(frozen=True)
class PairSpec(Spec):
    """How an arm trains on pairs."""

    epochs: int = setting(1, "passes over the pairs", at_least=1)
    batch_size: int = setting(64, "pairs per optimiser step", at_least=1)
    learning_rate: float = setting(3e-4, "AdamW's peak; linear to 0", above=0)
    warmup: float = setting(0.1, "share of the steps that warm up linearly", at_least=0, below=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    snapshots: int = setting(3, "policies saved over training, the last one included", at_least=1)


@dataclass(frozen=True)
class DPOSpec(PairSpec):
    """DPO on the same pairs from the same SFT model."""

    section: ClassVar[str] = "dpo"
    beta: float = setting(0.1, "strength of the implicit KL constraint", above=0)


@dataclass(frozen=True)
class ConservativeDPOSpec(PairSpec):
    """Conservative DPO: every label is taken to be wrong with a small probability."""

    section: ClassVar[str] = "dpo_conservative"
    beta: float = setting(0.1, "strength of the implicit KL constraint", above=0)
    label_smoothing: float = setting(
        0.1, "probability that a label is wrong", at_least=0, below=0.5
    )


@dataclass(frozen=True)
class RobustDPOSpec(PairSpec):
    """Robust DPO: DPO's loss without the bias that label noise gives it."""

    section: ClassVar[str] = "dpo_robust"
    beta: float = setting(0.1, "strength of the implicit KL constraint", above=0)
    label_smoothing: float = setting(
        0.1, "probability that a label is wrong", at_least=0, below=0.5
    )


@dataclass(frozen=True)
class HingeDPOSpec(PairSpec):
    """The hinge loss of SLiC on DPO's implicit rewards."""

    section: ClassVar[str] = "dpo_hinge"
    beta: float = setting(0.1, "scale of the implicit reward; the margin is 1 / beta", above=0)


@dataclass(frozen=True)
class IPOSpec(PairSpec):
    """IPO on log-probabilities of whole completions, as in the paper."""

    section: ClassVar[str] = "ipo"
    beta: float = setting(0.1, "tau of the paper: the target margin is 1 / (2 beta)", above=0)


@dataclass(frozen=True)
class MeanIPOSpec(PairSpec):
    """IPO on log-probabilities per token, as TRL has it."""

    section: ClassVar[str] = "ipo_mean"
    beta: float = setting(1.0, "the target margin per token is 1 / (2 beta)", above=0)


@dataclass(frozen=True)
class KTOSpec(PairSpec):
    """KTO: each completion is good or bad by itself, against the policy's own KL."""

    section: ClassVar[str] = "kto"
    batch_size: int = setting(
        64, "pairs per optimiser step; the KL is estimated from pairs of different ones", at_least=2
    )
    beta: float = setting(0.1, "how fast the value of a log-ratio saturates", above=0)
    desirable_weight: float = setting(1.0, "of chosen completions", above=0)
    undesirable_weight: float = setting(1.0, "of rejected completions", above=0)


@dataclass(frozen=True)
class SimPOSpec(PairSpec):
    """SimPO: the mean log-probability is the reward; no reference."""

    section: ClassVar[str] = "simpo"
    beta: float = setting(2.0, "scale of the mean log-probability", above=0)
    gamma_ratio: float = setting(0.5, "target margin over beta, nats per token", at_least=0)


@dataclass(frozen=True)
class ORPOSpec(PairSpec):
    """ORPO: maximum likelihood of the chosen, and their odds against the rejected; no reference."""

    section: ClassVar[str] = "orpo"
    weight: float = setting(0.1, "lambda, of the odds-ratio term", above=0)


@dataclass(frozen=True)
class UnlikelihoodSpec(PairSpec):
    """Likelihood of the chosen, unlikelihood of the rejected; no reference."""

    section: ClassVar[str] = "unlikelihood"
    alpha: float = setting(0.1, "weight of the rejected completions' term", at_least=0)


@dataclass(frozen=True)
class OnlineDPOSpec(Spec):
    """Online DPO: the policy's own completions are compared, and trained on, in rounds."""

    section: ClassVar[str] = "online_dpo"
    beta: float = setting(0.1, "strength of the implicit KL constraint", above=0)
    rounds: int = setting(
        60, "of sampling, labelling and training; few and long: iterative DPO", at_least=1
    )
    pairs: int = setting(64, "per round, two completions each", at_least=1)
    epochs: int = setting(4, "passes over a round's pairs", at_least=1)
    batch_size: int = setting(16, "pairs per optimiser step", at_least=1)
    labels: str = setting(
        "probability",
        "soft, the judge's Bradley-Terry probability; or drawn from it",
        choices=("probability", "drawn"),
    )
    learning_rate: float = setting(1e-4, "AdamW's start; linear to 0", above=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    snapshots: int = setting(3, "policies saved over training, the last one included", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs % self.batch_size:
            raise UserError(
                f"online_dpo.pairs = {self.pairs}: must be a multiple of "
                f"batch_size = {self.batch_size}"
            )
