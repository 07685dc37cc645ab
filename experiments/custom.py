"""Your own model and pairs: does RLHF or DPO make more of them, at equal KL?

Design. The pairs are split by prompt: some train the arms, some are held out. The model is
fine-tuned on the chosen completions (SFT), as Rafailov et al. 2023 do where there is no SFT model.
RLHF learns a reward model from the training pairs and runs PPO against it on their prompts; DPO
trains on the same pairs. Both start from the same SFT model and are swept over the same strengths
of the KL constraint. Every policy is sampled on the same held-out prompts and measured by one KL
meter.

The judge. With --gold every policy is judged by that reward. Without, by a reward model of pairs
that nothing else is trained on: it tells which policy is nearer to the taste that can be learnt
from these pairs, not which people would like better; the report says what follows from that.
Policies, reward models and judge are also held against people's own choices on held-out pairs.

What would falsify "DPO reaches RLHF's objective better": PPO with a higher reward than DPO within
the same KL, by more than its interval.

Left out: tuning. Learning rates are those of another, smaller model (--set changes them, and
several values make an axis); a method that suffers more from a wrong one is at a disadvantage.

    rlhf-vs-dpo check-data pairs.jsonl.gz --model DIR
    rlhf-vs-dpo run custom --model DIR --pairs pairs.jsonl.gz
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.comparison import JUDGED, Comparison
from experiments.stages import Own
from pipelines.data import brought
from pipelines.data.pipeline import DEMONSTRATIONS, GOLD, MODEL, PAIRS, PROMPTS, TEST
from pipelines.data.specs import (
    DataSpec,
    FineTuneSpec,
    JudgeSpec,
    OwnEvaluationSpec,
    OwnProtocol,
)
from pipelines.dpo.specs import DPOSpec
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.assets import default_cache
from pipelines.shared.errors import UserError
from pipelines.shared.specs import RewardModelSpec, SamplingSpec

# For the tests: a model of some thousand weights and a few hundred short pairs.
SMOKE = OwnProtocol(
    data=DataSpec(share_evaluation=0.25),
    sft=FineTuneSpec(epochs=1, learning_rate=1e-3),
    sampling=SamplingSpec(prompts=0, max_new_tokens=12),
    reward_model=RewardModelSpec(epochs=1, batch_size=16, learning_rate=1e-3),
    judge=JudgeSpec(epochs=1, learning_rate=1e-3),
    evaluation=OwnEvaluationSpec(prompts=24, samples=4, reference_samples=32),
    arms={
        "ppo": PPOSpec(
            updates=4,
            rollouts=32,
            ppo_epochs=2,
            minibatches=2,
            learning_rate=1e-3,
            kl_horizon=100.0,
            snapshots=2,
        ),
        "dpo": DPOSpec(epochs=1, batch_size=16, learning_rate=1e-3, snapshots=2),
    },
)

# Models of some million weights and some thousand pairs of a few hundred tokens: ten minutes or so
# on two CPU cores. The learning rates of PPO and DPO are those that sentiment-tuning found best, in
# nine trials each, for a model of 0.7 million weights; larger models take smaller ones.
MINI = OwnProtocol(
    sft=FineTuneSpec(epochs=1, learning_rate=3e-4),
    sampling=SamplingSpec(prompts=0, max_new_tokens=48),
    reward_model=RewardModelSpec(epochs=1, batch_size=16, learning_rate=1e-3),
    judge=JudgeSpec(epochs=1, learning_rate=1e-3),
    evaluation=OwnEvaluationSpec(prompts=64, samples=4, reference_samples=64),
    arms={
        "ppo": PPOSpec(
            updates=20,
            rollouts=64,
            ppo_epochs=2,
            minibatches=4,
            learning_rate=1e-4,
            kl_horizon=500.0,
            snapshots=2,
        ),
        "dpo": DPOSpec(epochs=1, batch_size=16, learning_rate=3e-4, snapshots=2),
    },
)

BETAS = (0.05, 0.1, 0.3)
FILES = {"test": TEST, "prompts": PROMPTS, "demonstrations": DEMONSTRATIONS}


@dataclass(frozen=True)
class Custom(Comparison):
    """A comparison on what the user brings; without it, it cannot be resolved."""

    @property
    def folder(self) -> str:
        """Names the pairs, and tells apart what was brought together with them."""
        things = self.stages.brought
        stem = (
            re.sub(r"[^A-Za-z0-9_.]+", "-", Path(things[PAIRS].name).name.split(".")[0]).strip("-.")
            or "own"
        )
        parts = sorted(f"{name}={thing.sha256}" for name, thing in things.items())
        return f"{self.name}-{stem}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"

    def given(self, own: Mapping[str, str]) -> "Custom":
        missing = [f"--{name}" for name in ("model", "pairs") if name not in own]
        if missing:
            raise UserError(
                f"custom needs {' and '.join(missing)}: a causal language model and a file of "
                "preference pairs"
            )
        things = {
            PAIRS: brought.pairs(own["pairs"], default_cache()),
            **{
                name: brought.file(Path(own[option]))
                for option, name in FILES.items()
                if option in own
            },
            MODEL: brought.model(own["model"]),
        }
        if "gold" in own:
            things[GOLD] = brought.reward(own["gold"])
        label, judge = ("gold reward", "") if GOLD in things else (JUDGED, JUDGED)
        return dataclasses.replace(self, stages=Own(things), reward_label=label, judge=judge)


CUSTOM = Custom(
    name="custom",
    title="RLHF and DPO on your own model and pairs",
    question="Which method gets more reward for the KL it spends, on your model and pairs: "
    "RLHF (reward model + PPO) or DPO?",
    scales={"smoke": SMOKE, "mini": MINI},
    default=("sft", "ppo", "dpo"),
    sweeps={"ppo": BETAS, "ppo-gt": BETAS, "dpo": BETAS},
    papers=False,
    stages=Own(),
)
