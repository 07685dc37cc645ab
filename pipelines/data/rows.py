"""Rows of a file that somebody brings: JSON Lines, JSON, CSV or Parquet, also compressed by gzip.

What is wrong with the file as a whole (no such file, not UTF-8, a damaged gzip, a line without
end) is a `UserError`: what comes after it cannot be trusted. What is wrong with one row is noted on
it, so that all such rows can be named at once.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.shared.errors import UserError

LONGEST_LINE = 16 * 2**20  # bytes; a preference pair of more is a file that lost its line ends
LARGEST_JSON = 2**28  # bytes; a JSON array has to be read as a whole
FORMATS = ("jsonl", "json", "csv", "parquet")


@dataclass(frozen=True)
class Row:
    """A row as it stands in the file.

    Attributes:
        number: of its (first) line where the format has lines, or else of the row; from 1.
        fields: by column; empty where the row could not be read.
        problem: why it could not be read, or "".
    """

    number: int
    fields: dict[str, Any]
    problem: str = ""


def unit_of(path: Path) -> str:
    """What the numbers of a file's rows count: line or row."""
    return "line" if format_of(path) in ("jsonl", "csv") else "row"


def format_of(path: Path) -> str:
    """jsonl, json, csv or parquet, by the file's name.

    Raises:
        UserError: it is none of them.
    """
    name = path.name.lower().removesuffix(".gz")
    suffix = name.rpartition(".")[2].replace("ndjson", "jsonl")
    if suffix not in FORMATS:
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise UserError(f"{path}: the name must end in one of {endings} (or these and .gz)")
    return suffix


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one after another; a JSON Lines or CSV file is never held as a whole.

    Raises:
        UserError: the file cannot be read on; says where and why.
    """
    reader = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}[format_of(path)]
    last = 0
    try:
        with open(path, "rb") as file:
            content: Any = gzip.open(file) if path.name.lower().endswith(".gz") else file
            for row in reader(path, content):
                last = row.number
                yield row
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: the gzip file is damaged or cut off after {unit_of(path)} {last} ({error}): "
            "fetch it again"
        ) from None
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path, content: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, decoded."""
    number = 0
    while line := content.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"{path}, line {number}: longer than {LONGEST_LINE // 2**20} MiB: the file has "
                "lost its line ends, or is not what its name says"
            )
        yield number, _decoded(path, line, f"line {number}", start=number == 1)


def _decoded(path: Path, data: bytes, where: str, start: bool) -> str:
    try:
        return data.decode("utf-8-sig" if start else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, {where}: byte {error.start + 1} of it is not UTF-8: save the file as UTF-8"
        ) from None


def _jsonl(path: Path, content: IO[bytes]) -> Iterator[Row]:
    for number, line in _lines(path, content):
        if not line.strip():
            continue
        try:
            yield _record(number, json.loads(line))
        except ValueError as error:
            yield Row(number, {}, f"is not JSON ({_reason(error)})")
        except RecursionError:
            yield Row(number, {}, "is not JSON (nested too deeply)")


def _json(path: Path, content: IO[bytes]) -> Iterator[Row]:
    data = content.read(LARGEST_JSON + 1)
    if len(data) > LARGEST_JSON:
        raise UserError(
            f"{path}: larger than {LARGEST_JSON // 2**20} MiB: save it as JSON Lines (.jsonl)"
        )
    text = _decoded(path, data, "the file", start=True)
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{where}: is not JSON ({_reason(error)})") from None
    if not isinstance(records, list):
        raise UserError(f"{path}: must be a JSON array of objects, is {_kind(records)}")
    for number, record in enumerate(records, start=1):
        yield _record(number, record)


def _record(number: int, record: Any) -> Row:
    if isinstance(record, dict):
        return Row(number, record)
    return Row(number, {}, f"is {_kind(record)}, not an object")


def _csv(path: Path, content: IO[bytes]) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    lines = (line for _, line in _lines(path, content))
    reader = csv.reader(lines, strict=True)
    begun = 1
    try:
        header = next(reader, None)
        if header is None:
            return
        twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
        if twice:
            raise UserError(f"{path}, line 1: two columns are called {twice[0]!r}")
        begun = reader.line_num + 1
        for values in reader:
            number, begun = begun, reader.line_num + 1
            if not values:
                continue
            if len(values) != len(header):
                yield Row(
                    number, {}, f"has {len(values)} fields where the header has {len(header)}"
                )
                continue
            yield Row(number, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {begun}: is not CSV ({error})") from None


def _parquet(path: Path, content: IO[bytes]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    source = io.BytesIO(content.read()) if isinstance(content, gzip.GzipFile) else content
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield Row(number, record)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: is not a whole Parquet file ({str(error).splitlines()[0]})"
        ) from None


def _reason(error: Exception) -> str:
    """A parser's message without its own positions."""
    return error.msg.lower() if isinstance(error, json.JSONDecodeError) else "cannot be parsed"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")
