"""Small real models that every test may use; nothing is fetched."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from pipelines.shared.corpus import train_tokenizer
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec

TEXTS = [
    "a fine, funny and moving film",
    "a dull film that goes nowhere",
    "it is neither here nor there",
] * 4


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=280)


@pytest.fixture
def policy(tokenizer):
    """A GPT-2 with sharp predictions that depend on position: a wrong mask shows."""
    torch.manual_seed(0)
    model = new_policy(ModelSpec(layers=2, width=32, heads=2, context=24), tokenizer).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return model
