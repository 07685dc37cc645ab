"""What somebody brings to a comparison: found, and known from then on by its contents' sha256.

Where it lies is no part of a run's identity: the same model under another path is the same model.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.model_folders import CAUSAL, CLASSIFIER, check_folder
from pipelines.shared.assets import BY_IDENTITY, WheelModel
from pipelines.shared.errors import UserError, first_line
from pipelines.shared.files import replace
from pipelines.shared.hub import HubModel, HubSplit, knock, snapshot
from pipelines.shared.steps import Context

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:.+)?")
IGNORED = (".md", ".bin", ".h5", ".msgpack", ".onnx", ".pth", ".pt", ".gguf")  # no part of a model
UNREAD = ("LICENSE", "NOTICE")


@dataclass(frozen=True)
class Brought:
    """One thing that a comparison is made of: somebody's own, or pinned.

    Attributes:
        path: of the file or folder; with the function's name after a colon for a Python function;
            None for an asset, which is found by what pins it.
        name: as it was given, for people.
        sha256: of its contents; for an asset what pins it.
    """

    path: Path | None
    name: str
    sha256: str


def pinned(asset: HubModel | HubSplit | WheelModel) -> Brought:
    """An asset in the place of something of somebody's own."""
    return Brought(None, asset.origin, asset.identity)


def model(given: str, kind: str = CAUSAL) -> Brought:
    """A model's folder, or a hub id whose files are in the hub's cache or can be fetched.

    Args:
        kind: see `model_folders.check_folder`.

    Raises:
        UserError: there is none, or it is refused (see `model_folders.check_folder`).
    """
    local = Path(given).is_dir()
    folder = Path(given).resolve() if local else _from_hub(given)
    check_folder(folder, kind)
    return Brought(folder, folder.name if local else given, digest_of(folder))


def file(given: Path) -> Brought:
    """A file.

    Raises:
        UserError: there is none.
    """
    if not given.is_file():
        raise UserError(f"{given}: there is no such file")
    return Brought(given.resolve(), given.name, digest_of(given))


def pairs(given: str, cache: Path) -> Brought:
    """Preference pairs: a file, or ORG/NAME[:FILE] of the hub: a data set's file, or else the split
    train that it says it has.

    Args:
        cache: where a split is kept as Parquet, so that it is fetched once.

    Raises:
        UserError: there is no such file, and none at hand from the hub.
    """
    if Path(given).exists() or not HUB_ID.fullmatch(given):
        return file(Path(given))
    repository, _, name = given.partition(":")
    try:
        found = _hub_file(repository, name) if name else _hub_split(repository, cache)
    except Exception as error:  # of many kinds: no network, no such data set, not allowed
        reason = first_line(error)
        raise UserError(
            f"{given}: is neither a file nor at hand from the hub ({reason}): fetch it with "
            f"`hf download --repo-type dataset {repository}` where the hub can be reached, and "
            "name one of its files"
        ) from None
    return Brought(found, given, digest_of(found))


def _hub_file(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, repo_type="dataset"))


def _hub_split(repository: str, cache: Path) -> Path:
    """The split train, as a Parquet file in the cache."""
    kept = cache / "pairs" / f"{repository.replace('/', '--')}.parquet"
    if not kept.is_file():
        from datasets import load_dataset

        rows: Any = load_dataset(repository, split="train")
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace(kept, lambda temporary: rows.to_parquet(temporary))
    return kept


def reward(given: str) -> Brought:
    """A gold reward: FILE.py:FUNCTION, or a classifier as `model` takes it.

    The file must stand by itself: what it imports besides libraries, or reads, is not known here.

    Raises:
        UserError: there is none.
    """
    path, colon, name = given.rpartition(":")
    if not (colon and path.endswith(".py")):
        return model(given, CLASSIFIER)
    if not name.isidentifier():
        raise UserError(f"--gold {given}: {name!r} is no name of a function")
    source = Path(path).resolve()
    file(source)
    place = source.with_name(f"{source.name}:{name}")
    return Brought(place, place.name, digest_of(place))


def digest_of(path: Path) -> str:
    """sha256 (hex): of a file's bytes; of a model folder's files and their names; of a function's
    file and name."""
    if path.is_dir():
        files = {each.relative_to(path): each for each in path.rglob("*") if each.is_file()}
        parts = {
            name.as_posix(): _sha256(each)
            for name, each in files.items()
            if not any(part.startswith(".") for part in name.parts)
            and name.suffix not in IGNORED
            and name.name not in UNREAD
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    source, name = function_of(path)
    if name:
        return hashlib.sha256(f"{_sha256(source)}:{name}".encode()).hexdigest()
    return _sha256(path)


def function_of(path: Path) -> tuple[Path, str]:
    """The file and the function's name of FILE.py:FUNCTION; "" for any other path."""
    source, _, name = path.name.partition(".py:")
    return (path.with_name(f"{source}.py"), name) if name else (path, "")


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _from_hub(given: str) -> Path:
    """The folder of a hub model in the hub's cache, fetched if it is not there."""
    asked: dict[str, Any] = {"ignore_patterns": [f"*{suffix}" for suffix in IGNORED]}
    problem: Exception | None = None
    try:
        knock()
    except Exception as error:  # of many kinds: what was fetched before will do
        problem, asked["local_files_only"] = error, True
    try:
        return Path(snapshot(given, **asked))
    except Exception as error:  # of many kinds: no network, no such model, not allowed
        reason = first_line(problem or error)
        raise UserError(
            f"{given}: is neither a model's folder nor at hand from the hub ({reason}): name a "
            f"folder in Transformers' format, or fetch it with `hf download {given}` where the hub "
            "can be reached"
        ) from None


def of(context: Context, name: str) -> Path:
    """Where something that a step knows by its digest lies on this machine.

    Raises:
        UserError: it has been changed or moved since the command began.
    """
    wanted = context.step.assets[name]
    asset = BY_IDENTITY.get(wanted)
    if isinstance(asset, HubSplit):
        return asset.file(context.runtime.cache)
    if isinstance(asset, HubModel | WheelModel):
        return asset.folder(context.runtime.cache)
    path = context.runtime.brought.get(wanted)
    if path is None:
        raise UserError(
            f"{name}: sha256 {wanted[:12]}... was not brought: name it on the command line"
        )
    if not function_of(path)[0].exists():
        raise UserError(f"{name}: {path} is not there on this machine")
    if digest_of(path) != wanted:
        raise UserError(f"{name}: {path} was changed since the command began: run it again")
    return path
