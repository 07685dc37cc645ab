"""Rows of `results.csv`: one comparison each."""

import csv
import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One comparison; medians over ticks.

    Attributes:
        what: dpo step, ppo update, ppo update (shared trunk), reward step, decode.
        ours, peer: in `unit`: s a tick, or tok/s.
        ratio: above 1 where ours is faster.
        share_of_gemm_peak: seconds of our tick's matrix products alone, as a share of its seconds.
        date: of the measurement, UTC.
        versions: of the libraries, separated by "; ".
        cpu: its name and the number of its cores.
    """

    what: str
    model: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    ratio: float
    share_of_gemm_peak: float
    threads: int
    date: str
    versions: str
    cpu: str

    @property
    def key(self) -> tuple[str, ...]:
        """What is compared, and where; a newer row takes the place of an older one."""
        return self.cpu, self.what, self.model, self.peer_name, str(self.threads)


def ratio(ours: float, peer: float, unit: str) -> float:
    """How many times faster ours is."""
    return peer / ours if unit == "s" else ours / peer


def compared(
    what: str,
    model: str,
    threads: int,
    ours: Sequence[float],
    peer: Sequence[float],
    peer_name: str,
    floor: Sequence[float],
    versions: str,
    tokens: int = 0,
) -> Row:
    """A row from the seconds of each tick, and of our tick's matrix products alone.

    Args:
        tokens: of a tick, where tokens per second are compared; 0: seconds are.
    """
    mine, theirs = statistics.median(ours), statistics.median(peer)
    share = statistics.median(floor) / mine
    unit = "tok/s" if tokens else "s"
    if tokens:
        mine, theirs = tokens / mine, tokens / theirs
    return Row(
        what=what,
        model=model,
        ours=significant(mine),
        peer=significant(theirs),
        peer_name=peer_name,
        unit=unit,
        ratio=round(ratio(mine, theirs, unit), 3),
        share_of_gemm_peak=round(share, 3),
        threads=threads,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        versions=versions,
        cpu=cpu(),
    )


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")


def cpu() -> str:
    """The processor's name and the number of its cores."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name or platform.machine()}, {os.cpu_count()} cores"


def markdown(path: Path) -> str:
    """The tables of a `results.csv` for readers, one for each processor, with the versions."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = []
    for processor in sorted({row["cpu"] for row in rows}):
        measured = [row for row in rows if row["cpu"] == processor]
        lines = [
            f"| {processor} | model | threads | ours | peer | ratio | of the GEMM peak | against |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        lines += [
            f"| {row['what']} | {row['model']} | {row['threads']} | {row['ours']} {row['unit']} "
            f"| {row['peer']} {row['unit']} | {float(row['ratio']):.2f} "
            f"| {float(row['share_of_gemm_peak']):.0%} | {row['peer_name']} |"
            for row in measured
        ]
        when = sorted({f"{row['date']}; {row['versions']}" for row in measured})
        parts.append("\n".join([*lines, "", "<br>\n".join(when)]))
    return "\n\n".join(parts) + "\n"


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows beside those that the file already has of other comparisons, all at once: a
    reader, or a run that is killed, finds the old file or the new one."""
    names = [field.name for field in fields(Row)]
    table = {row.key: asdict(row) for row in rows}
    if path.exists():
        with path.open(newline="") as file:
            for old in csv.DictReader(file):
                key = tuple(old[name] for name in ("cpu", "what", "model", "peer_name", "threads"))
                table.setdefault(key, old)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table[key] for key in sorted(table))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
