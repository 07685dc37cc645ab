"""Online DPO: the policy's own completions are compared, and it trains on the comparisons.

In each round the policy samples two completions y, y' of each of some prompts, a judge says with
which probability p the first is the better one, and some epochs minimise DPO's loss against the SFT
model (Guo et al. 2024). Few long rounds are iterative DPO (Xu et al. 2023, Xiong et al. 2024).

    L = -p log sigmoid(m) - (1 - p) log sigmoid(-m)
    m = beta [log pi(y|x)/ref(y|x) - log pi(y'|x)/ref(y'|x)]     (Rafailov et al. 2023, eq. 7)

Pairs are data: no gradient goes through the sampling, and where p = sigmoid(r - r') the gradient of
every pair is 0 at the optimum, whatever policy it was sampled from.
"""

from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pipelines.dpo.losses import dpo_loss, implicit_reward
from pipelines.dpo.specs import OnlineDPOSpec
from pipelines.shared.adapters import adapted
from pipelines.shared.corpus import training_prompts
from pipelines.shared.generation import (
    LOW_PRECISION_TOLERANCE,
    SAMPLER_TOLERANCE,
    check_sampler,
)
from pipelines.shared.judges import Judge, judge_of
from pipelines.shared.ledger import Ledger
from pipelines.shared.logprobs import Sequences, completion_logprobs
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.sampling import Samples, keyed_uniforms, sample
from pipelines.shared.specs import SamplingSpec
from pipelines.shared.steps import Context
from pipelines.shared.training import Accounted, PolicyWriter, StepCallback, trainer_arguments

NOISE_STREAM = 1_000_000  # + round; apart from every other use of the seed, PPO's updates included
PROMPT_STREAM, SHUFFLE_STREAM, LABEL_STREAM = 6, 7, 8


@dataclass(frozen=True)
class Round:
    """Sampled and judged pairs, fixed while the policy trains on them. N pairs.

    Attributes:
        sequences: 2 N; n and N + n are the first and second completion of pair n.
        ref_logprobs: (2 N,) nats per sequence, at temperature 1: the policy that DPO trains is the
            model as it is, whatever temperature chose its samples.
        scores: (2 N,), the judge's.
        preference: (N,) label: the probability that the first is the better one, or 0 or 1.
    """

    sequences: Sequences
    ref_logprobs: torch.Tensor
    scores: torch.Tensor
    preference: torch.Tensor

    def minibatch(self, pairs: Sequence[int]) -> dict[str, Any]:
        """The chosen pairs as the trainer's inputs, first completions before second ones."""
        first = torch.tensor(pairs)
        both = torch.cat([first, first + len(self.preference)])
        chosen = self.sequences.rows(both)
        return {
            **vars(chosen),
            "ref_logprobs": self.ref_logprobs[both],
            "scores": self.scores[both],
            "preference": self.preference[first],
        }


