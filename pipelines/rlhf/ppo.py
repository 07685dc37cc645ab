"""Stage 3 of RLHF: PPO with a KL penalty, on the HF Trainer base that DPO also runs on.

One optimiser step of the Trainer is one minibatch. The data loader yields each update's prompts
once per micro-batch; the first time they are rolled out and cut into micro-batches, and every
call of `compute_loss` takes one. README.md beside this file explains every detail and metric.
"""

import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME

from pipelines.rlhf.actor_critic import ActorCritic, load_weights
from pipelines.rlhf.checks import check_adapter, check_ratio, check_reference, check_runtime
from pipelines.rlhf.completions_log import CompletionsLog
from pipelines.rlhf.losses import (
    adapted_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_penalised_rewards,
    masked_var,
    scores_without_eos,
    sequence_kl_loss,
    whiten,
)
from pipelines.rlhf.networks import assemble
from pipelines.rlhf.ppo_config import PPOConfig
from pipelines.rlhf.ppo_metrics import Costs, Metrics
from pipelines.rlhf.prompts import PromptStream, encode_prompts
from pipelines.rlhf.rollout import Rollout, RunningMoments, Sampled, gathered, joined
from pipelines.rlhf.scoring import RewardFunction, Scorer
from pipelines.shared.ledger import Ledger
from pipelines.shared.logprobs import completion_logprobs
from pipelines.shared.models import disable_dropout
from pipelines.shared.sampling import keyed_uniforms, sample

# One step of bf16 at a logit between 16 and 32 is 0.125: two of them are a ratio of 1.28.
RATIO_TOLERANCE = {"fp32": 1e-4, "bf16": 0.3}
NOISE_STREAM = 1_000  # + update; keeps PPO's sampling noise apart from every other use of the seed
SHUFFLE_STREAM = 4
PER_PROCESS = 100_003  # apart from keyed noise: processes' seeds, as in Huang et al. 2024
LEAST_SCALE = 1e-2
STATE = "ppo_state.json"
REFERENCE = "reference"


