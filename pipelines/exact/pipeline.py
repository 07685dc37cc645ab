"""The enumerable task's stages as steps. Inert: nothing here imports torch or works."""

from pipelines.exact.specs import OracleProtocol
from pipelines.shared.specs import Spec
from pipelines.shared.steps import Step


def task(protocol: OracleProtocol) -> Step:
    """Prompts, reference and true reward: one for all seeds."""
    spec = protocol.task
    return Step(
        stage="oracle-task",
        label=f"{spec.symbols}x{spec.length}" + ("-eos" if spec.eos else ""),
        function="pipelines.exact.task:make",
        version=2,  # other FLOPs, here and in what stands on it: the last MLP where it is read
        recipe={"task": spec},
    )


def reward_model(protocol: OracleProtocol, task: Step, seed: int) -> Step:
    """Bradley-Terry on the comparisons."""
    return Step(
        stage="oracle-reward-model",
        label=f"{protocol.labels.kind}-s{seed}",
        function="pipelines.exact.steps:train_reward_model",
        version=1,
        recipe={"reward_model": protocol.reward_model, "labels": protocol.labels},
        seed=seed,
        upstream={"task": task},
    )


def ppo(protocol: OracleProtocol, task: Step, reward_model: Step | None, seed: int) -> Step:
    """PPO on the reward model, or on the true reward."""
    learnt = {} if reward_model is None else {"reward_model": reward_model}
    against = "true" if reward_model is None else protocol.labels.kind
    return Step(
        stage="oracle-ppo",
        label=f"{against}-kl{protocol.ppo.kl_coef:g}-s{seed}",
        function="pipelines.exact.steps:train_ppo",
        version=1,
        recipe={"ppo": protocol.ppo, "ablation": protocol.ablation},
        seed=seed,
        upstream={"task": task, **learnt},
    )


def dpo(protocol: OracleProtocol, task: Step, seed: int) -> Step:
    """DPO on the comparisons."""
    return Step(
        stage="oracle-dpo",
        label=f"{protocol.labels.kind}-beta{protocol.dpo.beta:g}-s{seed}",
        function="pipelines.exact.steps:train_dpo",
        version=1,
        recipe={"dpo": protocol.dpo, "labels": protocol.labels},
        seed=seed,
        upstream={"task": task},
    )


def online_dpo(protocol: OracleProtocol, task: Step, seed: int) -> Step:
    """Online DPO, compared by the true reward."""
    return _on_true_reward("online-dpo", protocol.online_dpo, protocol.online_dpo.beta, task, seed)


def rloo(protocol: OracleProtocol, task: Step, seed: int) -> Step:
    """RLOO on the true reward."""
    return _on_true_reward("rloo", protocol.rloo, protocol.rloo.kl_coef, task, seed)


def grpo(protocol: OracleProtocol, task: Step, seed: int) -> Step:
    """GRPO on the true reward."""
    return _on_true_reward("grpo", protocol.grpo, protocol.grpo.kl_coef, task, seed)


def _on_true_reward(arm: str, spec: Spec, beta: float, task: Step, seed: int) -> Step:
    return Step(
        stage=f"oracle-{arm}",
        label=f"true-beta{beta:g}-s{seed}",
        function=f"pipelines.exact.sampling_steps:train_{spec.section}",
        version=1,
        recipe={spec.section: spec},
        seed=seed,
        upstream={"task": task},
    )


def evaluation(task: Step, policy: Step) -> Step:
    """The policy's exact distribution over all completions."""
    return Step(
        stage="oracle-evaluation",
        label=f"{policy.stage}-{policy.label}",
        function="pipelines.exact.steps:evaluate",
        version=2,
        recipe={},
        upstream={"task": task, "policy": policy},
    )


def ablated_ppo(protocol: OracleProtocol, task: Step, reward_model: Step, seed: int) -> Step:
    """PPO on the reward model with something changed, and its exact distribution."""
    what = protocol.ablation.broken or "settings"
    return Step(
        stage="oracle-ablation",
        label=f"{what}-s{seed}",
        function="pipelines.exact.steps:ablate",
        version=1,
        recipe={"ppo": protocol.ppo, "ablation": protocol.ablation},
        seed=seed,
        upstream={"task": task, "reward_model": reward_model},
    )
