"""Assets from the Hugging Face hub: a model, or a split of a data set, at one pinned revision.

A revision is a commit's hash, and so an identity: the same files on every machine. They are looked
for in the hub's own cache ($HF_HUB_CACHE), where `hf download` puts them, and fetched where they
are not there.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.shared.errors import UserError, first_line
from pipelines.shared.files import replace

# Of a model: nothing in it is ever run, and of weights in several formats one is enough.
SAFE = "*.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
PARTS = ("*.json", "*.txt", "*.model", "*.jinja", SAFE)
PICKLED = "pytorch_model*.bin"


@dataclass(frozen=True)
class Shape:
    """A decoder's size, to tell before it is at hand what it will take.

    Attributes:
        inner: width of its MLPs.
    """

    layers: int
    width: int
    inner: int
    vocabulary: int
    heads: int
    key_heads: int = 0
    gated: bool = False

    @property
    def body(self) -> int:
        """Weights of the blocks' matrix products."""
        keys = (self.key_heads or self.heads) * self.width // self.heads
        attention = 2 * self.width * self.width + 2 * self.width * keys
        return self.layers * (attention + (3 if self.gated else 2) * self.width * self.inner)

    @property
    def head(self) -> int:
        """Weights of the LM head."""
        return self.width * self.vocabulary


@dataclass(frozen=True)
class HubModel:
    """A model of the hub.

    Attributes:
        name: by which settings and steps know it.
        revision: a commit's hash, 40 hex digits.
        shape: of a causal language model; None for a classifier.
        pickled: its weights may be a pickle at this revision: they are then read once, as tensors
            alone (PyTorch's weights_only, which runs no code), and kept as safetensors.
    """

    name: str
    repository: str
    revision: str
    licence: str
    source: str
    shape: Shape | None = None
    pickled: bool = False

    @property
    def identity(self) -> str:
        """What steps are keyed by."""
        return self.revision

    @property
    def origin(self) -> str:
        """Where it is from, for people."""
        return f"{self.repository}@{self.revision[:12]}"

    def prepare(self, cache: Path) -> None:
        """Have it at hand. Raises `UserError` as `folder`."""
        self.folder(cache)

    def folder(self, cache: Path) -> Path:
        """Its folder in Transformers' format, with safetensors.

        Raises:
            UserError: it is not at hand and the hub cannot be reached.
        """
        kept = cache / "models" / f"{self.name}-{self.revision[:12]}"
        if (kept / "config.json").is_file():
            return kept
        found = _local(self, "model", PARTS)
        if found is None and self.pickled:
            found = _local(self, "model", (*PARTS, PICKLED))
        if found is None:
            found = _fetched(self, "model", PARTS)
            if self.pickled and not any(found.glob(SAFE)):
                found = _fetched(self, "model", (*PARTS, PICKLED))
        if any(found.glob(SAFE)):
            return found
        from pipelines.shared.convert import from_pickle  # loads torch

        from_pickle(found, kept)
        return kept


@dataclass(frozen=True)
class HubSplit:
    """Files of a data set of the hub that make up one split of it.

    Attributes:
        files: a pattern of their paths in the repository, such as data/train-*.parquet.
        count: how many there are: the hub's cache may hold some of them.
    """

    name: str
    repository: str
    revision: str
    files: str
    count: int
    licence: str
    source: str

    @property
    def identity(self) -> str:
        """What steps are keyed by."""
        return f"{self.revision}:{self.files}"

    @property
    def origin(self) -> str:
        """Where it is from, for people."""
        return f"{self.repository}@{self.revision[:12]}, {self.files}"

    def prepare(self, cache: Path) -> None:
        """Have it at hand. Raises `UserError` as `file`."""
        self.file(cache)

    def file(self, cache: Path) -> Path:
        """The split as one file: the hub's own, or a Parquet file of several in the cache.

        Raises:
            UserError: it is not at hand and the hub cannot be reached, there is no such file, or
                one cannot be read.
        """
        pattern = hashlib.sha256(self.files.encode()).hexdigest()[:8]
        kept = cache / "data" / f"{self.name}-{self.revision[:12]}-{pattern}.parquet"
        if kept.is_file():
            return kept
        patterns = (self.files,)
        folder = _local(self, "dataset", patterns) or _fetched(self, "dataset", patterns)
        found = sorted(folder.glob(self.files))
        if not found:
            raise UserError(f"{self.origin}: there is no such file")
        if len(found) == 1:
            return found[0]
        table = _together(found)
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace(kept, lambda temporary: table.to_parquet(temporary))
        return kept


