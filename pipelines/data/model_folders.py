"""A model that somebody brings: what must be true of it before anything is loaded.

Weights come from safetensors alone (a pickle runs code when it is read), and no code that lies
beside a model is ever run.
"""

import json
from pathlib import Path
from typing import Any

from pipelines.shared.errors import UserError
from pipelines.shared.hub import TOKENIZERS

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
CAUSAL, CLASSIFIER = "causal language model", "sequence classifier"
ARCHITECTURES = {
    CAUSAL: ("ForCausalLM", "LMHeadModel"),
    CLASSIFIER: ("ForSequenceClassification",),
}


def check_folder(folder: Path, kind: str = "") -> None:
    """Hold a folder against what Transformers needs of a model.

    Args:
        kind: CAUSAL or CLASSIFIER, which its architecture must be one of; "" for either.

    Raises:
        UserError: what it lacks, or why it is refused.
    """
    config = _config(folder)
    if config.get("auto_map"):
        raise UserError(
            f"{folder}: the model asks for code of its own (auto_map in config.json), which is "
            "never run: use one that Transformers knows by itself"
        )
    named = config.get("architectures") or []
    if kind and not any(end in name for name in named for end in ARCHITECTURES[kind]):
        raise UserError(
            f"{folder}: is no {kind} (architectures in config.json: {', '.join(named) or 'none'})"
        )
    files = {file.name for file in folder.iterdir()}
    if not files.intersection(WEIGHTS):
        if files.intersection(PICKLES):
            raise UserError(
                f"{folder}: has its weights as a pickle only, which runs code when it is read: "
                "save them with save_pretrained, which writes model.safetensors"
            )
        raise UserError(f"{folder}: has no weights (model.safetensors)")
    if not files.intersection(TOKENIZERS):
        raise UserError(
            f"{folder}: has no tokenizer ({', '.join(TOKENIZERS)}): save it there with "
            "tokenizer.save_pretrained"
        )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: has no config.json: it is no model in Transformers' format"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must be a JSON object")
    return config
