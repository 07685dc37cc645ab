"""DPO on one screen: from the same SFT model and the same pairs, straight to the policy."""

from pipelines.dpo.specs import DPOSpec
from pipelines.shared.specs import Protocol
from pipelines.shared.steps import Step


def reference_logprobs(protocol: Protocol, sft: Step, completions: Step) -> Step:
    """What DPO needs of the reference; the only forward passes it makes beside its own."""
    return Step(
        stage="reference-logprobs",
        label="completions",
        function="pipelines.dpo.reference:score",
        version=1,
        recipe={},
        threads=protocol.compute.arm_threads,
        upstream={"sft": sft, "completions": completions},
    )


def dpo(protocol: Protocol, sft: Step, pairs: Step, reference_logprobs: Step, seed: int) -> Step:
    """The whole of it: no reward model, no RL."""
    spec: DPOSpec = protocol.arm("dpo")
    return Step(
        stage="dpo",
        label=f"beta{spec.beta:g}-s{seed}",
        function="pipelines.dpo.family:train",
        version=3,
        recipe={"dpo": spec, **protocol.trained_by},
        seed=seed,
        threads=protocol.compute.arm_threads,
        upstream={"sft": sft, "pairs": pairs, "reference_logprobs": reference_logprobs},
    )
