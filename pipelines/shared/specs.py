"""Recipes: frozen dataclasses that hold every decision that changes a result.

A `Spec` is hashed into a run's fingerprint, so it holds numbers and strings only, no paths, no
devices and nothing callable. `Runtime` (device, folders, loggers) is a separate class and is never
hashed. Every field checks its own type and range when the spec is made: a bad value is a
`UserError` that names the field, before anything runs.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
        for field in dataclasses.fields(self):
            name = f"{self.section}.{field.name}"
            value = getattr(self, field.name)
            if isinstance(field.type, type) and field.type in (int, float, str, bool):
                value = _coerce(name, field.type, value)
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
    prompts: int = setting(1000, "prompts from the preference split", at_least=1)
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


@dataclass(frozen=True)
class RewardModelSpec(Spec):
    """Stage 2 of RLHF: Bradley-Terry on the pairs, initialised from the SFT model."""

    section: ClassVar[str] = "reward_model"
    epochs: int = setting(1, "passes over the pairs", at_least=1)
    batch_size: int = setting(64, "pairs per optimiser step", at_least=1)
    learning_rate: float = setting(3e-4, "AdamW's peak; linear to 0", above=0)
    warmup: float = setting(0.1, "share of the steps that warm up linearly", at_least=0, below=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    init: str = setting("sft", "where its trunk comes from", choices=("sft", "random"))
    normalise: str = setting(
        "bias",
        "SFT completions score 0 on average; gain-bias: with standard deviation 1",
        choices=("bias", "gain-bias", "none"),
    )


@dataclass(frozen=True)
class PPOSpec(Spec):
    """Stage 3 of RLHF: PPO on the reward minus kl_coef times the KL to the SFT model."""

    section: ClassVar[str] = "ppo"
    kl_coef: float = setting(0.1, "beta of the objective, per nat", at_least=0)
    updates: int = setting(60, "rollout phases", at_least=1)
    rollouts: int = setting(128, "completions per rollout phase", at_least=1)
    ppo_epochs: int = setting(4, "passes over each rollout", at_least=1)
    minibatches: int = setting(4, "optimiser steps per pass", at_least=1)
    learning_rate: float = setting(3e-4, "AdamW's start; see lr_schedule", above=0)
    adam_epsilon: float = setting(1e-5, "AdamW's", above=0)
    clip_range: float = setting(0.2, "of the policy's ratio", above=0)
    clip_range_value: float = setting(
        0.2, "of the value estimate, in the critic's units; 0: not clipped", at_least=0
    )
    vf_coef: float = setting(0.1, "weight of the value loss", at_least=0)
    gamma: float = setting(1.0, "discount per token", at_least=0, at_most=1)
    gae_lambda: float = setting(0.95, "of generalised advantage estimation", at_least=0, at_most=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    kl_control: str = setting(
        "fixed", "adaptive: kl_coef follows kl_target", choices=("fixed", "adaptive")
    )
    kl_target: float = setting(6.0, "of adaptive control, nats per sequence", above=0)
    kl_horizon: float = setting(10_000.0, "of adaptive control, sequences", above=0)
    kl_in: str = setting("reward", "where the penalty is", choices=("reward", "loss"))
    clamp_kl: bool = setting(False, "clamp each token's KL term at 0 from below")
    ema_reference: float = setting(
        1.0, "decay of the reference towards the policy, per update; 1: frozen", above=0, at_most=1
    )
    missing_eos: str = setting(
        "keep", "score of a completion without EOS", choices=("keep", "replace", "subtract")
    )
    missing_eos_value: float = setting(-1.0, "what replaces it, or (negative) is added to it")
    whiten_rewards: bool = setting(False, "divide token rewards by their std")
    whiten_advantages: bool = setting(True, "to mean 0 and std 1 over a rollout's tokens")
    value_after_end: bool = setting(False, "the state after an early EOS has the score, a value")
    normalise_values: bool = setting(False, "the critic predicts normalised returns")
    share_trunk: bool = setting(False, "the critic is a head on the policy's trunk")
    critic_warmup: int = setting(0, "first updates in which only the critic learns", at_least=0)
    ratio_threshold: float = setting(
        0.0, "mean ratio at which the rest of an update is skipped; 0: never", at_least=0
    )
    reshuffle_prompts: bool = setting(True, "anew each time the prompts are exhausted")
    reshuffle_minibatches: bool = setting(True, "anew in each pass over a rollout")
    top_k: int = setting(0, "of the rollouts; 0: all tokens", at_least=0)
    top_p: float = setting(1.0, "of the rollouts; 1: all tokens", above=0, at_most=1)
    stop_at_eos: bool = setting(True, "a completion ends with its first EOS")
    skip_padding: bool = setting(True, "position ids count real tokens only")
    keyed_noise: bool = setting(True, "sampling noise keyed by global prompt index")
    reward_reads_prompt: bool = setting(True, "the reward model reads prompt and completion")
    disable_dropout: bool = setting(True, "everywhere")
    lr_schedule: str = setting("linear", "of the learning rate", choices=("linear", "constant"))
    snapshots: int = setting(3, "policies saved over training, the last one included", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollouts % self.minibatches:
            raise UserError(
                f"ppo.rollouts = {self.rollouts}: must be a multiple of "
                f"minibatches = {self.minibatches}"
            )


@dataclass(frozen=True)
class DPOSpec(Spec):
    """DPO on the same pairs from the same SFT model."""

    section: ClassVar[str] = "dpo"
    beta: float = setting(0.1, "strength of the implicit KL constraint", above=0)
    epochs: int = setting(1, "passes over the pairs", at_least=1)
    batch_size: int = setting(64, "pairs per optimiser step", at_least=1)
    learning_rate: float = setting(3e-4, "AdamW's peak; linear to 0", above=0)
    warmup: float = setting(0.1, "share of the steps that warm up linearly", at_least=0, below=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    snapshots: int = setting(3, "policies saved over training, the last one included", at_least=1)


@dataclass(frozen=True)
class EvaluationSpec(Spec):
    """The one meter that every arm stands under."""

    section: ClassVar[str] = "evaluation"
    split: str = setting("evaluation", "prompts it uses", choices=("evaluation", "validation"))
    prompts: int = setting(256, "held-out prompts", at_least=2)
    samples: int = setting(4, "completions a prompt and policy", at_least=1)
    reference_samples: int = setting(
        256, "completions a prompt of the SFT model, for the optimum", at_least=2
    )
    temperature: float = setting(1.0, "of policy and reference alike", above=0)


@dataclass(frozen=True)
class ComputeSpec(Spec):
    """CPU threads; part of the identity, because 1 and 2 threads give different weights."""

    section: ClassVar[str] = "compute"
    shared_threads: int = setting(2, "threads of the stages that everything waits for", at_least=1)
    arm_threads: int = setting(
        1, "threads of each arm's own stages; arms run side by side", at_least=1
    )


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
class Protocol:
    """Every decision of a comparison: what `--set section.field=value` reaches."""

    corpus: CorpusSpec = CorpusSpec()
    model: ModelSpec = ModelSpec()
    gold: GoldSpec = GoldSpec()
    sft: SFTSpec = SFTSpec()
    sampling: SamplingSpec = SamplingSpec()
    labels: LabelsSpec = LabelsSpec()
    reward_model: RewardModelSpec = RewardModelSpec()
    ppo: PPOSpec = PPOSpec()
    dpo: DPOSpec = DPOSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    compute: ComputeSpec = ComputeSpec()

    def __post_init__(self) -> None:
        longest = self.corpus.prompt_tokens + self.sampling.max_new_tokens
        if longest > self.model.context:
            raise UserError(
                f"corpus.prompt_tokens + sampling.max_new_tokens = {longest}: "
                f"must fit into model.context = {self.model.context}"
            )


@dataclass(frozen=True)
class OracleProtocol:
    """Every decision of a study of the enumerable task."""

    task: TaskSpec = TaskSpec()
    labels: OracleLabelsSpec = OracleLabelsSpec()
    reward_model: RewardModelSpec = RewardModelSpec()
    ppo: PPOSpec = PPOSpec()
    dpo: DPOSpec = DPOSpec()
    ablation: AblationSpec = AblationSpec()


@dataclass(frozen=True)
class Runtime:
    """Where and how a step runs. Never hashed: it must not change a result."""

    results: Path
    cache: Path
    device: str = "cpu"
    wandb: bool = False
    experiment: str = ""
