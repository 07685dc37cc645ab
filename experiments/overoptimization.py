"""Over-optimisation of reward models of several sizes (Gao et al. 2022), and of DPO beside them
(Rafailov et al. 2024).

Design. A large reward model learns from people's pairs, and nothing else does: it is the gold
reward. It labels completions of the SFT model. Proxy reward models of four sizes learn from these
labels; PPO and best of n optimise each of them, and DPO trains on the same labels. As the KL grows,
how does the gold reward turn from the proxy's?

The report fits the paper's laws, R = d (alpha - beta d) for best of n and R = d (alpha - beta log
d) for RL with d = sqrt(KL), to each arm and proxy.

What would falsify "larger proxies are over-optimised later": a smaller proxy whose gold reward
peaks at a higher KL, by more than the interval.

    rlhf-vs-dpo plan overoptimization --scale paper
    rlhf-vs-dpo run overoptimization --scale paper --device cuda
"""

from typing import Any

from experiments.comparison import Comparison
from experiments.forecast import Sizes
from experiments.sentiment import precision
from experiments.stages import Relabelled
from pipelines.data.brought import pinned
from pipelines.data.pipeline import MODEL, PAIRS, TEST
from pipelines.data.specs import (
    DataSpec,
    FineTuneSpec,
    JudgeSpec,
    OwnEvaluationSpec,
    RelabelledProtocol,
)
from pipelines.dpo.specs import DPOSpec
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.assets import HH_TEST, HH_TRAIN, PYTHIA
from pipelines.shared.specs import LabelsSpec, RewardModelSpec, SamplingSpec, WeightsSpec

PROXIES = tuple(PYTHIA[size].name for size in ("70m", "160m", "410m", "1b"))
PENALTIES = (0.0, 0.01, 0.05, 0.1, 0.5)

PAPER = RelabelledProtocol(
    data=DataSpec(max_length=512, share_evaluation=0.0, share_judge=0.50),
    sft=FineTuneSpec(epochs=1, batch_size=64, learning_rate=5e-6),
    sampling=SamplingSpec(prompts=20_000, completions=2, max_new_tokens=128, temperature=1.0),
    labels=LabelsSpec(temperature=1.0),
    reward_model=RewardModelSpec(
        epochs=1, batch_size=64, learning_rate=1e-5, normalise="gain-bias"
    ),
    judge=JudgeSpec(
        init="pythia-2.8b", epochs=1, batch_size=64, learning_rate=3e-6, normalise="gain-bias"
    ),
    evaluation=OwnEvaluationSpec(prompts=256, samples=4, reference_samples=512),
    weights=WeightsSpec(precision="bf16"),
    arms={
        "ppo": PPOSpec(
            updates=200,
            rollouts=256,
            ppo_epochs=4,
            minibatches=4,
            learning_rate=3e-6,
            snapshots=5,
        ),
        "dpo": DPOSpec(epochs=1, batch_size=64, learning_rate=3e-6, snapshots=5),
    },
)


def deviations(protocol: Any) -> list[dict[str, str]]:
    """What the paper says or leaves open, and what is done here."""
    data, sampling, labels = protocol.data, protocol.sampling, protocol.labels
    ppo = protocol.arm("ppo")
    rows = [
        ("policy", "GPT-3 1.2B, instructions of InstructGPT", "Pythia 1B, prompts of hh-rlhf"),
        (
            "gold reward",
            "a 6B reward model of human labels",
            f"{protocol.judge.init}, of hh-rlhf's pairs of {data.share_judge:.0%} of the prompts",
        ),
        (
            "proxies",
            "3M to 3B parameters, up to 100,000 labels of the gold reward",
            f"as reward_model.init says, {sampling.prompts:,} pairs labelled by Bradley-Terry, "
            f"temperature {labels.temperature:g}; proxies with mean 0 and standard deviation 1 on "
            "SFT completions, the gold reward on people's",
        ),
        (
            "RL",
            "PPO, KL penalties 0, 0.01, 0.05, 0.1, 0.5; most without one",
            f"own PPOTrainer, the same penalties, {ppo.updates} updates of {ppo.rollouts}",
        ),
        (
            "best of n",
            "n up to 60,000",
            f"n up to {protocol.evaluation.reference_samples}, unbiased estimator",
        ),
        ("DPO", "none (Rafailov et al. 2024 fit the law to it)", "on the same labels"),
        ("precision", "not stated", precision(protocol)),
    ]
    return [{"item": item, "paper": paper, "here": here} for item, paper, here in rows]


OVEROPTIMIZATION = Comparison(
    name="overoptimization",
    title="Over-optimisation of reward models of four sizes, and of DPO",
    question="At which KL does more of the proxy's reward stop being more of the gold reward, for "
    "reward models of several sizes and for DPO?",
    scales={"paper": PAPER},
    default=("sft", "ppo", "dpo", "best-of-n-proxy"),
    sweeps={"ppo": PENALTIES, "dpo": (0.05, 0.1, 0.5)},
    axes={"reward_model.init": PROXIES},
    stages=Relabelled(
        {MODEL: pinned(PYTHIA["1b"]), PAIRS: pinned(HH_TRAIN), TEST: pinned(HH_TEST)}
    ),
    reward_label="gold reward (a larger reward model)",
    papers=False,
    deviations=deviations,
    # Half of 160,800 pairs teach the gold reward; lengths are rough.
    sizes={
        "paper": Sizes(
            sft_rows=72_000, sft_tokens=230, prompts=20_000, prompt_tokens=150, judge_pairs=80_000
        )
    },
)
