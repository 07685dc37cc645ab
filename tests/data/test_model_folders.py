"""A model folder is refused in one line before anything of it is loaded."""

import json

import pytest

from pipelines.data.model_folders import check_folder
from pipelines.shared.errors import UserError
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec


@pytest.fixture
def folder(tokenizer, tmp_path):
    new_policy(ModelSpec(layers=1, width=16, heads=2, context=24), tokenizer).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    check_folder(tmp_path)  # as it is, it is fine
    return tmp_path


def refusal(folder):
    with pytest.raises(UserError) as error:
        check_folder(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(folder)


def test_a_pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "as a pickle only" in refusal(folder)


def test_a_pickle_beside_safetensors_is_not_read(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    check_folder(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refusal(folder)


def test_code_of_its_own(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "asks for code of its own" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_configuration(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json: " in refusal(folder)


def test_no_model_at_all(tmp_path):
    assert "has no config.json" in refusal(tmp_path)
