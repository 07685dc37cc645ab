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

Any other arm can be named, and stands on the same footing: `--arms all` runs all of pipelines/arms,
each over its own settings.

Left out: judges, and intervals over more than a few seeds.

    rlhf-vs-dpo run sentiment --scale mini
    rlhf-vs-dpo run sentiment --scale mini --arms all

At scale small the model is a pretrained one, and the gold reward a classifier fine-tuned from it.

After Rafailov et al. 2023, section 6.1 and figure 2 (left); see `deviations`.
"""

from collections.abc import Iterable
from typing import Any

from experiments.comparison import Comparison
from experiments.forecast import Sizes
from experiments.stages import Pretrained
from pipelines.baselines.specs import PreferredFTSpec
from pipelines.data.specs import (
    FINE_TUNED,
    ClassifierSpec,
    FineTuneSpec,
    PretrainedProtocol,
    StartSpec,
    TextsSpec,
)
from pipelines.dpo.specs import (
    ConservativeDPOSpec,
    DPOSpec,
    HingeDPOSpec,
    IPOSpec,
    KTOSpec,
    MeanIPOSpec,
    OnlineDPOSpec,
    ORPOSpec,
    RobustDPOSpec,
    SimPOSpec,
    UnlikelihoodSpec,
)
from pipelines.rlhf.specs import GRPOSpec, PPOSpec, ReinforceSpec, RLOOSpec
from pipelines.shared.specs import (
    CorpusSpec,
    EvaluationSpec,
    ModelSpec,
    RewardModelSpec,
    SamplingSpec,
    SFTSpec,
    SimulatedProtocol,
    Spec,
)

PAIRS = (
    PreferredFTSpec,
    UnlikelihoodSpec,
    DPOSpec,
    ConservativeDPOSpec,
    RobustDPOSpec,
    HingeDPOSpec,
    IPOSpec,
    MeanIPOSpec,
    KTOSpec,
    SimPOSpec,
    ORPOSpec,
)
GROUPS = (RLOOSpec, GRPOSpec)


def of_all(specs: Iterable[type[Spec]], **values: Any) -> dict[str, Spec]:
    """The same values in the sections of several arms."""
    return {spec.section: spec(**values) for spec in specs}


# Everything at once in about a minute: too small to conclude anything from, large enough to test.
SMOKE = SimulatedProtocol(
    corpus=CorpusSpec(vocab_size=400, max_reviews=1500, share_sft=0.6, share_preference=0.2),
    model=ModelSpec(layers=1, width=32, heads=2, context=24),
    sft=SFTSpec(epochs=2, batch_size=32),
    sampling=SamplingSpec(prompts=32, completions=4, max_new_tokens=12),
    reward_model=RewardModelSpec(epochs=6, batch_size=32, learning_rate=3e-3),
    evaluation=EvaluationSpec(prompts=48, samples=8, reference_samples=64),
    arms={
        **of_all(PAIRS, batch_size=32, learning_rate=1e-3, snapshots=2),
        "ppo": PPOSpec(
            updates=8,
            rollouts=128,
            ppo_epochs=2,
            minibatches=2,
            learning_rate=1e-3,
            kl_horizon=200.0,
            snapshots=2,
        ),
        "reinforce": ReinforceSpec(updates=16, rollouts=128, learning_rate=2e-3, snapshots=2),
        **of_all(
            GROUPS,
            updates=8,
            rollouts=128,
            group=8,
            epochs=2,
            minibatches=2,
            learning_rate=1e-3,
            snapshots=2,
        ),
        "online_dpo": OnlineDPOSpec(
            rounds=8, pairs=64, epochs=2, batch_size=32, learning_rate=1e-3, snapshots=2
        ),
    },
)

# The default main job: real text, about ten minutes on two CPU cores. The learning rates of PPO and
# DPO and DPO's epochs are the best of nine trials a method on validation prompts. The other arms
# see as much data (as many passes over the same pairs as DPO, or as many completions as PPO) and
# have the best of three learning rates, where not DPO's own; see sentiment_tuning.py.
MINI = SimulatedProtocol(
    corpus=CorpusSpec(vocab_size=2048, prompt_tokens=4),
    model=ModelSpec(layers=2, width=128, heads=4, context=32),
    sft=SFTSpec(epochs=6, batch_size=64, learning_rate=2e-3),
    sampling=SamplingSpec(prompts=1000, completions=4, max_new_tokens=20, temperature=1.0),
    reward_model=RewardModelSpec(epochs=1, batch_size=64, learning_rate=3e-3),
    evaluation=EvaluationSpec(prompts=256, samples=4, reference_samples=256),
    arms={
        **of_all(PAIRS, epochs=2, batch_size=64, learning_rate=3e-4),
        **of_all(
            (UnlikelihoodSpec, KTOSpec, SimPOSpec), epochs=2, batch_size=64, learning_rate=1e-4
        ),
        "ppo": PPOSpec(
            updates=60,
            rollouts=128,
            ppo_epochs=4,
            minibatches=4,
            learning_rate=1e-4,
            kl_horizon=500.0,  # 7,680 sequences in all: long enough for the coefficient to settle
        ),
        "reinforce": ReinforceSpec(updates=60, rollouts=128, learning_rate=1e-3),
        "rloo": RLOOSpec(
            updates=60, rollouts=128, group=4, epochs=4, minibatches=4, learning_rate=1e-4
        ),
        "grpo": GRPOSpec(
            updates=60, rollouts=128, group=4, epochs=4, minibatches=4, learning_rate=3e-5
        ),
        "online_dpo": OnlineDPOSpec(
            rounds=60, pairs=64, epochs=4, batch_size=16, learning_rate=3e-4
        ),
    },
)

# A pretrained model of 135 million weights on the same reviews, for one GPU. Its gold reward is a
# classifier fine-tuned from it on the human labels. Nothing is tuned: learning rates are of the
# usual size for full fine-tuning of such models; with LoRA take tenfold ones:
#   --set weights.lora_rank=16 --set ppo.learning_rate=5e-5 --set dpo.learning_rate=5e-5
SMALL = PretrainedProtocol(
    start=StartSpec(model="smollm2-135m-instruct"),
    corpus=TextsSpec(source="rotten-tomatoes", max_tokens=64),
    gold=ClassifierSpec(model=FINE_TUNED, epochs=2, batch_size=32, learning_rate=3e-5),
    sft=FineTuneSpec(epochs=1, batch_size=64, learning_rate=5e-5),
    sampling=SamplingSpec(prompts=1000, completions=4, max_new_tokens=24, temperature=1.0),
    reward_model=RewardModelSpec(epochs=1, batch_size=64, learning_rate=2e-5),
    evaluation=EvaluationSpec(prompts=256, samples=4, reference_samples=256),
    arms={
        **of_all(PAIRS, epochs=1, batch_size=64, learning_rate=5e-6, snapshots=1),
        "ppo": PPOSpec(
            updates=60,
            rollouts=128,
            ppo_epochs=4,
            minibatches=4,
            learning_rate=5e-6,
            kl_horizon=500.0,
            snapshots=1,
        ),
        "reinforce": ReinforceSpec(updates=60, rollouts=128, learning_rate=1e-5, snapshots=1),
        **of_all(
            GROUPS,
            updates=60,
            rollouts=128,
            group=4,
            epochs=4,
            minibatches=4,
            learning_rate=5e-6,
            snapshots=1,
        ),
        "online_dpo": OnlineDPOSpec(
            rounds=60, pairs=64, epochs=4, batch_size=16, learning_rate=5e-6, snapshots=1
        ),
    },
)

ARMS = ("sft", "ppo", "dpo")  # by default; --arms all has every registered one
BETAS = (0.05, 0.1, 0.3, 1.0)  # the objective's own coefficient: the same for every arm that has it


def precision(protocol: Any) -> str:
    """How weights are trained, for a ledger."""
    low = protocol.weights.precision == "bf16"
    products = "bf16 products, fp32 weights and optimiser" if low else "fp32"
    adapters = f"; LoRA, rank {protocol.weights.lora_rank}" if protocol.weights.lora_rank else ""
    return f"{products}{adapters}; evaluation in fp32"


def made_of(protocol: Any) -> list[tuple[str, str, str]]:
    """Texts, gold reward, model, prompts and tokenizer: what the paper says, and what is here."""
    texts = "Rotten Tomatoes snippets"
    if isinstance(protocol, PretrainedProtocol):
        corpus, own = protocol.corpus, protocol.gold.model
        texts = texts if corpus.source == "rotten-tomatoes" else corpus.source
        gold = f"the model fine-tuned on their human labels, epochs: {protocol.gold.epochs}"
        gold = gold if own == FINE_TUNED else own
        model = f"{protocol.start.model}, fine-tuned on the texts, epochs: {protocol.sft.epochs}"
        prompt = f"the first {corpus.shortest_prompt} to {corpus.longest_prompt} tokens"
        tokenizer = "the model's own"
    else:
        gold = "TF-IDF + logistic regression on their human labels"
        size = f"{protocol.model.layers} x {protocol.model.width}"
        model = f"GPT-2 architecture, {size}, trained from scratch, {protocol.sft.epochs} epochs"
        prompt = f"the first {protocol.corpus.prompt_tokens} tokens"
        tokenizer = (
            "byte-level BPE fitted on the text of all reviews, labels unseen: prompts, and so the "
            "splits, are defined by its tokens"
        )
    siebert = "IMDb reviews; siebert/sentiment-roberta-large-english"
    return [
        ("text and gold reward", siebert, f"{texts}; {gold}"),
        ("model", "gpt2-large", model),
        ("prompt", "prefixes of 2-8 tokens", prompt),
        ("tokenizer", "GPT-2's", tokenizer),
    ]


def deviations(protocol: Any) -> list[dict[str, str]]:
    """What the paper says (or leaves open) and what is done here."""
    sampling, evaluation = protocol.sampling, protocol.evaluation
    ppo, dpo = protocol.arm("ppo"), protocol.arm("dpo")
    pairs = sampling.completions * (sampling.completions - 1) // 2
    *first, tokenizer = made_of(protocol)
    rows = [
        *first,
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
            f"own PPOTrainer, {ppo.rollouts} samples a step, fixed coefficients; with adaptive "
            "ones (same targets) as an arm of its own",
        ),
        (
            "PPO-GT",
            "TRL's defaults, rewards normalised",
            "the same trainer and settings as PPO, rewards as they are",
        ),
        (
            "Unlikelihood",
            "alpha 0.05, 0.1, 0.5, 1; the form of the loss is not stated",
            "token-level unlikelihood (Welleck et al. 2019), summed over the tokens; same alpha",
        ),
        (
            "Preferred-FT",
            "maximum likelihood on the chosen completions, repeated with several seeds",
            "the same, from the shared SFT model, which its KL is measured to; seeds by --seeds",
        ),
        (
            "DPO",
            "beta 0.05, 0.1, 1, 5; RMSprop, lr 1e-6, batch 64, warm-up 150 steps",
            f"beta as PPO's coefficients; AdamW, lr {dpo.learning_rate:g}, "
            f"batch {dpo.batch_size}, epochs: {dpo.epochs}",
        ),
        (
            "generation, KL estimator, evaluation prompts, seeds",
            "not stated",
            f"temperature {evaluation.temperature:g}, no top-k or top-p; Rao-Blackwellised "
            f"sequence KL; {evaluation.prompts} held-out prompts x {evaluation.samples}",
        ),
        tokenizer,
    ]
    return [{"item": item, "paper": paper, "here": here} for item, paper, here in rows]


SENTIMENT = Comparison(
    name="sentiment",
    title="RLHF and DPO on controlled sentiment",
    question="Which method gets more gold reward for the KL it spends: "
    "RLHF (reward model + PPO) or DPO?",
    scales={"smoke": SMOKE, "mini": MINI, "small": SMALL},
    at_scale={"small": Pretrained()},
    default=ARMS,
    sweeps={"ppo": BETAS, "ppo-gt": BETAS, "dpo": (*BETAS, 5.0)},
    reward_label="gold reward (log-odds of fresh)",
    deviations=deviations,
    sizes={
        "small": Sizes(
            sft_rows=8_900, sft_tokens=28, prompts=1000, prompt_tokens=4, labelled=11_500
        )
    },
    tuning="sentiment-tuning",
    tuned_scales=("mini",),
)