HubAsset = HubModel | HubSplit


def _together(paths: Sequence[Path]) -> Any:
    """The rows of Parquet or JSON Lines files as one table."""
    import pandas as pd

    def read(path: Path) -> Any:
        try:
            if path.suffix == ".parquet":
                return pd.read_parquet(path)
            return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
        except Exception as error:  # of many kinds: cut off, another format
            reason = first_line(error)
            raise UserError(f"{path}: cannot be read ({reason}): fetch it again") from None

    return pd.concat([read(path) for path in paths], ignore_index=True)


def _asked(asset: HubAsset, kind: str, patterns: tuple[str, ...]) -> dict[str, Any]:
    return {"revision": asset.revision, "repo_type": kind, "allow_patterns": list(patterns)}


def _local(asset: HubAsset, kind: str, patterns: tuple[str, ...]) -> Path | None:
    """The folder of an asset's files in the hub's cache; None where they are not all there."""
    try:
        asked = _asked(asset, kind, patterns)
        found = Path(snapshot(asset.repository, local_files_only=True, **asked))
    except Exception:  # of many kinds: not there, or not all of it
        return None
    if isinstance(asset, HubSplit):
        return found if len(list(found.glob(asset.files))) == asset.count else None
    return found if _is_model(found, PICKLED in patterns) else None


def _fetched(asset: HubAsset, kind: str, patterns: tuple[str, ...]) -> Path:
    """The same, fetched."""
    try:
        knock()
        return Path(snapshot(asset.repository, **_asked(asset, kind, patterns)))
    except Exception as error:  # of many kinds: no network, not allowed, no such revision
        raise NotAtHand(asset, kind, patterns, error) from None


def _is_model(folder: Path, pickled: bool) -> bool:
    """Whether a folder of the hub's cache has configuration, tokenizer and all weights: there may
    have been another question before."""
    needed = [folder / "config.json"]
    for index in folder.glob("*.index.json"):
        if index.name.startswith("model.safetensors") or pickled:
            named = json.loads(index.read_text())["weight_map"].values()
            needed += [folder / name for name in named]
    weights = [*folder.glob(SAFE), *(folder.glob(PICKLED) if pickled else ())]
    tokenizers = [name for name in TOKENIZERS if (folder / name).is_file()]
    return all(path.is_file() for path in needed) and bool(weights) and bool(tokenizers)


def snapshot(repository: str, **asked: Any) -> str:
    """`huggingface_hub.snapshot_download`, which tells of its troubles by what it raises alone."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    return str(snapshot_download(repository, **asked))


def knock() -> None:
    """Ask once whether the hub answers, where its own calls ask six times in half a minute.

    Raises:
        Exception: of many kinds, where it does not.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    get_session().head(constants.ENDPOINT, timeout=10)


class NotAtHand(UserError):
    """An asset of the hub is not in its cache, and cannot be fetched.

    Attributes:
        asset: the asset. what: the same, for people.
        kind, patterns: of the repository and the files that were asked for.
        reason: why it could not be fetched here.
    """

    def __init__(
        self, asset: HubAsset, kind: str, patterns: tuple[str, ...], error: Exception
    ) -> None:
        self.asset, self.kind, self.patterns = asset, kind, patterns
        self.what = f"{'data set' if kind == 'dataset' else 'model'} {asset.repository}"
        self.reason = first_line(error)
        super().__init__(missing_line([self]))


def missing_line(missing: Sequence[NotAtHand]) -> str:
    """One line that names what is not at hand, and the commands that fetch it."""
    what = ", ".join(dict.fromkeys(each.what for each in missing))
    are = "are" if len(missing) > 1 else "is"
    return (
        f"{what} {are} not in the hub's cache and cannot be fetched ({missing[0].reason}): where "
        f"there is a network run `{'; '.join(commands(missing))}`"
    )


def commands(missing: Iterable[NotAtHand]) -> list[str]:
    """What fetches assets where there is a network: one command a repository."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for each in missing:
        kind = " --repo-type dataset" if each.kind == "dataset" else ""
        start = f"hf download {each.asset.repository}{kind}"
        chosen = [f"--include '{each.patterns[0]}'"] if kind else []
        wanted.setdefault((start, each.asset.revision), []).extend(chosen)
    return [
        " ".join([start, *chosen, f"--revision {revision}"])
        for (start, revision), chosen in wanted.items()
    ]
