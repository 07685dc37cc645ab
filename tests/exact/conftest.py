"""A made task in a folder, and its oracle."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.exact.specs import TaskSpec
from pipelines.exact.task import Task, make
from pipelines.shared.ledger import Ledger
from pipelines.shared.models import load_policy, load_tokenizer
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step


def made(folder, **spec):
    torch.manual_seed(0)
    context = SimpleNamespace(
        step=Step("arm", "s0", "a:b", 1, {}),
        path=folder,
        seed=0,
        spec=lambda name: TaskSpec(**spec),
        runtime=Runtime(results=Path(), cache=Path()),
        ledger=Ledger(),
        progress=lambda *state: None,
        log=lambda row: None,
    )
    make(context)
    return SimpleNamespace(
        folder=folder,
        task=Task(folder),
        reference=load_policy(folder / "checkpoint"),
        tokenizer=load_tokenizer(folder / "checkpoint"),
    )


@pytest.fixture(scope="session")
def fixed(tmp_path_factory):
    """4 symbols, 3 tokens, no EOS."""
    return made(tmp_path_factory.mktemp("fixed"), reference_sequences=1024)


@pytest.fixture(scope="session")
def ending(tmp_path_factory):
    """3 symbols, up to 3 tokens, EOS."""
    folder = tmp_path_factory.mktemp("ending")
    return made(folder, symbols=3, eos=True, reference_sequences=1024)
