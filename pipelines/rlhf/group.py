"""RLOO and GRPO on TRL's own trainers, with the project's token ids, sampler and cost ledger.

The advantages, the losses and the loop are TRL's. Replaced are what TRL does by way of text (it
would tokenise the prompts again) and its log-probabilities, which count left padding as positions.

With group size k and rewards r_1..r_k of a prompt's completions:

    RLOO: R_i = r_i - beta log(pi(y_i|x) / ref(y_i|x)), A_i = R_i - mean of the other R_j
    (Ahmadian et al. 2024), loss -min(rho A, clip(rho) A), rho = the sequence's ratio.

    GRPO: A_i = (r_i - mean r) / (std r + 1e-4), loss the mean over tokens of
    -min(rho_t A, clip(rho_t) A) + beta k3_t, k3 = ref/pi - log(ref/pi) - 1 (Shao et al. 2024,
    eq. 3 and 4).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from pipelines.rlhf.checks import check_ratio, check_tokenizer
from pipelines.rlhf.ppo import NOISE_STREAM, RATIO_TOLERANCE
from pipelines.shared.judges import Judge
from pipelines.shared.kernels import with_fast_kernels
from pipelines.shared.ledger import Ledger, ModelCost
from pipelines.shared.logprobs import (
    Sequences,
    blocks,
    gather_logprobs,
    scattered,
    target_logits,
)
from pipelines.shared.sampling import Samples, keyed_uniforms, sample

SAMPLED = "sampled_logprobs"  # TRL shuffles and cuts it along with the rest of a rollout

# TRL's names of what is logged, and PPOTrainer's; TRL's other metrics are dropped. The clip
# fraction is of tokens in GRPO, of completions in RLOO.
LOGGED = {
    "reward": "objective/score",
    "reward_std": "objective/score_std",
    "frac_reward_zero_std": "objective/groups_alike",
    "clip_ratio/region_mean": "policy/clip_fraction",
    "completions/mean_length": "completions/length",
}
OWN = ("objective/kl", "objective/entropy", "completions/eos_rate")


class GroupStream(Sampler[list[int]]):
    """Indices of each update's prompts, `group` times each, once for every optimiser step.

    Prompts are reshuffled each time they are exhausted, so that none is used more than once more
    than another. (TRL's own sampler drops the remainder of each pass, and has nothing to give where
    an update needs more prompts than there are.)
    """

    def __init__(
        self, prompts: int, updates: int, groups: int, group: int, repeats: int, seed: int
    ):
        self.prompts, self.updates, self.groups = prompts, updates, groups
        self.group, self.repeats, self.seed = group, repeats, seed

    def __len__(self) -> int:
        return self.updates * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        for _ in range(self.updates):
            while len(order) < self.groups:
                order += torch.randperm(self.prompts, generator=generator).tolist()
            chosen, order = order[: self.groups], order[self.groups :]
            batch = [index for index in chosen for _ in range(self.group)]
            for _ in range(self.repeats):
                yield batch


class ExactIds:
    """Mixin for TRL's group trainers: token ids as they are, and who scores them is a `Judge`.

    Args:
        model: the policy, loaded from a folder; TRL loads the reference from the same one.
        judge: scores of padded sequences.
        args: RLOOConfig or GRPOConfig, see `group_stage.group_arguments`.
        prompts: token ids, none empty.
        tokenizer: with EOS and PAD.
        ledger: where the cost is booked; what samples under the phase `sampling`.

    Raises:
        ValueError: no prompts, several processes, or a reference that is not the policy as it is
            now; a score that is not finite, when it comes.
        RatioError: an update's first minibatch has another ratio than 1 to what was sampled.
    """

    args: Any
    model: Any
    ref_model: Any
    state: Any
    accelerator: Any
    processing_class: Any
    _step: int
    _metrics: Any

    def __init__(
        self,
        model: PreTrainedModel,
        judge: Judge,
        args: Any,
        prompts: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        callbacks: list[TrainerCallback] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        check_tokenizer(tokenizer)
        if not prompts or not all(prompts):
            raise ValueError("there are no prompts, or an empty one: there is nothing to complete")
        self.prompts, self.judge = [list(ids) for ids in prompts], judge
        self.ledger, self.cost = ledger or Ledger(), ModelCost.of(model)
        self._drawn: Samples | None = None
        self._logprobs: dict[str, torch.Tensor] = {}  # the policy's last, and the reference's
        super().__init__(  # type: ignore[call-arg]
            model=model,
            reward_funcs=self._score,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": self.prompts}),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        if self.accelerator.num_processes > 1:
            raise ValueError("several processes would sample with the same noise: use one")
        if self.ref_model is not None:
            with_fast_kernels(self.ref_model).eval().requires_grad_(False)
            check_same(self.ref_model, model)
            self.ledger.network("reference", self.ref_model)
        self.ledger.network("policy", model, trained=True)

    @property
    def steps_per_update(self) -> int:
        """Optimiser steps between two rollouts."""
        return self.args.steps_per_generation * self.args.num_iterations

    # Prompts

    def get_train_dataloader(self) -> DataLoader:
        stream = GroupStream(
            prompts=len(self.prompts),
            updates=self.args.max_steps // self.steps_per_update,
            groups=self.args.generation_batch_size // self.args.num_generations,
            group=self.args.num_generations,
            repeats=self.steps_per_update,
            seed=self.args.seed,
        )
        rows: Any = [{"prompt": ids, "row": row} for row, ids in enumerate(self.prompts)]
        return DataLoader(rows, batch_sampler=stream, collate_fn=list)

    def _tokenize_prompts(self, prompts: list) -> tuple[list, None, dict]:
        return prompts, None, {}  # they are token ids already; no images

    # Rollout

    @torch.no_grad()
    def _draw(self, prompts: list[list[int]]) -> list[list[int]]:
        """A completion for each prompt, with noise keyed as PPOTrainer's is."""
        update = self.state.global_step // self.steps_per_update
        rows = range(update * len(prompts), (update + 1) * len(prompts))
        length, tokenizer = self.args.max_completion_length, self.processing_class
        with self.ledger.phase("sampling"):
            self.model.eval()
            self._drawn = sample(
                self.model,
                prompts,
                keyed_uniforms(self.args.seed, NOISE_STREAM + update, rows, length),
                eos_id=tokenizer.eos_token_id,
                pad_id=tokenizer.pad_token_id,
                temperature=self.args.temperature,
            )
            self.model.train()  # as it was: TRL takes another mode for evaluation
            sequences = self._drawn.sequences
            self.ledger.add(
                flops=self.cost.decode(sequences.prompt_width, self._drawn.rows),
                tokens_generated=sequences.tokens,
            )
        return self._drawn.completions()

    def _score(self, row: list[int], **columns: Any) -> list[float]:
        """The judge's scores of what was drawn last; a reward function in TRL's sense.

        Args:
            row: numbers of the prompts.
        """
        assert self._drawn is not None
        scores = self.judge(self._drawn.sequences)
        wrong = (~torch.isfinite(scores)).nonzero()
        if len(wrong):
            at = int(wrong[0])
            text = self.processing_class.decode(self._drawn.completions()[at])
            raise ValueError(
                f"the judge gave {float(scores[at])} for prompt {row[at]} and the completion "
                f"{text[:60]!r}: a score must be finite"
            )
        return scores.tolist()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        assert self._drawn is not None
        logprobs = self._drawn.logprobs
        metrics = self._metrics["train"]
        metrics["objective/entropy"].append(float(-logprobs.sum(-1).mean()))
        metrics["completions/eos_rate"].append(float(self._drawn.finished.float().mean()))
        if self.ref_model is not None:
            gap = (logprobs - self._logprobs["reference"]).sum(-1)  # k1, nats per sequence
            metrics["objective/kl"].append(float(gap.mean()))
        return {**output, SAMPLED: logprobs}

    # Update

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **unused: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probs (B, C) of the completions, 0 at padding, and entropies (B, C) if asked for.

        Positions skip the left padding, and the logits are divided by the sampling temperature.
        """
        sequences = Sequences(input_ids, attention_mask, input_ids.shape[1] - logits_to_keep)
        size, rows = batch_size or len(input_ids), range(len(input_ids))
        logprobs, entropies = [], []
        for start in rows[::size]:
            part = sequences.rows(slice(start, start + size))
            logits = target_logits(model, part.model_inputs(), part.targets, self.args.temperature)
            chosen = gather_logprobs(logits, part.input_ids[part.targets])
            logprobs.append(scattered(chosen, part.completion_mask))
            if compute_entropy:
                entropies.append(scattered(entropy(logits), part.completion_mask))
        self._book(sequences)
        joined = torch.cat(logprobs)
        self._logprobs["reference" if model is self.ref_model else "policy"] = joined.detach()
        return joined, torch.cat(entropies) if compute_entropy else None, None

    def _book(self, sequences: Sequences) -> None:
        """A forward pass, and with gradients a backward pass, twice as dear."""
        flops = self.cost.forward(*sequences.shape, sequences.tokens)
        if torch.is_grad_enabled():
            tokens = int(sequences.attention_mask.sum())
            self.ledger.add(flops=3 * flops, tokens_trained=tokens)
        else:
            self.ledger.add(flops=flops)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if self._step % self.steps_per_update == 0:
            ratio = (self._logprobs["policy"] - inputs[SAMPLED]).exp()
            check_ratio(ratio, RATIO_TOLERANCE["bf16" if self.args.bf16 else "fp32"])
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over the update, under PPOTrainer's names."""
        metrics = self._metrics["train"]
        for name in list(metrics):
            values = metrics.pop(name)
            if name in LOGGED or name in OWN:
                logs[LOGGED.get(name, name)] = sum(values) / len(values)
        super().log(logs, start_time)  # type: ignore[misc]


