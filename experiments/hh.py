"""Single-turn dialogue on Anthropic's helpful-harmless pairs (Rafailov et al. 2023, section 6.2,
figure 3): Pythia 2.8B, DPO against Preferred-FT and best-of-128.

Design. There is no SFT model for these pairs, so one is made of the chosen completions. DPO trains
on the pairs; best of n by a reward model stands in for PPO, as in the paper. Policies complete
prompts of the test split. Without a gold reward they are judged by a reward model of pairs that
nothing else is trained on; for the paper's own comparison ask a language model:

    rlhf-vs-dpo plan hh --scale paper
    rlhf-vs-dpo run hh --scale paper --device cuda
    rlhf-vs-dpo judge hh --scale paper --between dpo:0.1/chosen

What would falsify the paper's "DPO is the only one that improves over the chosen completions, and
matches best-of-128": DPO below Preferred-FT or best of n in the judge's reward at its KL, by more
than the interval. PPO, which the paper does not run here, can be added: `--arms ppo,dpo`.
"""

from typing import Any

from experiments.comparison import JUDGED, Comparison
from experiments.forecast import Sizes
from experiments.sentiment import of_all, precision
from experiments.stages import Own
from pipelines.baselines.specs import PreferredFTSpec
from pipelines.data.brought import pinned
from pipelines.data.pipeline import MODEL, PAIRS, TEST
from pipelines.data.specs import (
    DataSpec,
    FineTuneSpec,
    JudgeSpec,
    OwnEvaluationSpec,
    OwnProtocol,
)
from pipelines.dpo.specs import DPOSpec
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.assets import HH_TEST, HH_TRAIN, PYTHIA_2_8B
from pipelines.shared.specs import RewardModelSpec, SamplingSpec, WeightsSpec

PAPER = OwnProtocol(
    data=DataSpec(max_length=768, share_evaluation=0.0, share_judge=0.15),
    sft=FineTuneSpec(epochs=1, batch_size=64, learning_rate=1e-6),
    sampling=SamplingSpec(prompts=0, max_new_tokens=256, temperature=1.0),
    reward_model=RewardModelSpec(epochs=1, batch_size=64, learning_rate=3e-6),
    judge=JudgeSpec(epochs=1, batch_size=64, learning_rate=3e-6),
    evaluation=OwnEvaluationSpec(prompts=256, samples=4, reference_samples=256),
    weights=WeightsSpec(precision="bf16"),
    arms={
        **of_all(
            (PreferredFTSpec, DPOSpec),
            epochs=1,
            batch_size=64,
            learning_rate=1e-6,
            warmup=0.1,
            snapshots=2,
        ),
        "ppo": PPOSpec(
            updates=200,
            rollouts=512,
            ppo_epochs=4,
            minibatches=8,
            learning_rate=1e-6,
            snapshots=2,
        ),
    },
)


def deviations(protocol: Any) -> list[dict[str, str]]:
    """What the paper says or leaves open, and what is done here."""
    data, dpo, sampling = protocol.data, protocol.arm("dpo"), protocol.sampling
    evaluation = protocol.evaluation
    rows = [
        (
            "data",
            "all of hh-rlhf's training pairs (170,000)",
            f"without those of {data.share_judge:.0%} of the prompts, which teach the judge, and "
            f"of {data.share_validation:.0%}, for tuning; prompt and completion in "
            f"{data.max_length} tokens, longer pairs left out",
        ),
        (
            "SFT",
            "on the chosen completions; epochs and learning rate not stated",
            f"epochs: {protocol.sft.epochs}, AdamW, lr {protocol.sft.learning_rate:g}",
        ),
        (
            "DPO",
            "beta 0.1; RMSprop, lr 1e-6, batch 64, warm-up 150 steps",
            f"AdamW, lr {dpo.learning_rate:g}, batch {dpo.batch_size}, warm-up {dpo.warmup:.0%} of "
            f"the steps, epochs: {dpo.epochs}",
        ),
        (
            "best of n",
            "128 completions of Preferred-FT",
            f"of the SFT model, every n up to {evaluation.reference_samples}, by a reward model of "
            "the same pairs",
        ),
        ("PPO", "best of n stands in for it", "none by default; --arms ppo,dpo"),
        (
            "judge",
            "GPT-4 against the chosen completions; DPO at T = 1 wins 62.9%, best-of-128 60.8%",
            "a reward model of held-out pairs; a language model by `rlhf-vs-dpo judge`",
        ),
        (
            "generation",
            "temperatures 0.25 to 1; length not stated",
            f"{sampling.max_new_tokens} tokens at most, temperature {sampling.temperature:g}",
        ),
        ("precision", "not stated", precision(protocol)),
    ]
    return [{"item": item, "paper": paper, "here": here} for item, paper, here in rows]


HH = Comparison(
    name="hh",
    title="DPO and best of n on helpful-harmless dialogue",
    question="Does DPO match best of n by a reward model on single-turn dialogue, at what KL?",
    scales={"paper": PAPER},
    default=("sft", "preferred-ft", "dpo", "best-of-n-proxy"),
    sweeps={"dpo": (0.1,), "ppo": (0.05,)},
    stages=Own({MODEL: pinned(PYTHIA_2_8B), PAIRS: pinned(HH_TRAIN), TEST: pinned(HH_TEST)}),
    reward_label=JUDGED,
    judge=JUDGED,
    papers=False,
    deviations=deviations,
    # 160,800 pairs; lengths are rough.
    sizes={
        "paper": Sizes(
            sft_rows=128_000,
            sft_tokens=260,
            prompts=128_000,
            prompt_tokens=180,
            completion_tokens=80,
            pairs=128_000,
            judge_pairs=24_000,
        )
    },
)
