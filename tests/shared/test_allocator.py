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
torch.set_num_threads(1)
network = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(4)])
inputs = torch.randn(4096, 512)
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        network(inputs).square().mean().backward()
        network.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(3)
print(faults(8))
"""


def fetched(call: str, **environment: str) -> int:
    """Pages that eight training steps fetch, which free all tensors that they make."""
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
    # Given back at once, as glibc does until it has learnt how large tensors are; who sets the
    # variables has chosen so, and the call leaves it.
    given_back = {name: "0" for name in SETTINGS} | {"MALLOC_MMAP_MAX_": "65536"}
    most = fetched("assert keep_freed_memory()", **given_back)
    assert fetched("assert keep_freed_memory()") < most / 5


def test_elsewhere_nothing_happens(monkeypatch):
    from pipelines.shared import allocator

    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False
