"""Where the stages that all arms of a comparison share come from."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipelines.data import labelled
from pipelines.data import pipeline as own
from pipelines.data.brought import Brought
from pipelines.rlhf.pipeline import sft
from pipelines.shared import pipeline as simulated
from pipelines.shared.steps import Step


@dataclass(frozen=True)
class Shared:
    """What is the same for all seeds and all settings of the arms, as inert steps.

    Attributes:
        completions: that the pairs are made of.
    """

    corpus: Step
    gold: Step
    sft: Step
    completions: Step


@dataclass(frozen=True)
class Stages:
    """How the shared stages are made.

    Attributes:
        human: whether people compared the completions, and some of their pairs are held out.
        brought: what is the user's own, by the name that steps know it by.
    """

    human: ClassVar[bool] = False
    brought: Mapping[str, Brought] = field(default_factory=dict)

    def shared(self, protocol: Any) -> Shared:
        """See `Shared`."""
        raise NotImplementedError

    def pairs(self, protocol: Any, shared: Shared, seed: int) -> Step:
        """The training pairs of a seed."""
        raise NotImplementedError


class Simulated(Stages):
    """A model made from scratch on real text; a simulated labeller compares its completions, the
    seed drawing the labels."""

    def shared(self, protocol: Any) -> Shared:
        corpus = simulated.corpus(protocol)
        gold, start = simulated.gold(protocol, corpus), sft(protocol, corpus)
        completions = simulated.completions(protocol, corpus, gold, start)
        return Shared(corpus, gold, start, completions)

    def pairs(self, protocol: Any, shared: Shared, seed: int) -> Step:
        return simulated.pairs(protocol, shared.completions, seed)


class Pretrained(Stages):
    """A pretrained model on labelled texts; a simulated labeller compares its completions, the seed
    drawing the labels."""

    def shared(self, protocol: Any) -> Shared:
        start = labelled.start(protocol)
        corpus = labelled.corpus(protocol, start)
        gold, policy = (
            labelled.gold(protocol, start, corpus),
            labelled.sft(protocol, start, corpus),
        )
        completions = simulated.completions(protocol, corpus, gold, policy)
        return Shared(corpus, gold, policy, completions)

    def pairs(self, protocol: Any, shared: Shared, seed: int) -> Step:
        return simulated.pairs(protocol, shared.completions, seed)


class Own(Stages):
    """Somebody's model and pairs; the same pairs for every seed."""

    human: ClassVar[bool] = True

    def shared(self, protocol: Any) -> Shared:
        digests = {name: thing.sha256 for name, thing in self.brought.items()}
        start = own.start(digests)
        corpus = own.corpus(protocol, start, digests)
        gold = own.gold(protocol, start, corpus, digests)
        return Shared(
            corpus, gold, own.sft(protocol, start, corpus, digests), own.completions(corpus)
        )

    def pairs(self, protocol: Any, shared: Shared, seed: int) -> Step:
        return own.pairs(shared.corpus, shared.completions)


class Relabelled(Own):
    """Somebody's pairs teach the gold reward, a reward model that nothing else learns from; it
    labels completions of the SFT model, the seed drawing the labels (Gao et al. 2022)."""

    human: ClassVar[bool] = False

    def shared(self, protocol: Any) -> Shared:
        made = super().shared(protocol)
        sampled = simulated.completions(protocol, made.corpus, made.gold, made.sft)
        return dataclasses.replace(made, completions=sampled)

    def pairs(self, protocol: Any, shared: Shared, seed: int) -> Step:
        return simulated.pairs(protocol, shared.completions, seed)
