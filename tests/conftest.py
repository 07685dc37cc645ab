"""Small real models that every test may use; nothing is fetched."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import math

import pytest
import torch
from torch.utils.flop_counter import register_flop_formula

from pipelines.shared.corpus import train_tokenizer
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec

if hasattr(torch.ops.mkldnn, "_linear_pointwise"):

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def by_onednn(x_shape, weight_shape, *unused, **more):
        """Of `kernels.onednn`, which torch's counter does not know."""
        return 2 * math.prod(x_shape) * weight_shape[0]


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
