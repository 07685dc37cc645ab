"""The stages that every arm shares where model and pairs are somebody's own. Inert steps.

What people bring is known by the sha256 of its contents, never by where it lies.
"""

import dataclasses
from collections.abc import Mapping

from pipelines.data.specs import OwnProtocol, RoomSpec
from pipelines.rlhf.pipeline import asset_of
from pipelines.shared.errors import UserError
from pipelines.shared.steps import Step

# What can be brought, by the name that steps know it by.
MODEL, PAIRS, TEST, PROMPTS, GOLD, DEMONSTRATIONS = (
    "own model",
    "own pairs",
    "test pairs",
    "own prompts",
    "own gold",
    "demonstrations",
)


def start(brought: Mapping[str, str], label: str = "own-model") -> Step:
    """The model as it was brought, with a padding token where it has none."""
    return Step(
        stage="start",
        label=label,
        function="pipelines.data.start:adopt",
        version=1,
        recipe={},
        assets={MODEL: brought[MODEL]},
    )


def corpus(protocol: OwnProtocol, start: Step, brought: Mapping[str, str]) -> Step:
    """The pairs in tokens, checked and split by prompt.

    With a gold reward there is no judge to train, and with test pairs no prompts to hold out.
    """
    data = protocol.data
    if GOLD in brought:
        data = dataclasses.replace(data, share_judge=0.0)
    if TEST in brought:
        data = dataclasses.replace(data, share_evaluation=0.0)
    return Step(
        stage="corpus",
        label="own-pairs",
        function="pipelines.data.corpus:prepare",
        version=1,
        recipe={"data": data, "room": RoomSpec(protocol.sampling.max_new_tokens)},
        upstream={"start": start},
        assets={name: brought[name] for name in (PAIRS, TEST, PROMPTS) if name in brought},
    )


def gold(protocol: OwnProtocol, start: Step, corpus: Step, brought: Mapping[str, str]) -> Step:
    """The gold reward that was brought, or else a reward model of pairs held out from training.

    Raises:
        UserError: none was brought, and no pairs are held out.
    """
    if GOLD in brought:
        return Step(
            stage="gold",
            label="own-gold",
            function="pipelines.data.gold:adopt",
            version=1,
            recipe={},
            upstream={"corpus": corpus},
            assets={GOLD: brought[GOLD]},
        )
    if not protocol.data.share_judge:
        raise UserError(
            "data.share_judge = 0 leaves no pairs for a judge: give a share, or a reward by --gold"
        )
    return Step(
        stage="gold",
        label="held-out-reward-model",
        function="pipelines.data.gold:learn",
        version=1,
        assets=asset_of(protocol.judge.init),
        recipe={"judge": protocol.judge, **protocol.trained_by},
        threads=protocol.compute.shared_threads,
        upstream={"start": start, "corpus": corpus},
    )


def sft(protocol: OwnProtocol, start: Step, corpus: Step, brought: Mapping[str, str]) -> Step:
    """Stage 1 of both pipelines: the model fine-tuned on demonstrations, or where there are none on
    the chosen completions of the pairs."""
    shown = {name: brought[name] for name in (DEMONSTRATIONS,) if name in brought}
    return Step(
        stage="sft",
        label="fine-tuned",
        function=f"pipelines.data.fine_tune:{'train_on_demonstrations' if shown else 'train'}",
        version=1,
        recipe={
            "sft": protocol.sft,
            **({"data": protocol.data} if shown else {}),
            **protocol.trained_by,
        },
        assets=shown,
        threads=protocol.compute.shared_threads,
        upstream={"start": start, "corpus": corpus},
    )


def completions(corpus: Step) -> Step:
    """The completions that the training pairs are made of, each once."""
    return Step(
        stage="completions",
        label="own-pairs",
        function="pipelines.data.corpus:completions",
        version=1,
        recipe={},
        upstream={"corpus": corpus},
    )


def pairs(corpus: Step, completions: Step) -> Step:
    """The training pairs, the same for every seed: nobody draws their labels."""
    return Step(
        stage="pairs",
        label="own-pairs",
        function="pipelines.data.corpus:pairs",
        version=1,
        recipe={},
        upstream={"corpus": corpus, "completions": completions},
    )
