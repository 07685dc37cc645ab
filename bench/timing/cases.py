"""What is measured: model shapes, batches, and the side of each measurement. Standard library only:
the peers' environments read it too."""

from dataclasses import dataclass
from typing import Any

TASKS = ("dpo", "ppo", "reward", "decode")
# The sides of each task, in the order in which they take turns; those of `OURS` run in the
# project's environment and give the floor.
SIDES = {
    "dpo": ("ours", "trl", "trl-precomputed"),
    "ppo": ("ours", "ours-shared", "trl"),
    "reward": ("ours", "trl"),
    "decode": ("ours", "generate"),
}
OURS = ("ours", "ours-shared")


@dataclass(frozen=True)
class Shape:
    """A decoder's architecture.

    Attributes:
        family: gpt2 or llama (tied embeddings).
        inner: width of the MLP; of llama only, gpt2's is 4 x width.
    """

    family: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int = 64
    kv_heads: int = 0
    inner: int = 0


@dataclass(frozen=True)
class Case:
    """A model with the batches it is trained on. No completion ends early: there is no padding.

    Attributes:
        prompt, completion: tokens.
        pairs: in an optimiser step of DPO and of the reward model.
        batches: steps that the pairs last, then they come again.
        rollouts: in an update of PPO.
        minibatches: of each of PPO's epochs.
        rows: prompts decoded at once.
        rounds: turns that each side gets, by default; updates: in PPO.
        ticks: in a turn; of PPO and decoding always one.
    """

    shape: Shape
    pairs: int
    rollouts: int
    minibatches: int
    rows: int
    prompt: int = 16
    completion: int = 32
    batches: int = 8
    epochs: int = 4
    rounds: int = 5
    updates: int = 3
    ticks: int = 2


def case_of(values: dict[str, Any]) -> Case:
    """A case from its JSON form."""
    return Case(**{**values, "shape": Shape(**values["shape"])})


CASES = {
    "a": Case(Shape("gpt2", 4, 256, 4, 8000), pairs=64, rollouts=128, minibatches=4, rows=128),
    # SmolLM2-135M's shape.
    "b": Case(
        Shape("llama", 30, 576, 9, 49152, positions=2048, kv_heads=3, inner=1536),
        pairs=4,
        rollouts=8,
        minibatches=2,
        rows=32,
        rounds=3,
        updates=2,
        ticks=1,
    ),
}
QUICK = {
    "a": Case(
        Shape("gpt2", 2, 64, 2, 512),
        pairs=8,
        rollouts=16,
        minibatches=4,
        rows=16,
        rounds=1,
        updates=1,
    ),
    "b": Case(
        Shape("llama", 2, 48, 3, 512, kv_heads=1, inner=96),
        pairs=4,
        rollouts=8,
        minibatches=2,
        rows=8,
        rounds=1,
        updates=1,
        ticks=1,
    ),
}
LOSS_STEPS = 20  # optimiser steps over which the losses of both sides are compared
# Seconds of a round of all sides at 2 threads, with which the time left is estimated.
ROUGH = {
    ("dpo", "a"): 14,
    ("ppo", "a"): 37,
    ("reward", "a"): 6,
    ("decode", "a"): 5,
    ("dpo", "b"): 12,
    ("ppo", "b"): 80,
    ("reward", "b"): 7,
    ("decode", "b"): 10,
}
