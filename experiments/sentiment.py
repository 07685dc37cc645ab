"""Controlled sentiment: does DPO reach RLHF's objective better than PPO does, at equal KL?

Design. Rotten Tomatoes review snippets with human fresh/rotten labels. One small GPT-2 is trained
on them (SFT). A classifier of the human labels is the gold reward. The SFT model completes 1,000
prompts four times; a simulated labeller compares all pairs by Bradley-Terry on the gold reward.
RLHF learns a reward model from the pairs and runs PPO against it; DPO trains on the same pairs.
Both start from the same SFT model, use the same prompts, and are swept over the same four strengths
of the KL constraint. Every policy is sampled on the same 256 held-out prompts and measured by one
KL meter; the optimum of the objective J = E[gold] - beta KL is estimated from samples of the SFT
model.

What would falsify the claim "DPO reaches RLHF's objective better than most implementations of
RLHF": PPO with a higher J than DPO at the same beta, by more than its interval, at most of the
betas.

Left out of this first slice: arms beside PPO and DPO, judges, intervals over more than a few seeds.

    rlhf-vs-dpo run sentiment --scale mini

After Rafailov et al. 2023, section 6.1 and figure 2 (left); see `deviations`.
"""

from experiments.comparison import Comparison
from pipelines.shared.specs import (
    CorpusSpec,
    DPOSpec,
    EvaluationSpec,
    ModelSpec,
    PPOSpec,
    Protocol,
    RewardModelSpec,
    SamplingSpec,
    SFTSpec,
)

# Everything at once in about a minute: too small to conclude anything from, large enough to test.
SMOKE = Protocol(
    corpus=CorpusSpec(vocab_size=400, max_reviews=1500, share_sft=0.6, share_preference=0.2),
    model=ModelSpec(layers=1, width=32, heads=2, context=24),
    sft=SFTSpec(epochs=2, batch_size=32),
    sampling=SamplingSpec(prompts=32, completions=4, max_new_tokens=12),
    reward_model=RewardModelSpec(epochs=1, batch_size=32),
    ppo=PPOSpec(
        updates=4, rollouts=32, ppo_epochs=2, minibatches=2, learning_rate=1e-3, snapshots=2
    ),
    dpo=DPOSpec(batch_size=32, learning_rate=1e-3, snapshots=2),
    evaluation=EvaluationSpec(prompts=24, samples=4, reference_samples=64),
)

# The default main job: real text, about ten minutes on two CPU cores. The arms' learning rates and
# DPO's epochs are the best of nine trials a method on validation prompts (sentiment_tuning.py).
MINI = Protocol(
    corpus=CorpusSpec(vocab_size=2048, prompt_tokens=4),
    model=ModelSpec(layers=2, width=128, heads=4, context=32),
    sft=SFTSpec(epochs=6, batch_size=64, learning_rate=2e-3),
    sampling=SamplingSpec(prompts=1000, completions=4, max_new_tokens=20, temperature=1.0),
    reward_model=RewardModelSpec(epochs=1, batch_size=64, learning_rate=3e-3),
    ppo=PPOSpec(updates=60, rollouts=128, ppo_epochs=4, minibatches=4, learning_rate=1e-4),
    dpo=DPOSpec(epochs=2, batch_size=64, learning_rate=3e-4),
    evaluation=EvaluationSpec(prompts=256, samples=4, reference_samples=256),
)

ARMS = {
    "sft": "the SFT model: start and reference of every arm",
    "ppo": "RLHF: reward model from the pairs, then PPO with a per-token KL penalty",
    "dpo": "DPO on the same pairs",
}

BETAS = (0.05, 0.1, 0.3, 1.0)  # the same for both methods: the objective's own coefficient


def deviations(protocol: Protocol) -> list[dict[str, str]]:
    """What the paper says (or leaves open) and what is done here."""
    model, sampling, evaluation = protocol.model, protocol.sampling, protocol.evaluation
    pairs = sampling.completions * (sampling.completions - 1) // 2
    rows = [
        (
            "text and gold reward",
            "IMDb reviews; siebert/sentiment-roberta-large-english",
            "Rotten Tomatoes snippets; TF-IDF + logistic regression on their human labels",
        ),
        (
            "model",
            "gpt2-large",
            f"GPT-2 architecture, {model.layers} x {model.width}, trained from scratch, "
            f"{protocol.sft.epochs} epochs",
        ),
        ("prompt", "prefixes of 2-8 tokens", f"the first {protocol.corpus.prompt_tokens} tokens"),
        (
            "pairs",
            "4 completions x 25,000 prefixes, 6 pairs each",
            f"{sampling.completions} completions x {sampling.prompts:,} prompts, {pairs} each",
        ),
        (
            "labels",
            "by the ground-truth reward; ties and noise not stated",
            f"Bradley-Terry on the gold reward, temperature {protocol.labels.temperature:g}, "
            f"noise {protocol.labels.noise:g}",
        ),
        (
            "reward model",
            "3 epochs, best validation accuracy",
            f"epochs: {protocol.reward_model.epochs}; scores centred on SFT completions",
        ),
        (
            "PPO",
            "own implementation, 1024 samples a step, target KL 3, 6, 9, 12",
            f"own PPOTrainer, {protocol.ppo.rollouts} samples a step, fixed coefficients",
        ),
        (
            "DPO",
            "beta 0.05, 0.1, 1, 5; RMSprop, lr 1e-6, batch 64, warm-up 150 steps",
            f"beta as PPO's coefficients; AdamW, lr {protocol.dpo.learning_rate:g}, "
            f"batch {protocol.dpo.batch_size}, epochs: {protocol.dpo.epochs}",
        ),
        (
            "generation, KL estimator, evaluation prompts, seeds",
            "not stated",
            f"temperature {evaluation.temperature:g}, no top-k or top-p; Rao-Blackwellised "
            f"sequence KL; {evaluation.prompts} held-out prompts x {evaluation.samples}",
        ),
        (
            "tokenizer",
            "GPT-2's",
            "byte-level BPE fitted on the text of all reviews, labels unseen: prompts, and so the "
            "splits, are defined by its tokens",
        ),
    ]
    return [{"item": item, "paper": paper, "here": here} for item, paper, here in rows]


SENTIMENT = Comparison(
    name="sentiment",
    title="RLHF and DPO on controlled sentiment",
    question="Which method gets more gold reward for the KL it spends: "
    "RLHF (reward model + PPO) or DPO?",
    scales={"smoke": SMOKE, "mini": MINI},
    arms=ARMS,
    sweeps={"ppo": ("ppo.kl_coef", BETAS), "dpo": ("dpo.beta", BETAS)},
    reward_label="gold reward (log-odds of fresh)",
    deviations=deviations,
    tuning="sentiment-tuning",
    tuned_scales=("mini",),
)
