"""What a study of large models will take before anything like it has run: FLOPs from its recipes
and the models' shapes, hours from those by the stated shares of an accelerator's peaks.

It is arithmetic, not a measurement: FLOPs within 15% of what is booked where a study's sizes are
known (the tests hold it to the published one; completions count as long as they may be), hours as
good as the shares. Where something like a step has run, `plan` tells from what that took.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.shared.assets import ASSETS
from pipelines.shared.hub import Shape
from pipelines.shared.ledger import ModelCost
from pipelines.shared.specs import WeightsSpec
from pipelines.shared.steps import Step

BATCH = 256  # sequences that are sampled at once
FP32, ADAMW = 4, 12  # bytes a parameter: of a weight; of its gradient and AdamW's two moments


@dataclass(frozen=True)
class Accelerator:
    """A device and what is taken to be reached of its peaks.

    Attributes:
        bf16, fp32: FLOP/s of matrix products. bandwidth: bytes/s. memory: bytes.
        training, reading: shares of the peak in training steps, and in passes without a gradient.
    """

    name: str
    bf16: float
    fp32: float
    bandwidth: float
    memory: float
    training: float = 0.35
    reading: float = 0.50


H100 = Accelerator("NVIDIA H100 (80 GB)", 990e12, 67e12, 3.35e12, 80e9)


@dataclass(frozen=True)
class Sizes:
    """How much data a study has, where that is not in its settings.

    Attributes:
        sft_rows, sft_tokens: texts or completions that SFT trains on, and their mean length with
            the prompt.
        prompts: distinct ones to sample on. prompt_tokens: their mean length.
        completion_tokens: mean length of people's completions; 0 where there are none.
        pairs: that arms train on; 0: all of the sampled completions.
        judge_pairs: that the judge, or the gold reward, is trained on.
        labelled: texts that a gold classifier is fine-tuned on, of sft_tokens each.
    """

    sft_rows: int
    sft_tokens: int
    prompts: int
    prompt_tokens: int
    completion_tokens: int = 0
    pairs: int = 0
    judge_pairs: int = 0
    labelled: int = 0


@dataclass(frozen=True)
class Work:
    """Of one step.

    Attributes:
        trained: FLOPs of forward and backward passes. read: of forward passes.
        sampled: FLOPs of sampling. tokens: steps of sampling, a batch each.
        held, learnt: parameters of the networks in memory, and of those that are trained.
        sampler: parameters of the one that is sampled from.
        as_trained: passes without a gradient are in the precision of training, too.
    """

    trained: float = 0.0
    read: float = 0.0
    sampled: float = 0.0
    tokens: float = 0.0
    held: int = 0
    learnt: int = 0
    sampler: int = 0
    as_trained: bool = False

    @property
    def flops(self) -> float:
        return self.trained + self.read + self.sampled

    @property
    def bytes(self) -> int:
        """Of weights, gradients and optimiser, in fp32; without activations."""
        return FP32 * self.held + ADAMW * self.learnt


class Forecast:
    """Predicts the steps of one study.

    Args:
        sizes: of its data.
        scratch: the shape of a model that is made from scratch; None where it is pinned.
    """

    def __init__(self, sizes: Sizes, steps: Iterable[Step], scratch: Shape | None = None) -> None:
        self.sizes, steps = sizes, list(steps)
        pinned = [name_of(step) for step in steps if step.stage == "start"]
        found = getattr(ASSETS.get(pinned[0]), "shape", None) if pinned else scratch
        if found is None:
            raise ValueError("the study's model has no known shape")
        self.shape: Shape = found
        samples: Any = next(step.recipe for step in steps if step.stage == "reference-samples")
        self.sampling, self.evaluation = samples["sampling"], samples["evaluation"]

    def work(self, step: Step) -> Work | None:
        """Of a step; None for one without networks to speak of, or of an unknown kind."""
        rule = RULES.get(step.stage)
        return rule(self, step) if rule else None

    # Sizes

    @property
    def written(self) -> int:
        """Tokens of a sampled completion, at most."""
        return int(self.sampling.max_new_tokens)

    @property
    def completion(self) -> int:
        """Tokens of a pair's completion."""
        return self.sizes.completion_tokens or self.written

    @property
    def prompts(self) -> int:
        """Distinct prompts that completions are sampled for."""
        return int(self.sampling.prompts) or self.sizes.prompts

    @property
    def pairs(self) -> int:
        k = int(self.sampling.completions)
        return self.sizes.pairs or self.prompts * k * (k - 1) // 2

    @property
    def completions(self) -> int:
        """Completions that the pairs are made of."""
        return 2 * self.sizes.pairs or self.prompts * int(self.sampling.completions)

    # Passes

    def forward(
        self, rows: float, tokens: int, logits: int = 0, shape: Shape | None = None
    ) -> float:
        """FLOPs of a forward pass over `rows` of a prompt and so many tokens."""
        size = shape or self.shape
        cost = ModelCost(size.body, 0, size.head, size.layers, size.width)
        length = self.sizes.prompt_tokens + tokens
        return float(cost.forward(1, length, logits)) * rows

    def sampling_of(self, rows: float, policies: int = 1) -> dict[str, Any]:
        """Of completions of as many rows."""
        steps = policies * -(-rows // BATCH) * self.written
        return {
            "sampled": policies * self.forward(rows, self.written, self.written),
            "tokens": steps,
            "sampler": parameters(self.shape),
        }

    def passes(self, step: Step) -> float:
        """That a training step is worth; see `Accounted`."""
        weights: Any = step.recipe.get("weights", WeightsSpec())
        return 2.0 if weights.lora_rank else 3.0

    def learnt(self, step: Step, size: int) -> int:
        """Of so many parameters those that a step trains; adapters' own are few."""
        return 0 if self.adapted(step) else size

    def adapted(self, step: Step) -> bool:
        return self.passes(step) < 3.0

    def judge_shape(self, init: str) -> Shape:
        return getattr(ASSETS.get(init), "shape", None) or self.shape


def name_of(start: Step) -> str:
    """The asset that a start step adopts, "" for somebody's own model."""
    identities = set(start.assets.values())
    return next((name for name, asset in ASSETS.items() if asset.identity in identities), "")


def parameters(shape: Shape) -> int:
    """Of the matrix products; embeddings that are not tied are not in it."""
    return shape.body + shape.head


def _sft(at: Forecast, step: Step) -> Work:
    spec: Any = step.recipe["sft"]
    cost = at.forward(1, at.sizes.sft_tokens - at.sizes.prompt_tokens, at.sizes.sft_tokens)
    size = parameters(at.shape)
    trained = at.passes(step) * cost * at.sizes.sft_rows * spec.epochs
    return Work(trained=trained, held=size, learnt=at.learnt(step, size))


def _classifier(at: Forecast, step: Step) -> Work | None:
    if "judge" in step.recipe:
        return _comparisons(at, step, "judge", at.sizes.judge_pairs)
    if "gold" not in step.recipe or not at.sizes.labelled:
        return None
    spec: Any = step.recipe["gold"]
    cost = at.forward(1, at.sizes.sft_tokens - at.sizes.prompt_tokens)
    size = at.shape.body
    trained = at.passes(step) * cost * at.sizes.labelled * spec.epochs
    return Work(trained=trained, held=size, learnt=at.learnt(step, size))


def _comparisons(at: Forecast, step: Step, section: str, pairs: int) -> Work:
    spec: Any = step.recipe[section]
    shape = at.judge_shape(spec.init)
    one = at.forward(1, at.completion, shape=shape)
    trained = at.passes(step) * 2 * pairs * spec.epochs * one
    read = at.completions if section == "reward_model" else 2 * (at.sizes.pairs or pairs)
    learnt = at.learnt(step, shape.body)
    return Work(trained, read=read * one, held=shape.body, learnt=learnt)


def _pairs_arm(at: Forecast, step: Step) -> Work:
    (spec,) = [part for part in step.recipe.values() if hasattr(part, "epochs")]
    sides = 1 if step.stage == "preferred-ft" else 2
    one = at.forward(1, at.completion, at.completion)
    size, rows = parameters(at.shape), sides * at.pairs * spec.epochs
    read, held = 0.0, size
    if step.stage == "kto":  # its reference point: both networks on as many mismatched rows
        read, held = 2 * rows * one, 2 * size
    return Work(at.passes(step) * rows * one, read=read, held=held, learnt=at.learnt(step, size))


def _ppo(at: Forecast, step: Step) -> Work:
    spec: Any = step.recipe["ppo"]
    rows, size = spec.updates * spec.rollouts, parameters(at.shape)
    policy = at.forward(1, at.written, at.written)
    judge, judges = at.shape, 0  # the critic is as large as the reward model
    if "reward_model" in step.upstream:
        own: Any = step.upstream["reward_model"].recipe["reward_model"]
        judge, judges = at.judge_shape(own.init), 1
    value = at.forward(1, at.written, shape=judge)
    references = 0 if at.adapted(step) else 1  # below an adapter the policy is its own
    drawn = at.sampling_of(spec.rollouts)
    return Work(
        trained=rows * at.passes(step) * spec.ppo_epochs * (policy + value),
        read=rows * (policy + (1 + judges) * value),
        sampled=spec.updates * drawn["sampled"],
        tokens=spec.updates * drawn["tokens"],
        held=(1 + references) * size + (1 + judges) * judge.body,
        learnt=at.learnt(step, size + judge.body),
        sampler=size,
        as_trained=True,
    )


def _completions(at: Forecast, step: Step) -> Work | None:
    if "sampling" not in step.recipe:
        return None  # people's
    return Work(held=parameters(at.shape), **at.sampling_of(at.completions))


def _reference_logprobs(at: Forecast, step: Step) -> Work:
    one = at.forward(1, at.completion, at.completion)
    return Work(read=at.completions * one, held=parameters(at.shape))


def _reference_samples(at: Forecast, step: Step) -> Work:
    rows = at.evaluation.prompts * at.evaluation.reference_samples
    return Work(held=parameters(at.shape), **at.sampling_of(rows))


def _proxy_scores(at: Forecast, step: Step) -> Work:
    own: Any = step.upstream["reward_model"].recipe["reward_model"]
    judge = at.judge_shape(own.init)
    rows = at.evaluation.prompts * at.evaluation.reference_samples
    return Work(read=at.forward(rows, at.written, shape=judge), held=judge.body)


def _evaluation(at: Forecast, step: Step) -> Work:
    specs = step.upstream["policy"].recipe.values()
    policies = next((spec.snapshots for spec in specs if hasattr(spec, "snapshots")), 1)
    rows = at.evaluation.prompts * at.evaluation.samples
    each = 2 * at.forward(rows, at.written, at.written) + at.forward(rows, at.written)
    size = parameters(at.shape)
    return Work(
        read=policies * each, held=2 * size + at.shape.body, **at.sampling_of(rows, policies)
    )


RULES: Mapping[str, Callable[[Forecast, Step], Work | None]] = {
    "sft": _sft,
    "gold": _classifier,
    "completions": _completions,
    "reference-logprobs": _reference_logprobs,
    "reward-model": lambda at, step: _comparisons(at, step, "reward_model", at.pairs),
    "ppo": _ppo,
    "reference-samples": _reference_samples,
    "proxy-scores": _proxy_scores,
    "evaluation": _evaluation,
    **dict.fromkeys(
        (
            *("dpo", "dpo-conservative", "dpo-robust", "dpo-hinge", "ipo", "ipo-mean", "kto"),
            *("simpo", "orpo", "unlikelihood", "preferred-ft"),
        ),
        _pairs_arm,
    ),
}


def seconds(work: Work, step: Step, on: Accelerator) -> float:
    """On an accelerator: training in the step's precision, passes without a gradient in fp32 but
    those of PPO's rollouts.

    A step of sampling reads the policy's weights, or computes, whichever takes longer.
    """
    weights: Any = step.recipe.get("weights", WeightsSpec())
    peak = on.bf16 if weights.precision == "bf16" else on.fp32
    plain = on.reading * (peak if work.as_trained else on.fp32)
    reading = work.tokens * FP32 * work.sampler / on.bandwidth
    sampling = max(reading, work.sampled / plain)
    return work.trained / (on.training * peak) + work.read / plain + sampling
