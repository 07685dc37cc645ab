"""Stage 3 of RLHF: PPO with a per-token KL penalty, on the HF Trainer base that DPO also runs on.

One optimiser step of the Trainer is one minibatch. The data loader yields each update's prompts
once per minibatch; the first time they are rolled out and cut into minibatches, and every step
takes one.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from pipelines.rlhf.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_penalised_rewards,
    masked_mean,
    masked_var,
    whiten,
)
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import (
    Sequences,
    completion_logits,
    completion_logprobs,
    gather_logprobs,
)
from pipelines.shared.models import rewards, token_values
from pipelines.shared.sampling import keyed_uniforms, sample

RATIO_TOLERANCE = 1e-4  # fp32; the sampler and the trainer must agree on the log-probs
NOISE_STREAM = 1_000  # + update; keeps PPO's sampling noise apart from every other use of the seed
SHUFFLE_STREAM = 4

RewardFunction = Callable[[Sequences], torch.Tensor]


@dataclass
class PPOConfig(TrainingArguments):
    """Settings of PPO beside HF's own (learning_rate, max_grad_norm, seed, ...)."""

    kl_coef: float = field(
        default=0.05, metadata={"help": "Coefficient of the per-token KL penalty."}
    )
    updates: int = field(default=60, metadata={"help": "Rollout phases."})
    rollouts: int = field(default=128, metadata={"help": "Completions per rollout phase."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(default=4, metadata={"help": "Optimiser steps per pass."})
    max_completion_length: int = field(default=20, metadata={"help": "Tokens sampled at most."})
    temperature: float = field(default=1.0, metadata={"help": "Of rollout, reference and update."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the policy's ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})

    def __post_init__(self) -> None:
        if self.rollouts % self.num_mini_batches:
            raise ValueError("rollouts must be a multiple of num_mini_batches")
        if self.gradient_accumulation_steps != 1:
            raise ValueError("PPOTrainer takes whole minibatches: set num_mini_batches instead")
        steps = self.updates * self.num_ppo_epochs * self.num_mini_batches
        if self.max_steps not in (-1, steps):
            raise ValueError("the length of training is `updates`: max_steps follows from it")
        if self.bf16 or self.fp16 or self.gradient_checkpointing or self.activation_checkpointing:
            raise ValueError("this version of PPOTrainer trains in fp32 without checkpointing")
        self.max_steps = steps
        self.logging_steps = self.num_ppo_epochs * self.num_mini_batches  # one row an update
        self.remove_unused_columns = False
        super().__post_init__()


@dataclass(frozen=True)
class Rollout:
    """Sampled sequences with everything that the update needs; tensors are (B, C)."""

    sequences: Sequences
    logprobs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    first: bool = False  # the first minibatch of its update, where the ratio must be 1

    def rows(self, index: torch.Tensor, first: bool) -> "Rollout":
        """The chosen sequences as a minibatch."""
        return Rollout(
            sequences=self.sequences.rows(index),
            logprobs=self.logprobs[index],
            values=self.values[index],
            advantages=self.advantages[index],
            returns=self.returns[index],
            first=first,
        )


class PolicyAndValue(torch.nn.Module):
    """Policy and critic as one module, so that one optimiser and one wrapper hold both."""

    def __init__(self, policy: PreTrainedModel, value: PreTrainedModel) -> None:
        super().__init__()
        self.policy, self.value = policy, value

    def forward(
        self, sequences: Sequences, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the completion tokens (B, C, V) and the values before each of them (B, C)."""
        return completion_logits(self.policy, sequences, temperature), values_before(
            self.value, sequences
        )


def values_before(model: PreTrainedModel, sequences: Sequences) -> torch.Tensor:
    """The value of the state before each completion token: (B, C)."""
    return token_values(model, sequences)[:, sequences.prompt_width - 1 : -1]


class PromptStream(Sampler[list[int]]):
    """Batches of prompt indices, each repeated for every minibatch of its update.

    Prompts are reshuffled each time they are exhausted; the order depends on the seed alone.
    """

    def __init__(self, prompts: int, args: PPOConfig) -> None:
        self.prompts, self.args = prompts, args
        self.repeats = args.num_ppo_epochs * args.num_mini_batches

    def __len__(self) -> int:
        return self.args.max_steps

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = []
        generator = torch.Generator().manual_seed(self.args.seed)
        for _ in range(self.args.updates):
            while len(order) < self.args.rollouts:
                order += torch.randperm(self.prompts, generator=generator).tolist()
            batch, order = order[: self.args.rollouts], order[self.args.rollouts :]
            for _ in range(self.repeats):
                yield batch


class PPOTrainer(Trainer):
    """PPO (Schulman et al. 2017) for language models (Stiennon et al. 2020, Huang et al. 2024).

    Args:
        model: the policy; a causal LM. Policy and critic are trained in evaluation mode: with
            dropout the ratio of the first minibatch would not be 1.
        ref_model: the reference of the KL penalty, frozen.
        reward: a reward model (sequence classifier with one output), or a function from padded
            sequences to a score each, (B,).
        value_model: the critic, a sequence classifier with one output; usually the reward model's
            copy.
        train_dataset: column prompt_ids (token ids).

    Raises:
        ValueError: PAD is EOS; no prompts; several processes; a resumed run; a reward that is not
            finite or not one per sequence.
        RuntimeError: the first minibatch's ratio is not 1.
    """

    args: PPOConfig
    train_dataset: Any
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel,
        reward: PreTrainedModel | RewardFunction,
        value_model: PreTrainedModel,
        args: PPOConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        if processing_class.pad_token_id in (None, processing_class.eos_token_id):
            raise ValueError("the tokenizer's PAD must be set and differ from EOS")
        if len(train_dataset) == 0:
            raise ValueError("there are no prompts to roll out")
        super().__init__(
            model=PolicyAndValue(model, value_model),
            args=args,
            data_collator=lambda rows: {"prompt_ids": [list(row["prompt_ids"]) for row in rows]},
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = False
        self.ref_model = ref_model.to(self.accelerator.device).eval()
        self.reward: RewardFunction
        self._reward_cost: ModelCost | None = None
        if self.accelerator.num_processes > 1 or args.n_gpu > 1:
            raise ValueError("this version of PPOTrainer runs in one process on one device")
        if isinstance(reward, torch.nn.Module):
            network: Any = reward.to(self.accelerator.device).eval()
            self.reward, self._reward_cost = partial(rewards, network), ModelCost.of(network)
        else:
            self.reward = reward
        self.ledger = ledger or Ledger()
        self._policy_cost, self._value_cost = ModelCost.of(model), ModelCost.of(value_model)
        self._update = 0
        self._minibatches: deque[Rollout] = deque()
        self._metrics: dict[str, list[float]] = defaultdict(list)

    def get_train_dataloader(self) -> DataLoader:
        stream = PromptStream(len(self.train_dataset), self.args)
        loader = DataLoader(self.train_dataset, batch_sampler=stream, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Rollout:  # type: ignore[override]
        """The next minibatch; the first of an update rolls the prompts out."""
        model: Any = self.model
        model.eval()  # the Trainer has just turned dropout on
        if not self._minibatches:
            with self.ledger.phase("rollout"):
                self._minibatches.extend(self._split(self._roll_out(inputs["prompt_ids"])))
            self._update += 1
        return self._minibatches.popleft()

    @torch.no_grad()
    def _roll_out(self, prompts: Sequence[Sequence[int]]) -> Rollout:
        """Sample, score, and estimate advantages: everything that is fixed during the update."""
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        first = self._update * args.rollouts
        samples = sample(
            model.policy,
            prompts,
            keyed_uniforms(
                args.seed,
                NOISE_STREAM + self._update,
                range(first, first + len(prompts)),
                args.max_completion_length,
            ),
            eos_id=self.processing_class.eos_token_id,
            pad_id=self.processing_class.pad_token_id,
            temperature=args.temperature,
        )
        sequences, mask = samples.sequences, samples.sequences.completion_mask
        ref_logprobs = completion_logprobs(self.ref_model, sequences, args.temperature)
        values = values_before(model.value, sequences)
        scores = check_scores(self.reward(sequences), len(prompts))
        token_rewards = kl_penalised_rewards(
            scores, samples.logprobs, ref_logprobs, mask, args.kl_coef
        )
        advantages, returns = gae(token_rewards, values, mask, args.gamma, args.lam)
        self._book_rollout(samples.sequences, samples.logprobs.shape[1])
        self._log_rollout(samples, ref_logprobs, scores, token_rewards, values, returns)
        return Rollout(sequences, samples.logprobs, values, whiten(advantages, mask), returns)

    def _split(self, rollout: Rollout) -> Iterator[Rollout]:
        """Minibatches of every PPO epoch, reshuffled each epoch."""
        generator = np.random.default_rng([self.args.seed, SHUFFLE_STREAM, self._update])
        for epoch in range(self.args.num_ppo_epochs):
            order = torch.from_numpy(generator.permutation(len(rollout.logprobs)))
            for part, index in enumerate(order.chunk(self.args.num_mini_batches)):
                yield rollout.rows(index, first=epoch == part == 0)

    def compute_loss(  # type: ignore[override]
        self,
        model: Any,
        inputs: Rollout,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Clipped surrogate + vf_coef x clipped value loss of one minibatch."""
        args, mask = self.args, inputs.sequences.completion_mask
        logits, values = model(inputs.sequences, args.temperature)
        logprobs = gather_logprobs(logits, inputs.sequences.completion_ids)
        policy_loss, ratio = clipped_policy_loss(
            logprobs, inputs.logprobs, inputs.advantages, mask, args.cliprange
        )
        if inputs.first:
            check_ratio(ratio)
        value_loss = clipped_value_loss(
            values, inputs.values, inputs.returns, mask, args.cliprange_value
        )
        batch, length = inputs.sequences.input_ids.shape
        passes = self._policy_cost.forward(batch, length, mask.numel() + batch)
        passes += self._value_cost.forward(batch, length)
        self.ledger.add(flops=3 * passes, tokens_trained=int(inputs.sequences.attention_mask.sum()))
        self._log_minibatch(policy_loss, value_loss, ratio, inputs.logprobs, logprobs, mask)
        return policy_loss + args.vf_coef * value_loss

    def _book_rollout(self, sequences: Sequences, steps: int) -> None:
        """Cost of sampling and of the reference's, critic's and reward model's forward passes."""
        (batch, length), width = sequences.input_ids.shape, sequences.prompt_width
        flops = self._policy_cost.decode(batch, width, steps)
        flops += self._policy_cost.forward(batch, length, batch * (steps + 1))
        flops += self._value_cost.forward(batch, length)
        if self._reward_cost is not None:
            flops += self._reward_cost.forward(batch, length)
        self.ledger.add(flops=flops, tokens_generated=int(sequences.completion_mask.sum()))

    def _log_rollout(
        self,
        samples: Any,
        ref_logprobs: torch.Tensor,
        scores: torch.Tensor,
        token_rewards: torch.Tensor,
        values: torch.Tensor,
        returns: torch.Tensor,
    ) -> None:
        mask = samples.sequences.completion_mask
        kl = ((samples.logprobs - ref_logprobs) * mask).sum(-1)
        error = masked_var(returns - values * mask, mask) / masked_var(returns, mask)
        for name, value in {
            "objective/kl": kl.mean(),
            "objective/score": scores.mean(),
            "objective/score_std": scores.std(),
            "objective/return": token_rewards.sum(-1).mean(),
            "objective/entropy": -samples.logprobs.sum(-1).mean(),
            "value/explained_variance": 1 - error,
            "length": mask.sum(-1).float().mean(),
            "eos_rate": samples.finished.float().mean(),
        }.items():
            self._metrics[name].append(float(value))

    @torch.no_grad()
    def _log_minibatch(
        self,
        policy_loss: torch.Tensor,
        value_loss: torch.Tensor,
        ratio: torch.Tensor,
        old_logprobs: torch.Tensor,
        logprobs: torch.Tensor,
        mask: torch.Tensor,
    ) -> None:
        log_ratio = (logprobs - old_logprobs) * mask
        for name, value in {
            "policy/loss": policy_loss,
            "value/loss": value_loss,
            "policy/approx_kl": masked_mean(ratio - 1 - log_ratio, mask),
            "policy/clip_fraction": masked_mean(
                ((ratio - 1).abs() > self.args.cliprange).float(), mask
            ),
            "policy/ratio_variance": masked_var(ratio, mask),
        }.items():
            self._metrics[name].append(float(value))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train for `updates` updates, from the start."""
        if resume_from_checkpoint:
            raise ValueError("this version of PPOTrainer cannot resume: train again from the start")
        return super().train(None, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the policy as a Transformers folder, with the critic in value/ beside it."""
        folder = Path(output_dir or str(self.args.output_dir))
        model = self.accelerator.unwrap_model(self.model)
        model.policy.save_pretrained(folder)
        model.value.save_pretrained(folder / "value")
        self.processing_class.save_pretrained(folder)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log, as TRL's trainers do."""
        averages = {name: sum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        super().log({**logs, **averages}, start_time)


def check_scores(scores: torch.Tensor, sequences: int) -> torch.Tensor:
    """`scores` if there is one finite score a sequence.

    Raises:
        ValueError: naming the first sample that is wrong.
    """
    if scores.shape != (sequences,):
        raise ValueError(f"the reward gave shape {tuple(scores.shape)} for {sequences} sequences")
    wrong = (~torch.isfinite(scores)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"the reward of sample {row} is {float(scores[row])}: it must be finite")
    return scores.float()


def check_ratio(ratio: torch.Tensor) -> None:
    """Before the first optimiser step of an update, policy and sampler are the same model.

    Raises:
        RuntimeError: they disagree on the log-probs.
    """
    worst = float((ratio.detach() - 1).abs().max())
    if not worst < RATIO_TOLERANCE:
        raise RuntimeError(
            f"the first minibatch's ratio is off 1 by {worst:.2e} (tolerance {RATIO_TOLERANCE}): "
            "the policy's log-probs differ between rollout and update; likely dropout, another "
            "temperature, position ids that count padding, or lower precision in one of them"
        )
