"""Policies, reward models and value models: plain Transformers models in plain folders."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipelines.shared.kernels import with_fast_kernels
from pipelines.shared.logprobs import Sequences
from pipelines.shared.reading import as_mask, mlp_at, unwrapped
from pipelines.shared.specs import ModelSpec


def new_policy(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A freshly initialised GPT-2 of the given size, dropout off, from torch's global generator."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=spec.context,
        n_embd=spec.width,
        n_layer=spec.layers,
        n_head=spec.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return with_fast_kernels(GPT2LMHeadModel(config))


def load_policy(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """A causal LM in fp32, in evaluation mode."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return with_fast_kernels(model).to(device).eval()


def load_config(folder: Path) -> Any:
    """The configuration of a model's text part."""
    return AutoConfig.from_pretrained(folder).get_text_config()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def new_reward_model(
    policy_folder: Path, init: str = "sft", like: Path | None = None
) -> PreTrainedModel:
    """A reward model: the SFT model's trunk with a fresh scalar head.

    The head's weights are drawn from N(0, 1/(d + 1)), standard deviation 1/sqrt(d + 1) (Stiennon et
    al. 2020, as in lm-human-preferences), from torch's global generator.

    Args:
        init: sft, or random for a trunk that was never trained.
        like: a policy whose padding and number of tokens it takes over; dropout is off then.
    """
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        policy_folder, num_labels=1, dtype=torch.float32
    )
    if init == "random":
        model = AutoModelForSequenceClassification.from_config(model.config, dtype=torch.float32)
    if like is not None:
        take_over(model, load_config(like))
    width = model.config.get_text_config().hidden_size
    torch.nn.init.normal_(model.score.weight, std=1 / (width + 1) ** 0.5)
    return with_fast_kernels(model)


DROPOUT = ("dropout", "pdrop")  # in the names of a configuration's fields


def without_dropout(config: Any) -> None:
    """Set every dropout probability of a configuration to 0, as all arms are trained."""
    for name, value in vars(config).items():
        if isinstance(value, float) and any(part in name for part in DROPOUT):
            setattr(config, name, 0.0)


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability to 0, of modules and of attention that holds it as a number."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def take_over(model: Any, config: Any) -> None:
    """Give a pretrained model another's padding, and at least as many embeddings."""
    own = model.config.get_text_config()
    own.pad_token_id = config.pad_token_id
    if model.get_input_embeddings().num_embeddings <= config.pad_token_id:
        model.resize_token_embeddings(config.vocab_size)
    disable_dropout(model)
    without_dropout(own)


def load_reward_model(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """A trained reward model in fp32, in evaluation mode; its config holds `reward_mean`."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return with_fast_kernels(model).to(device).eval()


def token_values(
    model: PreTrainedModel, sequences: Sequences, read: torch.Tensor | None = None
) -> torch.Tensor:
    """The scalar head at every position, less the model's `reward_mean`, over its `reward_std`:
    (B, T).

    `reward_mean` is the mean raw score of the SFT model's completions, so that these score 0 on
    average (Huang et al. 2024, detail on reward normalisation).

    Args:
        read: (B, T) bool, the positions that somebody reads: the others' values mean nothing then.
    """
    plain: Any = unwrapped(model)
    trunk = getattr(plain, plain.base_model_prefix)
    with mlp_at(model, read) if read is not None else contextlib.nullcontext():
        hidden = trunk(**sequences.model_inputs(), use_cache=False).last_hidden_state
    centred = plain.score(hidden).squeeze(-1) - getattr(plain.config, "reward_mean", 0.0)
    return centred / getattr(plain.config, "reward_std", 1.0)


def rewards(model: PreTrainedModel, sequences: Sequences) -> torch.Tensor:
    """The score of each sequence, read at its last real token: (B,)."""
    ends = torch.arange(len(sequences.input_ids), device=sequences.input_ids.device), sequences.last
    return token_values(model, sequences, as_mask(ends, sequences.shape))[ends]
