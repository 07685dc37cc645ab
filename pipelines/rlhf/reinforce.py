"""REINFORCE with a learnt baseline, as the special case of PPO that it is.

With one pass over each rollout in one minibatch the ratio pi/pi_old is 1, so that nothing is ever
clipped and the surrogate's gradient is the policy gradient A grad log pi (Schulman et al. 2017, eq.
1); with lambda = gamma = 1 the advantage A is the return less the value, unwhitened. So it runs
through PPOTrainer, and the difference to PPO is what PPO adds.
"""

from pipelines.rlhf.ppo_stage import run
from pipelines.rlhf.specs import PPOSpec, ReinforceSpec
from pipelines.shared.steps import Context


def as_ppo(spec: ReinforceSpec) -> PPOSpec:
    """The settings of PPO that make it REINFORCE."""
    return PPOSpec(
        kl_coef=spec.kl_coef,
        updates=spec.updates,
        rollouts=spec.rollouts,
        ppo_epochs=1,
        minibatches=1,
        learning_rate=spec.learning_rate,
        vf_coef=spec.vf_coef,
        clip_range_value=0.0,
        gamma=1.0,
        gae_lambda=1.0,
        whiten_advantages=False,
        max_grad_norm=spec.max_grad_norm,
        snapshots=spec.snapshots,
    )


def train(context: Context) -> None:
    """Step: one run. Writes checkpoint/, snapshots/, policies.json."""
    run(context, as_ppo(context.spec("reinforce")))
