"""The DPO paper's controlled-sentiment experiment (Rafailov et al. 2023, section 6.1, figure 2
left) at its own size: gpt2-large on IMDb reviews, judged by a sentiment classifier.

Design. gpt2-large is fine-tuned on reviews. It completes prefixes of 2 to 8 tokens four times; all
pairs are labelled by the ground-truth classifier. Preferred-FT, Unlikelihood, PPO on a learnt
reward with target KLs, PPO on the ground truth and DPO are swept as the paper sweeps them, and all
stand under one meter on prefixes of the test split.

What would falsify the paper's "DPO's frontier is by far the most efficient": another arm, trained
without the ground truth, with more reward within the same KL, by more than its interval.

What the paper leaves open, and what is different here, is in `deviations`; it is printed in the
report.

    rlhf-vs-dpo plan imdb --scale paper
    rlhf-vs-dpo run imdb --scale paper --device cuda
"""

from typing import Any

from experiments.comparison import Comparison
from experiments.forecast import Sizes
from experiments.sentiment import of_all, precision
from experiments.stages import Pretrained
from pipelines.baselines.specs import PreferredFTSpec
from pipelines.data.specs import (
    ClassifierSpec,
    FineTuneSpec,
    PretrainedProtocol,
    StartSpec,
    TextsSpec,
)
from pipelines.dpo.specs import DPOSpec, UnlikelihoodSpec
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.specs import (
    EvaluationSpec,
    LabelsSpec,
    RewardModelSpec,
    SamplingSpec,
    WeightsSpec,
)

PAPER = PretrainedProtocol(
    start=StartSpec(model="gpt2-large"),
    corpus=TextsSpec(
        source="imdb",
        shortest_prompt=2,
        longest_prompt=8,
        max_tokens=128,
        share_sft=0.40,
        share_preference=0.55,
        share_validation=0.05,
    ),
    gold=ClassifierSpec(model="siebert-sentiment"),
    sft=FineTuneSpec(epochs=1, batch_size=64, learning_rate=1e-5),
    sampling=SamplingSpec(prompts=0, completions=4, max_new_tokens=48, temperature=1.0),
    labels=LabelsSpec(temperature=1.0),
    reward_model=RewardModelSpec(epochs=3, batch_size=64, learning_rate=1e-5),
    evaluation=EvaluationSpec(prompts=512, samples=4, reference_samples=256),
    weights=WeightsSpec(precision="bf16"),
    arms={
        **of_all(
            (PreferredFTSpec, UnlikelihoodSpec, DPOSpec),
            epochs=1,
            batch_size=64,
            learning_rate=1e-6,
            warmup=0.1,
        ),
        "ppo": PPOSpec(
            updates=60,
            rollouts=1024,
            ppo_epochs=4,
            minibatches=16,
            learning_rate=3e-6,
            kl_horizon=10_000.0,
        ),
    },
)

ARMS = ("sft", "preferred-ft", "unlikelihood", "ppo-adaptive", "ppo-gt", "dpo")


def deviations(protocol: Any) -> list[dict[str, str]]:
    """What the paper says or leaves open, and what is done here."""
    corpus, sampling, evaluation = protocol.corpus, protocol.sampling, protocol.evaluation
    ppo, dpo, sft = protocol.arm("ppo"), protocol.arm("dpo"), protocol.sft
    rows = [
        (
            "SFT",
            "1 epoch on a subset of the data; section 6 says until convergence",
            f"epochs: {sft.epochs}, on the first {corpus.max_tokens} tokens of "
            f"{corpus.share_sft:.0%} of the training reviews, AdamW, lr {sft.learning_rate:g}",
        ),
        (
            "prefixes",
            "25,000 of 2-8 tokens",
            f"{corpus.shortest_prompt}-{corpus.longest_prompt} tokens of "
            f"{corpus.share_preference:.0%} of the training reviews, each once; none is the prefix "
            "of one of SFT's reviews, though one may begin with it and go on",
        ),
        (
            "generation",
            "not stated",
            f"{sampling.max_new_tokens} tokens at most, temperature {sampling.temperature:g}, no "
            "top-k or top-p",
        ),
        (
            "labels",
            "by the ground-truth reward; ties and noise not stated",
            f"Bradley-Terry on its log-odds, temperature {protocol.labels.temperature:g}",
        ),
        (
            "reward model",
            "gpt2-large, 3 epochs, the best by validation accuracy",
            f"from the SFT model, {protocol.reward_model.epochs} epochs, the last",
        ),
        (
            "PPO",
            "own implementation, 1024 samples a step, target KL 3, 6, 9, 12; learning rate, "
            "epochs, GAE and length not stated",
            f"own PPOTrainer, {ppo.rollouts} samples a step, adaptive coefficient for these "
            f"targets; {ppo.updates} steps, lr {ppo.learning_rate:g}, {ppo.ppo_epochs} epochs of "
            f"{ppo.minibatches} minibatches, lambda {ppo.gae_lambda:g}",
        ),
        (
            "PPO-GT",
            "TRL's defaults, rewards normalised",
            "the same trainer and settings as PPO, fixed coefficients, rewards as they are",
        ),
        (
            "DPO",
            "beta 0.05, 0.1, 1, 5; RMSprop, lr 1e-6 (the code: 5e-7), batch 64, warm-up 150 steps",
            f"the same beta; AdamW, lr {dpo.learning_rate:g}, batch {dpo.batch_size}, warm-up "
            f"{dpo.warmup:.0%} of the steps, epochs: {dpo.epochs}",
        ),
        (
            "Unlikelihood",
            "alpha 0.05, 0.1, 0.5, 1; the form of the loss is not stated",
            "token-level unlikelihood (Welleck et al. 2019), summed over the tokens; same alpha",
        ),
        ("Preferred-FT", "repeated with several seeds", "by --seeds"),
        (
            "evaluation",
            "on the test split every 100 steps; number of prompts and KL estimator not stated",
            f"{evaluation.prompts} prefixes of the test split x {evaluation.samples}, the policies "
            "saved on the way (snapshots); Rao-Blackwellised sequence KL",
        ),
        ("seeds", "not stated, 22 runs", "by --seeds; runs as the sweeps say"),
        ("precision", "not stated", precision(protocol)),
    ]
    return [{"item": item, "paper": paper, "here": here} for item, paper, here in rows]


IMDB = Comparison(
    name="imdb",
    title="RLHF and DPO on controlled sentiment, at the paper's size",
    question="Which method gets more ground-truth sentiment for the KL it spends, with gpt2-large "
    "on IMDb?",
    scales={"paper": PAPER},
    default=ARMS,
    sweeps={"ppo-gt": (0.05, 0.1, 0.3, 1.0), "dpo": (0.05, 0.1, 1.0, 5.0)},
    stages=Pretrained(),
    reward_label="gold reward (log-odds of positive)",
    deviations=deviations,
    # 25,000 reviews a split; a good part of the shortest prefixes are the same.
    sizes={"paper": Sizes(sft_rows=10_000, sft_tokens=128, prompts=12_000, prompt_tokens=5)},
)
