"""The allocator's settings, by the pages that a process has to fetch."""

import os
import subprocess
import sys

import pytest

from pipelines.shared.allocator import SETTINGS

FAULTS = """
import resource
from pipelines.shared.allocator import keep_freed_memory
{call}
import torch
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(2**23)  # 32 MiB: 8,192 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(1)
print(faults(8))
"""
PAGES = 8 * 2**25 // os.sysconf("SC_PAGE_SIZE")


def fetched(call: str, **environment: str) -> int:
    """Pages fetched for eight tensors, made and freed one after another."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    done = subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(os, "confstr"), reason="the settings are glibc's"
)
def test_memory_that_was_freed_is_not_fetched_again():
    assert fetched("") > PAGES / 2, "by default it is: else the test means nothing"
    assert fetched("assert keep_freed_memory()") < PAGES / 100
    # Who sets the variables has chosen otherwise.
    chosen = {name: "0" for name in SETTINGS} | {"MALLOC_MMAP_MAX_": "65536"}
    assert fetched("assert keep_freed_memory()", **chosen) > PAGES / 2


def test_elsewhere_nothing_happens(monkeypatch):
    from pipelines.shared import allocator

    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False
