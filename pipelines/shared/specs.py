"""Recipes: frozen dataclasses that hold every decision that changes a result.

A `Spec` is hashed into a run's fingerprint, so it holds numbers and strings only, no paths, no
devices and nothing callable. `Runtime` (device, folders, loggers) is a separate class and is never
hashed. Every field checks its own type and range when the spec is made: a bad value is a
`UserError` that names the field, before anything runs.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipelines.shared.assets import MODELS
from pipelines.shared.errors import UserError, unknown


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A spec field with its default, its meaning (with units) and its allowed range."""
    limits = {"above": above, "at_least": at_least, "at_most": at_most, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, **limits})


def _coerce(name: str, kind: type, value: Any) -> Any:
    """`value` as `kind`; an int may stand for a float, nothing else is converted."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{name} = {value!r}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _check_range(name: str, value: Any, meta: Any) -> None:
    """Raise `UserError` unless `value` lies in the range that the field's metadata states."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value}: must be finite")
    if meta.get("above") is not None and not value > meta["above"]:
        raise UserError(f"{name} = {value}: must be above {meta['above']}")
    if meta.get("at_least") is not None and value < meta["at_least"]:
        raise UserError(f"{name} = {value}: must be at least {meta['at_least']}")
    if meta.get("at_most") is not None and value > meta["at_most"]:
        raise UserError(f"{name} = {value}: must be at most {meta['at_most']}")
    if meta.get("below") is not None and not value < meta["below"]:
        raise UserError(f"{name} = {value}: must be below {meta['below']}")
    if meta.get("choices") is not None and value not in meta["choices"]:
        raise unknown(name, str(value), meta["choices"])


@functools.cache
def kinds_of(spec: Any) -> dict[str, Any]:
    """The type of each field, also where its module postpones annotations."""
    return typing.get_type_hints(spec)


