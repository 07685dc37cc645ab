"""How the sentiment experiment's settings were chosen: PPO's and DPO's with nine trials each, the
other arms' with three.

Each method gets nine trials at beta = 0.1, seed 0, scored by J = E[gold] - beta KL on the
*validation* prompts, which no published figure uses. RLHF's trials cover its two learning stages
(reward model and PPO); DPO's cover its one. The best trial of each is a literal in sentiment.py.

    rlhf-vs-dpo run sentiment-tuning --scale mini

The other arms were given one trial for each of three learning rates at the middle of their sweep,
with that reward model, scored by the same J whatever they aim at; conservative, robust and hinge
DPO have DPO's settings, ppo-gt and ppo-adaptive have PPO's. So they are tuned less than the two
that the study is about: what a small budget finds. results/LOG.md has all trials; one arm's are

    rlhf-vs-dpo run sentiment-tuning --arms kto --set reward_model.learning_rate=3e-3 \\
        --set kto.beta=0.1 --set kto.learning_rate=1e-4,3e-4,1e-3 --set kto.snapshots=1
"""

import dataclasses

from experiments.comparison import Comparison
from experiments.sentiment import ARMS, MINI, SENTIMENT
from pipelines.shared.specs import EvaluationSpec, SimulatedProtocol

VALIDATION: SimulatedProtocol = dataclasses.replace(
    MINI,
    evaluation=EvaluationSpec(split="validation", prompts=256, samples=4, reference_samples=64),
)

SENTIMENT_TUNING = Comparison(
    name="sentiment-tuning",
    title="Tuning of the sentiment experiment, nine trials a method",
    question="Which settings of PPO and of DPO reach the highest J at beta = 0.1 "
    "on validation prompts?",
    scales={"mini": VALIDATION},
    default=ARMS,
    sweeps={"ppo": (0.1,), "dpo": (0.1,)},
    axes={
        "reward_model.learning_rate": (1e-3, 3e-3, 1e-2),
        "ppo.learning_rate": (3e-5, 1e-4, 3e-4),
        "dpo.learning_rate": (1e-4, 3e-4, 1e-3),
        "dpo.epochs": (1, 2, 3),
    },
    reward_label=SENTIMENT.reward_label,
    deviations=SENTIMENT.deviations,
)
