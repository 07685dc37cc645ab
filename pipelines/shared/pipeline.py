"""The stages that every arm shares, as steps. Inert: nothing here imports torch or works."""

from typing import Any

from pipelines.shared.assets import ROTTEN_TOMATOES
from pipelines.shared.specs import Protocol, SimulatedProtocol
from pipelines.shared.steps import Step


def corpus(protocol: SimulatedProtocol) -> Step:
    """Reviews, tokenizer and splits."""
    return Step(
        stage="corpus",
        label="rotten-tomatoes",
        function="pipelines.shared.corpus:prepare",
        version=2,  # texts.parquet was reviews.parquet
        recipe={"corpus": protocol.corpus},
        assets={ROTTEN_TOMATOES.name: ROTTEN_TOMATOES.sha256},
    )


def gold(protocol: SimulatedProtocol, corpus: Step) -> Step:
    """The gold reward, from the human labels."""
    return Step(
        stage="gold",
        label="tfidf-logistic",
        function="pipelines.shared.gold:fit",
        version=2,  # fitted with the step's threads, on whatever machine
        recipe={"gold": protocol.gold},
        upstream={"corpus": corpus},
    )


def completions(protocol: Protocol, corpus: Step, gold: Step, sft: Step) -> Step:
    """The SFT model's completions that the pairs are made of."""
    return Step(
        stage="completions",
        label="sft-samples",
        function="pipelines.shared.preferences:complete",
        version=1,
        recipe={"sampling": protocol.sampling},
        threads=protocol.compute.shared_threads,
        upstream={"corpus": corpus, "gold": gold, "sft": sft},
    )


def pairs(protocol: Any, completions: Step, seed: int) -> Step:
    """Labelled preference pairs; the seed draws the labels."""
    return Step(
        stage="pairs",
        label=f"bradley-terry-s{seed}",
        function="pipelines.shared.preferences:label",
        version=1,
        recipe={"labels": protocol.labels},
        seed=seed,
        upstream={"completions": completions},
    )