class OnlineDPOTrainer(Accounted, Trainer):
    """Online DPO on the HF Trainer base of every other arm; one process.

    The data loader yields which pairs of which round an optimiser step takes; a round is sampled
    when the first of its steps comes, from the policy as it is then.

    Args:
        model: the policy, as it starts; the reference is a frozen copy of it.
        judge: scores sequences; sigmoid of a difference is a preference probability.
        prompts: token ids, none empty; shuffled anew each time they are exhausted.
        args: with the arguments of `online_arguments`.
        max_new_tokens: sampled at most, EOS included.
        temperature: of the sampling alone.

    Raises:
        ValueError: a score is not finite.
    """

    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: PreTrainedModel,
        judge: Judge,
        prompts: Sequence[Sequence[int]],
        spec: OnlineDPOSpec,
        args: TrainingArguments,
        processing_class: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        callbacks: list[TrainerCallback] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(
            model=model, args=args, processing_class=processing_class, callbacks=callbacks
        )
        self.policy = model
        self.reference: Any = deepcopy(model).eval().requires_grad_(False)
        self.judge, self.prompts, self.spec = judge, prompts, spec
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.account(ledger or Ledger())
        self.ledger.network("reference", self.reference)
        self._order = prompt_order(len(prompts), spec.rounds * spec.pairs, args.seed)
        self._round: tuple[int, Round] | None = None
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # sum, count

    # Sampling and judging

    def get_train_dataloader(self) -> DataLoader:
        schedule: Any = minibatches(self.spec, self.args.seed)
        return DataLoader(schedule, batch_size=1, collate_fn=itemgetter(0))

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self._round is None or self._round[0] != inputs["round"]:
            self._round = inputs["round"], self.new_round(inputs["round"])
        batch = self._round[1].minibatch(inputs["pairs"])
        return super().training_step(model, batch, *args, **kwargs)

    @torch.no_grad()
    def new_round(self, number: int) -> Round:
        """Sample pairs from the policy as it is now, and have them judged."""
        start = number * self.spec.pairs
        chosen = self._order[start : start + self.spec.pairs]
        self.policy.eval()  # the Trainer's step sets it to training again
        with self.ledger.phase("sampling"):
            drawn = self._sample(number, [self.prompts[index] for index in chosen] * 2)
        sequences = drawn.sequences
        with self.ledger.phase("scoring"):
            ref_logprobs = completion_logprobs(self.reference, sequences).sum(-1)
            self.ledger.add(flops=self.forward_flops(vars(sequences)))
            scores = self.judge(sequences)
            check_scores(scores, sequences, self.processing_class)
        drawing = np.random.default_rng([self.args.seed, LABEL_STREAM, number])
        preference = labels(scores, drawing if self.spec.labels == "drawn" else None)
        made = Round(sequences, ref_logprobs, scores, preference)
        self._describe(made, drawn)
        return made

    def _sample(self, number: int, prompts: list[Sequence[int]]) -> Samples:
        tokenizer = self.processing_class
        drawn = sample(
            self.policy,
            prompts,
            keyed_uniforms(
                self.args.seed, NOISE_STREAM + number, range(len(prompts)), self.max_new_tokens
            ),
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            temperature=self.temperature,
        )
        if number == 0:
            tolerance = LOW_PRECISION_TOLERANCE if self.args.bf16 else SAMPLER_TOLERANCE
            check_sampler(self.policy, drawn, self.temperature, self.ledger, tolerance)
        self.ledger.add(
            flops=self.cost.decode(drawn.sequences.prompt_width, drawn.rows),
            tokens_generated=drawn.sequences.tokens,
        )
        return drawn

    # Training

    def forward_flops(self, inputs: dict[str, Any]) -> int:
        tokens = int(inputs["attention_mask"][:, inputs["prompt_width"] :].sum())
        sequences, length = inputs["input_ids"].shape
        return self.cost.forward(sequences, length, tokens)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """DPO's loss of a minibatch, mean over its pairs (nats)."""
        sequences = Sequences(inputs["input_ids"], inputs["attention_mask"], inputs["prompt_width"])
        logprobs = completion_logprobs(model, sequences).sum(-1)
        rewards = implicit_reward(logprobs, inputs["ref_logprobs"], self.spec.beta)
        first, second = rewards.chunk(2)
        self._compare((first - second).detach(), inputs["scores"])
        return dpo_loss(first, second, inputs["preference"]).mean()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # the ledger counts them

    # What is logged, one row a round

    def _describe(self, made: Round, drawn: Samples) -> None:
        """What a round's samples are like.

        objective/kl is k1 of the distribution sampled from (temperature included) to the reference.
        """
        mask = made.sequences.completion_mask
        self._add("objective/score", made.scores)
        self._add("objective/kl", drawn.logprobs.sum(-1) - made.ref_logprobs)
        self._add("pairs/equal", equal_pairs(made.sequences).float())
        self._add("completions/length", mask.sum(-1).float())
        self._add("completions/eos_rate", drawn.finished.float())

    def _compare(self, margin: torch.Tensor, scores: torch.Tensor) -> None:
        """Implicit rewards against the judge, over the pairs that it does not call equal."""
        first, second = scores.chunk(2)
        decided = first != second
        towards = (margin * (first - second).sign())[decided]
        self._add("rewards/margins", towards)
        self._add("rewards/accuracies", (towards > 0).float())

    def _add(self, name: str, values: torch.Tensor) -> None:
        held = self._sums[name]
        held[0] += float(values.sum())
        held[1] += len(values)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last row."""
        means = {name: total / count for name, (total, count) in self._sums.items() if count}
        self._sums.clear()
        super().log({**logs, **means}, start_time)


def prompt_order(prompts: int, needed: int, seed: int) -> np.ndarray:
    """Which prompt each pair of all rounds is of: shuffled passes over all prompts."""
    generator = np.random.default_rng([seed, PROMPT_STREAM])
    passes = -(-needed // prompts)
    return np.concatenate([generator.permutation(prompts) for _ in range(passes)])[:needed]


def minibatches(spec: OnlineDPOSpec, seed: int) -> list[dict[str, Any]]:
    """The pairs of each optimiser step: every pair of a round once an epoch, shuffled."""
    generator = np.random.default_rng([seed, SHUFFLE_STREAM])
    return [
        {"round": number, "pairs": part.tolist()}
        for number in range(spec.rounds)
        for _ in range(spec.epochs)
        for part in generator.permutation(spec.pairs).reshape(-1, spec.batch_size)
    ]


def labels(scores: torch.Tensor, drawing: np.random.Generator | None = None) -> torch.Tensor:
    """Labels of pairs from their 2 N scores (Bradley and Terry 1952): (N,) fp32.

    p = sigmoid(s - s') that the first is better; or where a generator is given, 1 with that
    probability and else 0.
    """
    first, second = scores.float().chunk(2)
    preference = torch.sigmoid(first - second)
    if drawing is None:
        return preference
    uniforms = torch.from_numpy(drawing.random(len(preference))).to(preference.device)
    return (uniforms < preference).float()


def equal_pairs(sequences: Sequences) -> torch.Tensor:
    """(N,) bool, True where both completions are the same tokens: such a pair teaches nothing."""
    ids, mask = sequences.input_ids.chunk(2), sequences.attention_mask.chunk(2)
    return ((ids[0] == ids[1]) & (mask[0] == mask[1])).all(-1)


def check_scores(
    scores: torch.Tensor, sequences: Sequences, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises ValueError where a score is not finite; the message names the first such sample."""
    wrong = (~torch.isfinite(scores)).nonzero()
    if not len(wrong):
        return
    row = int(wrong[0])
    prompt, completion = (ids[row] for ids in sequences.unpacked())
    raise ValueError(
        f"the judge gave {float(scores[row])} for the prompt {tokenizer.decode(prompt)[:60]!r} and "
        f"the completion {tokenizer.decode(completion)[:60]!r}: a score must be finite"
    )


def online_arguments(spec: OnlineDPOSpec) -> dict[str, Any]:
    """`spec` as arguments of TrainingArguments; a row is logged for each round."""
    steps = spec.epochs * spec.pairs // spec.batch_size
    return {
        "max_steps": spec.rounds * steps,
        "logging_steps": steps,
        "per_device_train_batch_size": spec.batch_size,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "max_grad_norm": spec.max_grad_norm,
        "remove_unused_columns": False,
    }


def train(context: Context) -> None:
    """Step: one online-DPO run on the pairs' prompts. Writes checkpoint/, snapshots/,
    policies.json."""
    sampling: SamplingSpec = context.spec("sampling")
    train_from(
        context,
        context.inputs["sft"] / "checkpoint",
        judge_of(context),
        training_prompts(context),
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
    )


def train_from(
    context: Context,
    checkpoint: Path,
    judge: Judge,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> None:
    """Train the policy of a checkpoint as the recipe says, and write the step's policies."""
    spec: OnlineDPOSpec = context.spec("online_dpo")
    tokenizer, policy = load_tokenizer(checkpoint), adapted(context, load_policy(checkpoint))
    writer = PolicyWriter(context, policy, tokenizer)
    trainer = OnlineDPOTrainer(
        policy,
        judge,
        prompts,
        spec,
        TrainingArguments(**trainer_arguments(context), **online_arguments(spec)),
        tokenizer,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        callbacks=[StepCallback(context, writer, spec.snapshots)],
        ledger=context.ledger,
    )
    with context.ledger.phase("train"):
        trainer.train()
    writer.finish()
