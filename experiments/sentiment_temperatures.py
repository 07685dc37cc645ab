"""Does a method's win rate hang on the temperature that it is sampled at?

Design. The policies of the sentiment experiment at one strength of the KL constraint, beta =
kl_coef = 0.1: same SFT model, pairs, reward model and training. Each is sampled once more on the
same 256 held-out prompts at the temperatures 0 (greedy), 0.25, 0.5, 0.75 and 1, which divides the
logits of policy and reference alike; 4 completions a prompt, one at 0. Each temperature is compared
with two opponents: what the labeller chose among samples of the SFT model at temperature 1, which
stays the same, and the SFT model at the same temperature. Judges: the gold reward, and the reward
model.

What would falsify the claim "DPO is more robust to the sampling temperature than PPO": from
temperature 0 to 1, DPO's win rate against chosen falls by more than PPO's, by more than the
interval of their difference.

    rlhf-vs-dpo run sentiment-temperatures --scale mini

After Rafailov et al. 2023, figures 2 (right) and 3 (left).
"""

from experiments.comparison import Comparison
from experiments.sentiment import ARMS, MINI, SENTIMENT, SMOKE
from pipelines.shared.specs import SimulatedProtocol

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)


def deviations(protocol: SimulatedProtocol) -> list[dict[str, str]]:
    """What the paper says of its sweeps and what is done here; then what `sentiment` has too."""
    rows = [
        (
            "win rates by temperature",
            "TL;DR summaries and HH dialogues, temperatures 0 to 1",
            "continued review snippets; temperatures "
            + ", ".join(f"{value:g}" for value in TEMPERATURES),
        ),
        ("judge of the win rates", "GPT-4", "the gold reward, and the reward model"),
        (
            "opponent",
            "the data set's own answers: written by people (TL;DR), chosen (HH)",
            "what the labeller chooses of two completions of the SFT model, in expectation; and "
            "the SFT model at the same temperature",
        ),
    ]
    own = [{"item": item, "paper": paper, "here": here} for item, paper, here in rows]
    return own + [dict(row) for row in SENTIMENT.deviations(protocol)]


SENTIMENT_TEMPERATURES = Comparison(
    name="sentiment-temperatures",
    title="RLHF and DPO on controlled sentiment, by sampling temperature",
    question="Does either method's win rate hang on the temperature that it is sampled at?",
    scales={"smoke": SMOKE, "mini": MINI},
    # best-of-n-proxy: its scores let the reward model judge comparisons with chosen, too.
    default=(*ARMS, "best-of-n-proxy"),
    sweeps={"ppo": (0.1,), "ppo-gt": (0.1,), "dpo": (0.1,)},
    temperatures=TEMPERATURES,
    reward_label=SENTIMENT.reward_label,
    deviations=deviations,
    tuning=SENTIMENT.tuning,
    tuned_scales=SENTIMENT.tuned_scales,
)
