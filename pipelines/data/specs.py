"""Settings of comparisons from a pretrained model: on one's own pairs, or on labelled texts."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.shared.assets import CLASSIFIERS, MODELS, SMOLLM2
from pipelines.shared.errors import UserError
from pipelines.shared.specs import (
    EvaluationSpec,
    LabelsSpec,
    Protocol,
    RewardModelSpec,
    SFTSpec,
    Spec,
    setting,
)

TEXTS = {"rotten-tomatoes": ("rotten-tomatoes",), "imdb": ("imdb-train", "imdb-test")}
FINE_TUNED = "fine-tuned"


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
    """Stage 1 from a pretrained model: maximum likelihood on texts, or on completions."""

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


@dataclass(frozen=True)
class RelabelledProtocol(OwnProtocol):
    """People's pairs teach a gold reward, which then labels the model's own completions."""

    labels: LabelsSpec = LabelsSpec()

    @property
    def margins(self) -> bool:
        return self.labels.margins


@dataclass(frozen=True)
class StartSpec(Spec):
    """The pretrained model that everything starts from."""

    section: ClassVar[str] = "start"
    model: str = setting(SMOLLM2.name, "a pinned model", choices=MODELS)


@dataclass(frozen=True)
class TextsSpec(Spec):
    """Real texts with human labels, cut into prompts and split so that no prompt is in two splits.

    Where the source has a test split, the evaluation prompts are its own, and the shares divide the
    training texts.
    """

    section: ClassVar[str] = "corpus"
    source: str = setting("rotten-tomatoes", "of the texts", choices=tuple(TEXTS))
    shortest_prompt: int = setting(4, "tokens of a text that are a prompt, at least", at_least=1)
    longest_prompt: int = setting(4, "and at most; each text draws its own", at_least=1)
    max_tokens: int = setting(64, "of a text, EOS included; SFT reads no further", at_least=2)
    share_sft: float = setting(0.70, "share of prompts whose texts train the SFT model", above=0)
    share_preference: float = setting(0.15, "share of prompts for pairs and for RL", above=0)
    share_validation: float = setting(0.05, "share of prompts for tuning", above=0)
    max_texts: int = setting(0, "keep only so many texts (0: all of them)", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        used = self.share_sft + self.share_preference + self.share_validation
        # To a hair: shares that leave nothing may sum to a little less or more than 1.
        if used > 1 + 1e-9 or (used > 1 - 1e-9 and len(TEXTS[self.source]) == 1):
            raise UserError(
                f"corpus.share_* sum to {used:g}: they must leave a share for evaluation prompts"
            )
        if self.longest_prompt < self.shortest_prompt:
            raise UserError(
                f"corpus.longest_prompt = {self.longest_prompt}: must be at least "
                f"shortest_prompt = {self.shortest_prompt}"
            )
        if self.longest_prompt >= self.max_tokens:
            raise UserError(
                f"corpus.max_tokens = {self.max_tokens}: must be above "
                f"longest_prompt = {self.longest_prompt}"
            )


@dataclass(frozen=True)
class ClassifierSpec(Spec):
    """The gold reward: a sentiment classifier's log-odds, read on prompt and completion."""

    section: ClassVar[str] = "gold"
    model: str = setting(
        FINE_TUNED,
        "a pinned classifier, or one fine-tuned from start.model on the texts' labels",
        choices=(FINE_TUNED, *CLASSIFIERS),
    )
    epochs: int = setting(1, "passes over the labelled texts", at_least=1)
    batch_size: int = setting(32, "texts per optimiser step", at_least=1)
    learning_rate: float = setting(5e-5, "AdamW's peak; linear to 0", above=0)
    warmup: float = setting(0.05, "share of the steps that warm up linearly", at_least=0, below=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)


@dataclass(frozen=True)
class PretrainedProtocol(Protocol):
    """A pretrained model on labelled texts, and preferences simulated on its completions.

    Raises:
        UserError: completions are longer than the texts that SFT reads.
    """

    sft: FineTuneSpec = FineTuneSpec()
    start: StartSpec = StartSpec()
    corpus: TextsSpec = TextsSpec()
    gold: ClassifierSpec = ClassifierSpec()
    labels: LabelsSpec = LabelsSpec()

    def __post_init__(self) -> None:
        longest = self.corpus.longest_prompt + self.sampling.max_new_tokens
        if longest > self.corpus.max_tokens:
            raise UserError(
                f"corpus.longest_prompt + sampling.max_new_tokens = {longest}: must fit into "
                f"corpus.max_tokens = {self.corpus.max_tokens}, which is as far as SFT reads a text"
            )

    @property
    def margins(self) -> bool:
        return self.labels.margins
