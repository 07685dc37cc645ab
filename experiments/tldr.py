"""Summarisation of Reddit posts from human comparisons: PPO and DPO from one SFT model (Rafailov et
al. 2023, section 6.2, figure 2 right), with the details that Huang et al. 2024 published for PPO.

Design. Pythia 1B is fine-tuned on the posts' own summaries. RLHF learns a reward model from the
comparisons and runs PPO on their prompts; DPO trains on the same comparisons. Policies summarise
posts of the validation split. Without a gold reward they are judged by a reward model of pairs that
nothing else is trained on; for the paper's own comparison ask a language model, here at T = 1:

    rlhf-vs-dpo plan tldr --scale paper
    rlhf-vs-dpo run tldr --scale paper --device cuda
    rlhf-vs-dpo judge tldr --scale paper --between ppo:0.05/chosen,dpo:0.5/chosen

What would falsify the paper's "DPO exceeds PPO's win rate": PPO with a higher win rate against the
chosen summaries, or a higher judge's reward within the same KL, by more than the interval.
"""

from typing import Any

from experiments.comparison import JUDGED, Comparison
from experiments.forecast import Sizes
from experiments.sentiment import precision
from experiments.stages import Own
from pipelines.data.brought import pinned
from pipelines.data.pipeline import DEMONSTRATIONS, MODEL, PAIRS, TEST
from pipelines.data.specs import (
    DataSpec,
    FineTuneSpec,
    JudgeSpec,
    OwnEvaluationSpec,
    OwnProtocol,
)
from pipelines.dpo.specs import DPOSpec
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.assets import PYTHIA, TLDR_PAIRS, TLDR_SUMMARIES, TLDR_TEST
from pipelines.shared.specs import RewardModelSpec, SamplingSpec, WeightsSpec

PAPER = OwnProtocol(
    data=DataSpec(max_length=640, share_evaluation=0.0, share_judge=0.25),
    sft=FineTuneSpec(epochs=1, batch_size=128, learning_rate=3e-6),
    sampling=SamplingSpec(prompts=0, max_new_tokens=53, temperature=1.0),
    reward_model=RewardModelSpec(epochs=1, batch_size=64, learning_rate=3e-6),
    judge=JudgeSpec(epochs=1, batch_size=64, learning_rate=3e-6),
    evaluation=OwnEvaluationSpec(prompts=256, samples=4, reference_samples=128),
    weights=WeightsSpec(precision="bf16"),
    arms={
        "ppo": PPOSpec(
            updates=1953,
            rollouts=512,
            ppo_epochs=4,
            minibatches=1,
            learning_rate=3e-6,
            missing_eos="replace",
            missing_eos_value=-1.0,
            snapshots=4,
        ),
        "dpo": DPOSpec(epochs=1, batch_size=64, learning_rate=3e-6, snapshots=2),
    },
)


def deviations(protocol: Any) -> list[dict[str, str]]:
    """What the papers say or leave open, and what is done here."""
    data, ppo, dpo = protocol.data, protocol.arm("ppo"), protocol.arm("dpo")
    rows = [
        ("model", "GPT-J 6B (DPO); Pythia 1B, 2.8B, 6.9B (Huang et al.)", "Pythia 1B deduplicated"),
        (
            "SFT",
            "a public checkpoint (DPO); 1 epoch, lr 3e-6, on the posts' summaries (Huang et al.)",
            f"epochs: {protocol.sft.epochs}, lr {protocol.sft.learning_rate:g}, on the posts' "
            "summaries, none of a post that policies are judged on",
        ),
        (
            "pairs",
            "92,858 of the training split",
            f"without those of {data.share_judge:.0%} of the posts, which teach the judge, and of "
            f"{data.share_validation:.0%}, for tuning; longer ones than {data.max_length} tokens "
            "left out; the data set's few pairs about news articles are among them",
        ),
        (
            "PPO",
            "its implementation not stated (DPO); 1,000,000 episodes, batch 512, 4 epochs of 1 "
            "minibatch, lr 3e-6, kl 0.05, -1 where EOS is missing, temperature 0.7 (Huang et al.)",
            f"own PPOTrainer, {ppo.updates * ppo.rollouts:,} episodes, batch {ppo.rollouts}, "
            f"{ppo.ppo_epochs} epochs of {ppo.minibatches} minibatch, lr {ppo.learning_rate:g}, "
            f"kl as swept, {ppo.missing_eos_value:g} where EOS is missing, temperature "
            f"{protocol.sampling.temperature:g}",
        ),
        (
            "DPO",
            "beta 0.5; RMSprop, lr 1e-6, batch 64, warm-up 150 steps",
            f"beta as swept; AdamW, lr {dpo.learning_rate:g}, batch {dpo.batch_size}, "
            f"warm-up {dpo.warmup:.0%} of the steps, epochs: {dpo.epochs}",
        ),
        (
            "judge",
            "GPT-4 against the reference summaries, 256 prompts, T = 0 to 1: DPO 61.7% at T = 0, "
            "PPO 57.0%",
            "a reward model of held-out pairs; a language model by `rlhf-vs-dpo judge`",
        ),
        ("precision", "not stated", precision(protocol)),
    ]
    return [{"item": item, "paper": paper, "here": here} for item, paper, here in rows]


TLDR = Comparison(
    name="tldr",
    title="RLHF and DPO on summaries of Reddit posts",
    question="Which method writes the better summaries for the KL it spends: RLHF (reward model + "
    "PPO) or DPO?",
    scales={"paper": PAPER},
    default=("sft", "ppo", "dpo"),
    sweeps={"ppo": (0.05,), "dpo": (0.05, 0.1, 0.5)},
    stages=Own(
        {
            MODEL: pinned(PYTHIA["1b"]),
            PAIRS: pinned(TLDR_PAIRS),
            TEST: pinned(TLDR_TEST),
            DEMONSTRATIONS: pinned(TLDR_SUMMARIES),
        }
    ),
    reward_label=JUDGED,
    judge=JUDGED,
    papers=False,
    deviations=deviations,
    # 116,722 summaries and 92,858 pairs; lengths are rough.
    sizes={
        "paper": Sizes(
            sft_rows=110_000,
            sft_tokens=380,
            prompts=10_000,
            prompt_tokens=340,
            completion_tokens=40,
            pairs=65_000,
            judge_pairs=23_000,
        )
    },
)
