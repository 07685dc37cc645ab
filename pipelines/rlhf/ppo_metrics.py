"""What a PPO run logs and what it costs. README.md explains every metric and its healthy range."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.rlhf.losses import masked_mean, masked_var
from pipelines.rlhf.networks import Cast
from pipelines.rlhf.ppo_config import PPOConfig
from pipelines.rlhf.rollout import Rollout, Sampled
from pipelines.shared.ledger import Ledger, ModelCost, trained_share
from pipelines.shared.logprobs import Sequences
from pipelines.shared.sampling import Samples


class Metrics:
    """Sums of an update's metrics on this process; added up over processes they are its means."""

    def __init__(self, args: PPOConfig) -> None:
        self.args = args
        self._sums: dict[str, Any] = defaultdict(float)

    def add(self, values: Mapping[str, Any]) -> None:
        """Take this process's part of some metrics into account."""
        for name, value in values.items():
            self._sums[name] += value

    def clear(self) -> None:
        self._sums.clear()

    def means(self, accelerator: Any) -> dict[str, float]:
        """The update's means over all processes, and start anew."""
        # One order for all processes: what is added up must be the same quantity.
        names = sorted(self._sums)
        own = [float(self._sums[name]) for name in names]
        sums = torch.tensor(own, device=accelerator.device, dtype=torch.float64)
        self.clear()
        totals = accelerator.reduce(sums, "sum").tolist() if names else []
        return dict(zip(names, totals, strict=True))

    def rollout(
        self,
        sampled: Sampled,
        values: torch.Tensor,
        returns: torch.Tensor,
        value_mask: torch.Tensor,
        kl_coef: float,
        processes: int,
    ) -> None:
        """What describes a rollout, which every process holds as a whole."""
        mask, scores = sampled.sequences.completion_mask, sampled.scores
        kl = sampled.kl
        error = masked_var(returns - values * value_mask, value_mask)
        whole: dict[str, Any] = {
            "objective/kl": kl.mean(),
            "objective/kl_coef": kl_coef,
            "objective/score": scores.mean(),
            "objective/score_std": scores.std(correction=min(1, len(scores) - 1)),
            "objective/return": (scores - kl_coef * kl).mean(),
            "objective/entropy": -(sampled.logprobs * mask).sum(-1).mean(),
            "value/explained_variance": 1 - error / masked_var(returns, value_mask),
            "completions/length": mask.sum(-1).float().mean(),
            "completions/eos_rate": sampled.finished.float().mean(),
        }
        self.add({name: value / processes for name, value in whole.items()})

    @torch.no_grad()
    def batch(
        self,
        inputs: Rollout,
        losses: Mapping[str, torch.Tensor],
        ratio: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """What describes an optimiser step, of which a micro-batch is a part."""
        args, mask, count = self.args, inputs.mask, inputs.tokens
        moved = (values[:, : inputs.values.shape[1]] - inputs.values).abs()
        outside = moved > (args.cliprange_value or float("inf"))
        parts = {
            **losses,
            "policy/approx_kl": masked_mean(ratio - 1 - ratio.log(), mask, count),
            "policy/clip_fraction": masked_mean(
                ((ratio - 1).abs() > args.cliprange).float(), mask, count
            ),
            "policy/ratio_variance": masked_mean((ratio - 1) ** 2, mask, count),
            "value/clip_fraction": masked_mean(outside.float(), inputs.value_mask, inputs.states),
        }
        self.add({name: part.detach() / args.steps_per_update for name, part in parts.items()})


@dataclass(frozen=True)
class Costs:
    """Books the FLOPs and tokens of PPO's passes.

    Attributes:
        value: None where the critic is a head on the policy's trunk. judge: None without one.
        recomputed: the old log-probs are computed once more after sampling.
        passes, value_passes: that a forward and a backward pass of policy and critic are worth (see
            `Accounted`).
    """

    ledger: Ledger
    policy: ModelCost
    value: ModelCost | None
    judge: ModelCost | None
    recomputed: bool
    passes: float
    value_passes: float

    @classmethod
    def of(cls, cast: Cast, ledger: Ledger, recomputed: bool) -> "Costs":
        """Costs of these networks, which are noted in the ledger."""
        ledger.network("policy", cast.policy, trained=True)
        if cast.critic is not None:
            ledger.network("value model", cast.critic, trained=True)
        for name, network in (("reference", cast.reference), ("reward model", cast.judge)):
            if network is not None:
                ledger.network(name, network)
        value = None if cast.critic is None else ModelCost.of(cast.critic)
        judge = None if cast.judge is None else ModelCost.of(cast.judge)
        trained = cast.policy, cast.critic if cast.critic is not None else cast.policy
        passes = (2 + trained_share(network) for network in trained)
        return cls(ledger, ModelCost.of(cast.policy), value, judge, recomputed, *passes)

    def rollout(self, drawn: Samples) -> None:
        """Sampling, and the reference's, critic's and reward model's forward passes."""
        sequences = drawn.sequences
        (batch, length), tokens = sequences.shape, sequences.tokens
        passes = 2 if self.recomputed else 1
        flops = self.policy.decode(sequences.prompt_width, drawn.rows)
        flops += passes * self.policy.forward(batch, length, tokens)
        # A head on the policy's trunk runs the trunk once more.
        flops += (self.value or self.policy).forward(batch, length, 0, read=values_read(sequences))
        if self.judge is not None:
            flops += self.judge.forward(batch, length, 0, read=batch)
        self.ledger.add(flops=flops, tokens_generated=tokens)

    def update(self, inputs: Rollout) -> None:
        """Forward and backward passes."""
        sequences = inputs.sequences
        shape, logits, read = sequences.shape, sequences.tokens, values_read(sequences)
        flops = self.passes * self.policy.forward(
            *shape, logits, read=read if self.value is None else logits
        )
        if self.value is not None:
            flops += self.value_passes * self.value.forward(*shape, 0, read=read)
        tokens = int(sequences.attention_mask.sum())
        self.ledger.add(flops=round(flops), tokens_trained=tokens)


def values_read(sequences: Sequences) -> int:
    """Positions whose last hidden state the critic reads."""
    batch, length = sequences.shape
    return batch * (length - sequences.prompt_width + 1)