@dataclass(frozen=True)
class Spec:
    """Base of all recipes: checks every field against its annotation and its stated range.

    Attributes:
        section: the recipe's name on the command line, as in `--set dpo.beta=0.1`.

    Raises:
        UserError: a value of the wrong type or out of range; the message names the field.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        own: Any = type(self)
        kinds = kinds_of(own)
        for field in dataclasses.fields(self):
            name = f"{self.section}.{field.name}"
            value = getattr(self, field.name)
            if kinds[field.name] in (int, float, str, bool):
                value = _coerce(name, kinds[field.name], value)
                object.__setattr__(self, field.name, value)
            _check_range(name, value, field.metadata)


@dataclass(frozen=True)
class CorpusSpec(Spec):
    """Real reviews, cut into prompts and split so that no prompt is in two splits."""

    section: ClassVar[str] = "corpus"
    vocab_size: int = setting(
        2048, "byte-level BPE vocabulary, special tokens included", at_least=260
    )
    prompt_tokens: int = setting(4, "a prompt is the first so many tokens of a review", at_least=1)
    share_sft: float = setting(0.70, "share of prompts whose reviews train the SFT model", above=0)
    share_preference: float = setting(0.15, "share of prompts for pairs and for RL", above=0)
    share_validation: float = setting(0.05, "share of prompts for tuning", above=0)
    max_reviews: int = setting(0, "keep only so many reviews (0: all of them)", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        used = self.share_sft + self.share_preference + self.share_validation
        if used >= 1:
            raise UserError(
                f"corpus.share_* sum to {used:g}: they must leave a share for evaluation prompts"
            )


@dataclass(frozen=True)
class ModelSpec(Spec):
    """The GPT-2 architecture, trained from scratch."""

    section: ClassVar[str] = "model"
    layers: int = setting(2, "transformer blocks", at_least=1)
    width: int = setting(128, "hidden size", at_least=1)
    heads: int = setting(4, "attention heads", at_least=1)
    context: int = setting(32, "tokens", at_least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UserError(
                f"model.width = {self.width}: must be a multiple of heads = {self.heads}"
            )


@dataclass(frozen=True)
class GoldSpec(Spec):
    """The gold reward: TF-IDF + logistic regression on the human labels; reward = its log-odds."""

    section: ClassVar[str] = "gold"
    inverse_regularisation: float = setting(3.0, "C of the logistic regression", above=0)
    longest_ngram: int = setting(2, "words", at_least=1)


@dataclass(frozen=True)
class SFTSpec(Spec):
    """Stage 1 of both pipelines: maximum likelihood on the reviews."""

    section: ClassVar[str] = "sft"
    epochs: int = setting(6, "passes over the SFT reviews", at_least=1)
    batch_size: int = setting(64, "sequences per optimiser step", at_least=1)
    learning_rate: float = setting(2e-3, "AdamW's peak; cosine to 0", above=0)
    warmup: float = setting(0.05, "share of the steps that warm up linearly", at_least=0, below=1)
    weight_decay: float = setting(0.1, "AdamW's", at_least=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)


@dataclass(frozen=True)
class SamplingSpec(Spec):
    """How completions are drawn, for the pairs, in RL and in evaluation alike."""

    section: ClassVar[str] = "sampling"
    prompts: int = setting(1000, "prompts from the preference split (0: all)", at_least=0)
    completions: int = setting(4, "completions a prompt; k give k(k-1)/2 pairs", at_least=2)
    max_new_tokens: int = setting(20, "tokens sampled at most, EOS included", at_least=1)
    temperature: float = setting(1.0, "of the pairs and of RL's rollouts", above=0)


@dataclass(frozen=True)
class LabelsSpec(Spec):
    """The simulated labeller: Bradley-Terry on the gold reward, with noise."""

    section: ClassVar[str] = "labels"
    temperature: float = setting(
        1.0, "P(i preferred to j) = sigmoid((r_i - r_j) / temperature)", above=0
    )
    noise: float = setting(0.0, "share of labels flipped at random", at_least=0, at_most=0.5)
    margins: bool = setting(True, "the pairs keep the rewards that the labels are drawn from")


@dataclass(frozen=True)
class RewardModelSpec(Spec):
    """Stage 2 of RLHF: Bradley-Terry on the pairs, initialised from the SFT model."""

    section: ClassVar[str] = "reward_model"
    epochs: int = setting(1, "passes over the pairs", at_least=1)
    batch_size: int = setting(64, "pairs per optimiser step", at_least=1)
    learning_rate: float = setting(3e-4, "AdamW's peak; linear to 0", above=0)
    warmup: float = setting(0.1, "share of the steps that warm up linearly", at_least=0, below=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    init: str = setting(
        "sft", "where its trunk comes from, or a pinned model", choices=("sft", "random", *MODELS)
    )
    normalise: str = setting(
        "bias",
        "the pairs' completions score 0 on average; gain-bias: with standard deviation 1",
        choices=("bias", "gain-bias", "none"),
    )


@dataclass(frozen=True)
class EvaluationSpec(Spec):
    """The one meter that every arm stands under."""

    section: ClassVar[str] = "evaluation"
    at_most: ClassVar[bool] = False  # fewer prompts than these will do
    split: str = setting("evaluation", "prompts it uses", choices=("evaluation", "validation"))
    prompts: int = setting(256, "held-out prompts", at_least=2)
    samples: int = setting(4, "completions a prompt and policy", at_least=1)
    reference_samples: int = setting(
        256, "completions a prompt of the SFT model, for the optimum", at_least=2
    )
    temperature: float = setting(1.0, "of policy and reference alike", above=0)


@dataclass(frozen=True)
class TemperaturesSpec(Spec):
    """The temperatures at which final policies are sampled once more."""

    section: ClassVar[str] = "temperatures"
    values: tuple[float, ...] = setting(
        (0.0, 0.25, 0.5, 0.75, 1.0), "of policy and reference alike, ascending; 0 is greedy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        name = f"{self.section}.values"
        values = tuple(_coerce(name, float, value) for value in self.values)
        for value in values:
            _check_range(name, value, {"at_least": 0})
        if not values or list(values) != sorted(set(values)):
            raise UserError(f"{name} = {values}: name one temperature or more, in ascending order")
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class WeightsSpec(Spec):
    """Which weights are trained, and in which precision: the same for every network and arm."""

    section: ClassVar[str] = "weights"
    lora_rank: int = setting(0, "of adapters on all linear layers; 0: all weights", at_least=0)
    lora_alpha: int = setting(32, "an adapter's product is times alpha / rank", at_least=1)
    precision: str = setting(
        "fp32",
        "of training; bf16: matrix products in bf16, weights and optimiser in fp32",
        choices=("fp32", "bf16"),
    )


@dataclass(frozen=True)
class ComputeSpec(Spec):
    """CPU threads; part of the identity, because 1 and 2 threads give different weights."""

    section: ClassVar[str] = "compute"
    shared_threads: int = setting(2, "threads of the stages that everything waits for", at_least=1)
    arm_threads: int = setting(
        1, "threads of each arm's own stages; arms run side by side", at_least=1
    )


@dataclass(frozen=True)
class Protocol:
    """Every decision of a comparison: what `--set section.field=value` reaches.

    Attributes:
        arms: the arms' own settings, by section; what is not here is as the arm declares it.
    """

    sft: SFTSpec = SFTSpec()
    sampling: SamplingSpec = SamplingSpec()
    reward_model: RewardModelSpec = RewardModelSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    compute: ComputeSpec = ComputeSpec()
    weights: WeightsSpec = WeightsSpec()
    arms: Mapping[str, Spec] = dataclasses.field(default_factory=dict)

    def arm(self, section: str) -> Any:
        """The settings of an arm by its section."""
        return self.arms[section]

    @property
    def trained_by(self) -> dict[str, Spec]:
        """What the recipe of a step that trains says of weights; nothing where that is the default,
        so that it is the step that it was before there was a choice."""
        spec = self.weights
        if not spec.lora_rank:  # then there is no adapter to be of any scale
            spec = dataclasses.replace(spec, lora_alpha=WeightsSpec().lora_alpha)
        return {} if spec == WeightsSpec() else {"weights": spec}

    @property
    def margins(self) -> bool:
        """Whether the pairs hold what each completion is worth to the labeller."""
        return False


@dataclass(frozen=True)
class SimulatedProtocol(Protocol):
    """A model made from scratch, and preferences simulated on its completions."""

    corpus: CorpusSpec = CorpusSpec()
    model: ModelSpec = ModelSpec()
    gold: GoldSpec = GoldSpec()
    labels: LabelsSpec = LabelsSpec()

    @property
    def margins(self) -> bool:
        return self.labels.margins

    def __post_init__(self) -> None:
        longest = self.corpus.prompt_tokens + self.sampling.max_new_tokens
        if longest > self.model.context:
            raise UserError(
                f"corpus.prompt_tokens + sampling.max_new_tokens = {longest}: "
                f"must fit into model.context = {self.model.context}"
            )


def sections(protocol: Any) -> dict[str, Spec]:
    """The settings of a protocol by section: its own fields, and its arms'."""
    own = {field.name: getattr(protocol, field.name) for field in dataclasses.fields(protocol)}
    named = {name: value for name, value in own.items() if isinstance(value, Spec)}
    return {**named, **own.get("arms", {})}


@dataclass(frozen=True)
class Runtime:
    """Where and how a step runs. Never hashed: it must not change a result.

    Attributes:
        device: cpu, cuda or another of PyTorch's.
        gradient_checkpointing: compute activations once more in the backward pass, to hold fewer.
        brought: where the user's own files and folders lie, by the digest that steps know them by.
    """

    results: Path
    cache: Path
    device: str = "cpu"
    gradient_checkpointing: bool = False
    wandb: bool = False
    experiment: str = ""
    brought: Mapping[str, Path] = dataclasses.field(default_factory=dict)
