"""The stages that every arm shares where a pretrained model goes on with labelled texts. Inert.

Its completions are compared by a simulated labeller, as those of a model made from scratch are.
"""

from pipelines.data import pipeline as own
from pipelines.data.pipeline import GOLD, MODEL
from pipelines.data.specs import FINE_TUNED, TEXTS, PretrainedProtocol
from pipelines.shared.assets import ASSETS
from pipelines.shared.steps import Step


def start(protocol: PretrainedProtocol) -> Step:
    """The pretrained model, with a padding token where it has none."""
    name = protocol.start.model
    return own.start({MODEL: ASSETS[name].identity}, label=name)


def corpus(protocol: PretrainedProtocol, start: Step) -> Step:
    """Texts in the model's tokens, and splits."""
    source = protocol.corpus.source
    return Step(
        stage="corpus",
        label=source,
        function="pipelines.data.texts:prepare",
        version=1,
        recipe={"corpus": protocol.corpus},
        upstream={"start": start},
        assets={name: ASSETS[name].identity for name in TEXTS[source]},
    )


def gold(protocol: PretrainedProtocol, start: Step, corpus: Step) -> Step:
    """A sentiment classifier: pinned, or fine-tuned on the texts' labels."""
    name = protocol.gold.model
    if name != FINE_TUNED:
        return Step(
            stage="gold",
            label=name,
            function="pipelines.data.classifier:adopt",
            version=1,
            recipe={},
            upstream={"corpus": corpus},
            assets={GOLD: ASSETS[name].identity},
        )
    return Step(
        stage="gold",
        label="fine-tuned-classifier",
        function="pipelines.data.classifier:fit",
        version=1,
        recipe={"gold": protocol.gold, **protocol.trained_by},
        threads=protocol.compute.shared_threads,
        upstream={"start": start, "corpus": corpus},
    )


def sft(protocol: PretrainedProtocol, start: Step, corpus: Step) -> Step:
    """Stage 1 of both pipelines: the model fine-tuned on the texts."""
    return Step(
        stage="sft",
        label=f"{protocol.start.model}-fine-tuned",
        function="pipelines.data.fine_tune:train_on_texts",
        version=1,
        recipe={"sft": protocol.sft, **protocol.trained_by},
        threads=protocol.compute.shared_threads,
        upstream={"start": start, "corpus": corpus},
    )
