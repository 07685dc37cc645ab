"""What is each detail of PPO worth? One at a time is turned off or changed.

Design. The enumerable task with EOS (completions of up to 3 symbols out of 4), a reward model on
exact comparisons, PPO with the trainer's defaults but for learning rate and batch, beta = 0.3. Each
change is run with the same seeds as the defaults, and judged by the exact share of
J(pi*) - J(ref) that its policy closes, paired by seed. Some changes are bugs that no option offers
(pipelines/exact/ablations.py); where a check of ours stops such a run, the table says so. Two
changes (6 and 32) can do nothing here but draw other noise: they show how large a difference is
nothing.

What would falsify "this detail matters here": a difference inside its interval. But intervals are
over a few seeds and there are forty of them: about one in twenty misses by chance, more at once
because all are held against the same defaults. It is one tiny task: what shows no effect here may
have one on text, and the other way round.

Left out: details 3 and 4 (text: truncation, the leading space), 10, 15, 34 and 35 (evaluation,
checks and logs, which change no policy).

    rlhf-vs-dpo run ppo_details --seeds 3
"""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments import settings
from experiments.oracle_study import OracleExperiment, OracleRun, OracleStudy, checked, folder_name
from pipelines.exact.pipeline import ablated_ppo, reward_model, task
from pipelines.exact.specs import OracleProtocol, TaskSpec
from pipelines.rlhf.specs import PPOSpec
from pipelines.shared.specs import RewardModelSpec

# Number of the detail in pipelines/rlhf/README.md, what is changed, and what to bear in mind.
CHANGES = (
    ("", "", ""),
    ("1", "ppo.reward_reads_prompt=false", "the reward model was trained with prompts"),
    ("2", "ablation.broken=pad-is-eos", ""),
    ("5", "ppo.skip_padding=false", "judged with positions that skip padding"),
    (
        "6",
        "ppo.reshuffle_prompts=false",
        "another draw: every update holds each prompt equally often",
    ),
    ("7", "ppo.top_k=3", ""),
    ("7", "ppo.top_p=0.9", ""),
    ("8", "ppo.stop_at_eos=false", ""),
    ("9", "ablation.temperature=0.7", "judged at temperature 1"),
    ("9", "ablation.temperature=0.7 ablation.broken=update-at-temperature-1", ""),
    ("11", "reward_model.init=random", "changes the critic, too: it is the reward model's copy"),
    ("12", "ablation.broken=reward-read-at-last-column", ""),
    ("13", "reward_model.epochs=1", "changes the critic, too: it is the reward model's copy"),
    ("14", "reward_model.normalise=none", "changes the critic, too: it is the reward model's copy"),
    (
        "14",
        "reward_model.normalise=gain-bias",
        "changes the critic, too: it is the reward model's copy",
    ),
    ("16", "ppo.clamp_kl=true", ""),
    ("17", "ablation.broken=score-at-first-token", ""),
    ("18", "ppo.missing_eos=replace", ""),
    ("18", "ppo.missing_eos=subtract", ""),
    (
        "19",
        "ppo.kl_control=adaptive ppo.kl_target=1.0 ppo.kl_horizon=1000.0",
        "the optimum's KL is another",
    ),
    ("19", "ppo.kl_in=loss", ""),
    ("20", "ppo.whiten_rewards=true", ""),
    ("21", "ppo.gamma=0.9", ""),
    ("21", "ppo.gae_lambda=1.0", ""),
    ("21", "ppo.gae_lambda=0.0", ""),
    ("22", "ppo.whiten_advantages=false", ""),
    ("23", "ppo.clip_range=1000.0", ""),
    ("24", "ppo.clip_range_value=0.0", ""),
    ("25", "ppo.vf_coef=1.0", ""),
    ("25", "ppo.vf_coef=0.0", ""),
    ("26", "ppo.ppo_epochs=1", "a quarter of the optimiser steps"),
    ("26", "ppo.reshuffle_minibatches=false", ""),
    ("27", "ppo.rollouts=64 ppo.updates=200", "as many samples, four times the steps"),
    ("28", "ppo.adam_epsilon=1e-08", ""),
    ("29", "ppo.lr_schedule=constant", ""),
    ("30", "ablation.broken=dropout-on", ""),
    ("31", "ppo.share_trunk=true", ""),
    ("32", "ppo.keyed_noise=false", "another draw: there is one process"),
    ("33", "ablation.broken=values-one-late", ""),
    ("33", "ppo.value_after_end=true", ""),
    ("36", "ppo.normalise_values=true", ""),
    ("36", "ppo.ratio_threshold=1.02", ""),
    ("36", "ppo.ema_reference=0.95", ""),
    ("36", "ppo.critic_warmup=5", ""),
    ("36", "ppo.max_grad_norm=1000.0", ""),
)

MINI = OracleProtocol(
    task=TaskSpec(symbols=4, length=3, eos=True, prompts=4),
    reward_model=RewardModelSpec(epochs=8, batch_size=256, learning_rate=2e-3),
    ppo=PPOSpec(
        kl_coef=0.3,
        updates=50,
        rollouts=256,
        ppo_epochs=4,
        minibatches=4,
        learning_rate=1e-3,
        snapshots=1,
    ),
)

SMOKE = OracleProtocol(
    task=TaskSpec(symbols=4, length=3, eos=True, prompts=4),
    reward_model=RewardModelSpec(epochs=1, batch_size=512, learning_rate=2e-3),
    ppo=PPOSpec(
        kl_coef=0.3,
        updates=2,
        rollouts=64,
        ppo_epochs=2,
        minibatches=2,
        learning_rate=1e-3,
        snapshots=1,
    ),
)


UNUSED = {
    **dict.fromkeys(("dpo", "online_dpo", "rloo", "grpo"), "trains PPO only"),
    "ablation": "changes it itself, row by row",
    "labels.temperature": "judges by the true reward, which only temperature 1 teaches",
}


@dataclass(frozen=True)
class DetailsExperiment(OracleExperiment):
    """One change at a time, on the same seeds."""

    def resolve(
        self,
        scale: str,
        arms: Sequence[str] | None = None,
        seeds: int = 1,
        assignments: Sequence[str] = (),
    ) -> OracleStudy:
        """See `Experiment.resolve`; `--set` changes what everything else is held against."""
        protocol, _, given = checked(self, scale, arms, seeds, assignments, UNUSED)
        start, runs = task(protocol), []
        for seed in range(seeds):
            unchanged = ""
            for detail, change, note in CHANGES:
                at = protocol
                if change:
                    chosen = settings.parse(change.split(), protocol)
                    at = settings.apply(protocol, {name: v[0] for name, v in chosen.items()})
                step = ablated_ppo(at, start, reward_model(at, start, seed), seed)
                unchanged = unchanged or step.fingerprint
                if not change or step.fingerprint != unchanged:  # else --set made it the default
                    beta, labels = at.ppo.kl_coef, at.labels.kind
                    runs.append(OracleRun("ppo", beta, seed, labels, step, detail, change, note))
        name = folder_name(self, scale, arms, seeds, given)
        return OracleStudy(self, scale, name, protocol, runs, {})


PPO_DETAILS = DetailsExperiment(
    name="ppo_details",
    title="What each detail of PPO is worth",
    question="How much of the gap to the exact optimum does PPO close with one detail changed?",
    scales={"mini": MINI, "smoke": SMOKE},
    arms={"ppo": "PPO on a reward model, one detail changed at a time"},
    default=("ppo",),
)