class ExactIdsRLOOTrainer(ExactIds, RLOOTrainer):
    """TRL's RLOOTrainer: its optimum is that of J = E[r] - beta KL, for the KL is in the reward."""

    def _generate_single_turn(self, prompt_ids: list, *unused: Any) -> list[list[int]]:  # type: ignore[override]
        return self._draw(prompt_ids)


class ExactIdsGRPOTrainer(ExactIds, GRPOTrainer):
    """TRL's GRPOTrainer: dividing by the group's std, and k3 in the loss, move its optimum off J's.

    The gradient of k3 on the policy's own samples is not that of the KL (it is that of KL(ref||pi),
    token by token).
    """

    def _generate_single_turn(self, prompt_ids: list, *unused: Any) -> tuple[list[list[int]], None]:  # type: ignore[override]
        return self._draw(prompt_ids), None  # TRL uses the sampler's log-probs with vLLM alone


def check_same(reference: PreTrainedModel, policy: PreTrainedModel) -> None:
    """Raises ValueError unless both have the same weights: TRL loads the reference by name."""
    own = policy.state_dict()
    for name, weight in reference.state_dict().items():
        if name not in own or not torch.equal(weight, own[name].to(weight)):
            raise ValueError(
                f"the reference differs from the policy in {name}: load the policy from the SFT "
                "model's folder, where TRL finds the reference by the name in its config"
            )


@torch.no_grad()
def entropy(logits: torch.Tensor) -> torch.Tensor:
    """(N, V) -> (N,), nats."""
    result = logits.new_empty(len(logits))
    for rows in blocks(logits):
        logp = logits[rows].log_softmax(-1)
        result[rows] = -(logp.exp() * logp).sum(-1)
    return result
