"""A pretrained model, made into what every stage takes: a plain folder with a PAD."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pipelines.data.brought import of
from pipelines.data.encoding import with_padding
from pipelines.data.pipeline import MODEL
from pipelines.shared.errors import UserError
from pipelines.shared.models import load_tokenizer, without_dropout
from pipelines.shared.steps import Context


def load_causal(folder: Path) -> Any:
    """A causal language model in fp32, from safetensors alone.

    Raises:
        ValueError: weights are missing, which Transformers would make up at random; and what
            Transformers raises.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, told = loaded
    if told["missing_keys"]:
        raise ValueError(f"has no {', '.join(sorted(told['missing_keys'])[:3])}")
    return model


def adopt(context: Context) -> None:
    """Step: write checkpoint/, in fp32 and with dropout off, as all arms are trained.

    Raises:
        UserError: Transformers cannot load it as a causal language model.
    """
    folder = of(context, MODEL)
    try:
        tokenizer = with_padding(load_tokenizer(folder))
        model: Any = load_causal(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{folder}: is no causal language model that loads ({reason})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{folder}: its tokenizer has no eos_token: name the token that ends a text"
        )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # the new rows: the mean of the others
    config = model.config.get_text_config()
    without_dropout(config)
    config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig.from_model_config(model.config)  # ours samples
    model.save_pretrained(context.path / "checkpoint")
    tokenizer.save_pretrained(context.path / "checkpoint")
    context.log({"parameters": model.num_parameters(), "vocabulary": len(tokenizer)})
