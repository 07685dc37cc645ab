"""RLHF on one screen: SFT -> reward model -> PPO. Inert steps; nothing here imports torch."""

from collections.abc import Mapping

from pipelines.shared.assets import ASSETS
from pipelines.shared.specs import Protocol, SimulatedProtocol
from pipelines.shared.steps import Step


def sft(protocol: SimulatedProtocol, corpus: Step) -> Step:
    """Stage 1: the start and the reference of every arm."""
    return Step(
        stage="sft",
        label=f"gpt2-{protocol.model.layers}x{protocol.model.width}",
        function="pipelines.rlhf.sft:train",
        version=3,  # other FLOPs, here and in what stands on it: the last MLP where it is read
        recipe={"sft": protocol.sft, "model": protocol.model, **protocol.trained_by},
        threads=protocol.compute.shared_threads,
        upstream={"corpus": corpus},
    )


def reward_model(protocol: Protocol, sft: Step, completions: Step, pairs: Step, seed: int) -> Step:
    """Stage 2: a reward function learnt from the comparisons."""
    return Step(
        stage="reward-model",
        label=f"bradley-terry-s{seed}",
        function="pipelines.rlhf.reward_model:train",
        version=1,
        recipe={"reward_model": protocol.reward_model, **protocol.trained_by},
        seed=seed,
        threads=protocol.compute.arm_threads,
        upstream={"sft": sft, "completions": completions, "pairs": pairs},
        assets=asset_of(protocol.reward_model.init),
    )


def asset_of(init: str) -> dict[str, str]:
    """The pinned model that a reward model grows from, where it is not the SFT model."""
    return {init: ASSETS[init].identity} if init in ASSETS else {}


def ppo(
    protocol: Protocol,
    corpus: Step,
    sft: Step,
    judge: Mapping[str, Step],
    seed: int,
    label: str,
) -> Step:
    """Stage 3: RL with a KL penalty to the SFT model.

    Args:
        judge: {"reward_model": step}, or {"gold": step} for the gold reward itself.
    """
    return Step(
        stage="ppo",
        label=label,
        function="pipelines.rlhf.ppo_stage:train",
        version=1,
        recipe={
            "ppo": protocol.arm("ppo"),
            "sampling": protocol.sampling,
            **protocol.trained_by,
        },
        seed=seed,
        threads=protocol.compute.arm_threads,
        upstream={"corpus": corpus, "sft": sft, **judge},
    )