class PPOTrainer(Trainer):
    """PPO (Schulman et al. 2017) for language models (Stiennon et al. 2020, Huang et al. 2024).

    Args:
        model: the policy; a causal LM, or the name of one.
        ref_model: the reference of the KL penalty; default: the policy as it is now, which with
            PEFT is the policy with its adapter disabled.
        args: PPOConfig.
        train_dataset: column prompt, text or messages, as in TRL; or prompt_ids, token ids.
        processing_class: the tokenizer; default: the model's.
        reward_model: a sequence classifier with one output that shares the policy's vocabulary, or
            the name of one.
        reward_funcs: function(s) called as in TRL's trainers with prompts=, completions=,
            completion_ids= and the data set's other columns, that return a number a completion.
        value_model: the critic, a sequence classifier with one output; default: a copy of the
            reward model, or else of the policy's trunk with a head of zeros.
        reward_processing_class: the reward model's tokenizer, to be held against the policy's.
        peft_config: train an adapter on the policy and nothing else of it.
        ledger: where the cost is booked.

    Raises:
        ValueError: what is wrong with a model, tokenizer or prompt, before training; a score that
            is missing or not finite, when it comes.
        RatioError: the first minibatch's ratio is not 1.
    """

    args: PPOConfig
    train_dataset: Any
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: PreTrainedModel | str,
        ref_model: PreTrainedModel | None = None,
        args: PPOConfig | None = None,
        train_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        reward_model: PreTrainedModel | str | None = None,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None = None,
        value_model: PreTrainedModel | None = None,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        ledger: Ledger | None = None,
    ) -> None:
        args = args or PPOConfig("ppo")
        cast = assemble(
            model,
            ref_model,
            reward_model,
            value_model,
            args,
            processing_class,
            reward_processing_class,
            peft_config,
        )
        if train_dataset is None:
            raise ValueError("train_dataset is missing: PPO needs prompts to roll out")
        self._prompts = encode_prompts(train_dataset, cast.tokenizer, args, cast.context)
        if hasattr(cast.policy, "peft_config"):
            check_adapter(cast.policy, self._prompts[0], own_reference=cast.reference is not None)
        super().__init__(
            model=ActorCritic(cast.policy, cast.critic),
            args=args,
            train_dataset=train_dataset,
            processing_class=cast.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        check_runtime(self)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole minibatch's tokens
        for network in cast.frozen():
            network.to(self.accelerator.device).eval().requires_grad_(False)
        if args.disable_dropout:
            for network in (*cast.frozen(), self._networks):
                disable_dropout(network)
        self.ref_model: Any = cast.reference
        functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs or [])
        self.scorer = Scorer(
            cast.judge, functions, args.reward_weights, cast.tokenizer, args.reward_reads_prompt
        )
        self.low_precision = args.bf16 or cast.policy.dtype == torch.bfloat16
        self.ratio_tolerance = (
            args.ratio_tolerance or RATIO_TOLERANCE["bf16" if self.low_precision else "fp32"]
        )
        self.kl_coef = args.kl_coef
        self.value_moments = RunningMoments()
        self.costs = Costs.of(cast, ledger or Ledger(), self.low_precision)
        self.metrics = Metrics(args)
        self._batches: deque[Rollout] = deque()
        self._ratios = torch.zeros(2, device=self.accelerator.device)  # sum, count of a minibatch
        self._skipping = False
        self._samples = CompletionsLog(self) if args.log_completions else None
        self._boundary = UpdateBoundary(self)
        self.add_callback(self._boundary)

    @property
    def ledger(self) -> Ledger:
        """Where the cost is booked."""
        return self.costs.ledger

    # The loop

    def get_train_dataloader(self) -> DataLoader:
        stream = PromptStream(len(self._prompts), self.args)
        indices: Any = range(len(self._prompts))
        return DataLoader(indices, batch_sampler=stream, collate_fn=lambda rows: {"prompts": rows})

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Rollout:  # type: ignore[override]
        """The next micro-batch; the first of an update rolls the prompts out."""
        if not self._batches:
            self._skipping = False
            with self.ledger.phase("rollout"):
                self._networks.eval()
                rollout = self._roll_out(inputs["prompts"])
                self._networks.train()
            self._batches.extend(self._split(rollout))
        return self._batches.popleft()

    @torch.no_grad()
    def _roll_out(self, prompts: Sequence[int]) -> Rollout:
        """Sample, score, and estimate advantages: everything that is fixed during the update.

        Args:
            prompts: their numbers in train_dataset, for all processes together.
        """
        args, update = self.args, self.state.global_step // self.args.steps_per_update
        if args.ema_reference is not None and update > 0:
            self._move_reference(args.ema_reference)
        share = len(prompts) // self.accelerator.num_processes
        start = share * self.accelerator.process_index
        own = range(start, start + share)
        size, pad_id = args.rollout_batch_size or share, self.processing_class.pad_token_id
        with self.accelerator.autocast():
            parts = [
                self._sample(update, own[start : start + size], prompts)
                for start in range(0, share, size)
            ]
        everything = gathered(joined(parts, pad_id), self.accelerator.gather, pad_id)
        rollout = self._advantages(update, everything)
        if self._samples is not None:
            self._samples.take(everything, prompts)
        return rollout

    def _sample(self, update: int, places: range, prompts: Sequence[int]) -> Sampled:
        """Sample and score the prompts at some places of this update's list."""
        args, model, tokenizer = self.args, self._networks, self.processing_class
        rank = self.accelerator.process_index
        seed, before = args.seed, update * args.rollouts
        if not args.keyed_noise:
            share = args.rollouts // self.accelerator.num_processes
            seed, before = seed + PER_PROCESS * rank, -rank * share
        rows = range(before + places.start, before + places.stop)
        chosen = [prompts[place] for place in places]
        drawn = sample(
            model.policy,
            [self._prompts[index] for index in chosen],
            keyed_uniforms(seed, NOISE_STREAM + update, rows, args.max_completion_length),
            eos_id=tokenizer.eos_token_id if args.stop_at_eos else None,
            pad_id=tokenizer.pad_token_id,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            skip_padding=args.skip_padding,
        )
        sequences, logprobs = drawn.sequences, drawn.logprobs
        if self.low_precision:  # step by step and at once, bf16 gives other log-probs
            logprobs = completion_logprobs(model.policy, sequences, args.temperature)
        if self.ref_model is not None:
            ref_logprobs = completion_logprobs(self.ref_model, sequences, args.temperature)
        else:
            with model.without_adapter() as reference:
                ref_logprobs = completion_logprobs(reference, sequences, args.temperature)
        values = self.value_moments.mean + self.value_moments.std * model.values(sequences)
        scores = self.scorer(sequences, [self.train_dataset[i] for i in chosen], chosen)
        scores = scores_without_eos(
            scores, drawn.finished, args.missing_eos_score, args.missing_eos_penalty
        )
        self.costs.rollout(drawn)
        return Sampled(sequences, logprobs, ref_logprobs, values, scores, drawn.finished)

    def _advantages(self, update: int, sampled: Sampled) -> Rollout:
        """KL-penalised rewards, GAE and whitening, over the rollout of all processes."""
        args, mask = self.args, sampled.sequences.completion_mask
        lengths, in_reward = mask.sum(-1), args.kl_in == "reward"
        end, value_mask, values = self._score_columns(lengths), mask, sampled.values[:, :-1]
        logprobs, ref_logprobs = sampled.logprobs, sampled.ref_logprobs
        padded = [mask, logprobs, ref_logprobs]
        if args.value_after_end:  # one more column, for the state after an early end
            early = lengths < args.max_completion_length
            end, values = end + early.long(), sampled.values
            padded = [torch.nn.functional.pad(part, (0, 1)) for part in padded]
            value_mask = padded[0].scatter(1, end[:, None], True)
        rewards = kl_penalised_rewards(
            sampled.scores,
            padded[1],
            padded[2],
            padded[0],
            self.kl_coef if in_reward else 0.0,
            end=end,
            clamp=args.clamp_kl,
        )
        scale = 1.0  # what the score was divided by: the KL in the loss must be, too
        if args.whiten_rewards:
            scale *= float((masked_var(rewards, value_mask) + 1e-8).sqrt())
            rewards = whiten(rewards, value_mask, shift_mean=False)
        advantages, returns = gae(rewards, values, value_mask, args.gamma, args.lam)
        advantages = advantages[:, : mask.shape[1]] * mask
        if args.whiten_advantages:
            scale *= float((masked_var(advantages, mask) + 1e-8).sqrt())
            advantages = whiten(advantages, mask)
        processes = self.accelerator.num_processes
        self.metrics.rollout(sampled, values, returns, value_mask, self.kl_coef, processes)
        # Scores that are all alike would make the KL's weight as large as one likes.
        kl_weight = 0.0 if in_reward else self.kl_coef / max(scale, LEAST_SCALE)
        old = self.value_moments.mean, self.value_moments.std
        if args.normalise_values:
            self.value_moments.add(returns, value_mask)
        self._adapt_kl(sampled.kl)
        return Rollout(
            sampled.sequences,
            logprobs,
            ref_logprobs,
            rewards,
            (values - old[0]) / old[1],
            advantages,
            (returns - self.value_moments.mean) / self.value_moments.std,
            value_mask,
            sampled.scores,
            kl_weight,
            update,
        )

    def _score_columns(self, lengths: torch.Tensor) -> torch.Tensor:
        """The column of each completion that gets its score: its last token's."""
        return lengths - 1

    def _adapt_kl(self, kl: torch.Tensor) -> None:
        """Move the coefficient that the next rollout will use, where control is adaptive."""
        if self.args.kl_control == "adaptive":
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, float(kl.mean()), self.args.kl_target, self.args.kl_horizon, len(kl)
            )

    def _split(self, rollout: Rollout) -> Iterator[Rollout]:
        """This process's micro-batches of every PPO epoch, reshuffled each epoch."""
        args, processes = self.args, self.accelerator.num_processes
        generator = np.random.default_rng([args.seed, SHUFFLE_STREAM, rollout.update])
        order = torch.from_numpy(generator.permutation(args.rollouts))
        for epoch in range(args.num_ppo_epochs):
            if epoch and args.reshuffle_minibatches:
                order = torch.from_numpy(generator.permutation(args.rollouts))
            for part, index in enumerate(order.chunk(args.num_mini_batches)):
                minibatch = rollout.minibatch(index, first=epoch == part == 0)
                for micro in torch.arange(len(index)).chunk(args.gradient_accumulation_steps):
                    yield minibatch.rows(micro.chunk(processes)[self.accelerator.process_index])

    def compute_loss(  # type: ignore[override]
        self,
        model: Any,
        inputs: Rollout,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Clipped surrogate + vf_coef x clipped value loss of one micro-batch.

        Each is a sum over its tokens divided by the minibatch's: so micro-batches add up.
        """
        args, mask = self.args, inputs.mask
        logprobs, values = model(inputs.sequences, args.temperature)
        policy_loss, ratio = clipped_policy_loss(
            logprobs, inputs.logprobs, inputs.advantages, mask, args.cliprange, inputs.tokens
        )
        if inputs.first:
            check_ratio(ratio, self.ratio_tolerance)
        value_loss = clipped_value_loss(
            values[:, : inputs.values.shape[1]],
            inputs.values,
            inputs.returns,
            inputs.value_mask,
            args.cliprange_value,
            inputs.states,
        )
        kl_loss = sequence_kl_loss(logprobs, inputs.ref_logprobs, mask, inputs.tokens)
        learning = float(inputs.update >= args.critic_warmup)
        loss = learning * policy_loss + args.vf_coef * value_loss
        if inputs.kl_weight:
            loss = loss + learning * inputs.kl_weight * kl_loss
        self.costs.update(inputs)
        self._ratios += torch.stack([(ratio.detach() * mask).sum(), mask.sum()])
        losses = {"policy/loss": policy_loss, "policy/kl_loss": kl_loss, "value/loss": value_loss}
        self.metrics.batch(inputs, losses, ratio, values)
        # Processes average their gradients: their parts of the loss must add up instead.
        return loss * self.accelerator.num_processes

    @property
    def _networks(self) -> ActorCritic:
        networks: Any = self.model
        return self.accelerator.unwrap_model(networks)

    def _move_reference(self, decay: float) -> None:
        for old, new in zip(
            self.ref_model.parameters(), self._networks.policy.parameters(), strict=True
        ):
            old.lerp_(new.to(old.dtype), 1 - decay)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over the update, of all processes."""
        if self.state.global_step % self.args.steps_per_update == 0:
            logs = {**logs, **self.metrics.means(self.accelerator)}
        if self._samples is not None:
            self._samples.write()
        super().log(logs, start_time)

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the policy as a Transformers folder, with the critic and PPO's state inside."""
        if not self.args.should_save:  # every process comes here
            return
        folder = Path(output_dir or str(self.args.output_dir))
        self._networks.save(folder)
        self.processing_class.save_pretrained(folder)
        if self.args.ema_reference is not None:
            self.ref_model.save_pretrained(folder / REFERENCE)
        state = {
            "kl_coef": self.kl_coef,
            "values": dataclasses.asdict(self.value_moments),
            "reference": self._reference_sums(),
            "steps_per_update": self.args.steps_per_update,
        }
        (folder / STATE).write_text(json.dumps(state))
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A rollout belongs to the weights it was made with: save between two, not amid one."""
        if self.state.global_step % self.args.steps_per_update:
            self._boundary.save_pending = True
        else:
            super()._save_checkpoint(model, trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is the policy's, which is what is published."""
        both, self.model = self.model, self._networks.policy
        try:
            super().create_model_card(*args, **kwargs)
        finally:
            self.model = both

    @torch.no_grad()
    def _reference_sums(self) -> list[float]:
        """Sums over the reference's weights and their squares: to know it again."""
        network = self._networks.policy if self.ref_model is None else self.ref_model
        sums = [0.0, 0.0]
        for name, weight in network.named_parameters():
            if "lora_" not in name:  # an adapter is not the reference's
                values = weight.double()
                sums[0] += float(values.sum())
                sums[1] += float((values**2).sum())
        return sums

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read back what `_save` wrote; the Trainer restores optimiser, schedule and step."""
        folder = Path(resume_from_checkpoint)
        if not (folder / STATE).is_file():
            raise ValueError(f"{folder} has no {STATE}: it is not a checkpoint of PPOTrainer")
        state = json.loads((folder / STATE).read_text())
        if state["steps_per_update"] != self.args.steps_per_update:
            raise ValueError(
                f"{folder} was made with {state['steps_per_update']} steps an update, not "
                f"{self.args.steps_per_update}: keep num_ppo_epochs and num_mini_batches"
            )
        self._networks.load(folder)
        if self.args.ema_reference is not None:
            load_weights(self.ref_model, folder / REFERENCE)
        check_reference(state["reference"], self._reference_sums())
        self.kl_coef, self.value_moments = state["kl_coef"], RunningMoments(**state["values"])


class UpdateBoundary(TrainerCallback):
    """Puts checkpoints where nothing is in flight, and stops an update whose ratios run away."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer
        self.save_pending = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing of a run that was stopped amid an update goes into the next."""
        self.save_pending = self.trainer._skipping = False
        self.trainer._batches.clear()
        self.trainer.metrics.clear()
        self.trainer._ratios.zero_()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put a checkpoint that was asked for off until the update's end."""
        wanted = self.save_pending or control.should_save
        at_boundary = state.global_step % args.steps_per_update == 0
        control.should_save, self.save_pending = wanted and at_boundary, wanted and not at_boundary

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the gradients of a minibatch whose mean ratio is too high, and of those after it."""
        trainer, ratios = self.trainer, self.trainer._ratios.clone()
        trainer._ratios.zero_()
        if state.global_step < args.critic_warmup * args.steps_per_update:
            for weight in trainer._networks.policy.parameters():
                weight.grad = None  # not 0: the optimiser shall not touch them at all
        if args.ratio_threshold is None:
            return
        total, count = trainer.accelerator.reduce(ratios, "sum").tolist()
        trainer._skipping |= not total / count <= args.ratio_threshold
        if trainer._skipping:
            kwargs["optimizer"].zero_grad(set_to_none=True)
            trainer.metrics.add({"policy/skipped": 1 / trainer.accelerator.num_processes})
