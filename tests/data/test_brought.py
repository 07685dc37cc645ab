"""What people bring is known by its contents, not by where it lies."""

import json
import shutil

import pytest

from pipelines.data import brought
from pipelines.data.pairs import read_pairs
from pipelines.shared.errors import UserError
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec, Runtime


@pytest.fixture
def model(tokenizer, tmp_path):
    folder = tmp_path / "model"
    spec = ModelSpec(layers=1, width=16, heads=2, context=24)
    new_policy(spec, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_same_model_elsewhere_is_the_same_and_another_is_not(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "renamed")
    found, again = brought.model(str(model)), brought.model(str(copy))
    assert found.sha256 == again.sha256 and again.name == "renamed"
    (copy / "README.md").write_text("a model card is no part of the model")
    assert brought.digest_of(copy) == found.sha256
    (copy / "LICENSE").write_text("nor is its licence")
    assert brought.digest_of(copy) == found.sha256
    (copy / "templates").mkdir()
    (copy / "templates" / "tool.jinja").write_text("what lies in a folder is")
    assert brought.digest_of(copy) != found.sha256
    shutil.rmtree(copy / "templates")
    (copy / "config.json").rename(copy / "other.json")
    assert brought.digest_of(copy) != found.sha256, "and so are the files' names"
    (copy / "other.json").rename(copy / "config.json")
    (copy / "model.safetensors").write_bytes(b"x" + (copy / "model.safetensors").read_bytes()[1:])
    assert brought.digest_of(copy) != found.sha256


def test_a_model_of_another_kind_is_refused(model, monkeypatch):
    monkeypatch.chdir(model)
    assert brought.model(".").name == "model"
    with pytest.raises(UserError, match=r"is no sequence classifier .*GPT2LMHeadModel"):
        brought.reward(str(model))
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["RobertaForMaskedLM"]
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is no causal language model .*RobertaForMaskedLM"):
        brought.model(str(model))


def test_a_function_is_its_file_and_its_name(tmp_path):
    file = tmp_path / "reward.py"
    file.write_text("def good(prompts, completions): return [0.0] * len(prompts)\n")
    good, bad = (brought.reward(f"{file}:{name}") for name in ("good", "bad"))
    assert good.name == "reward.py:good", "no folder of this machine"
    assert good.sha256 != bad.sha256 and brought.function_of(good.path) == (file, "good")
    file.write_text("def good(prompts, completions): return [1.0] * len(prompts)\n")
    assert brought.reward(f"{file}:good").sha256 != good.sha256


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{}/none.py:f", "there is no such file"),
        ("{}/reward.py:2", "is no name of a function"),
        ("{}/nothing", "neither a model's folder nor at hand from the hub"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, given, message):
    (tmp_path / "reward.py").write_text("")
    with pytest.raises(UserError, match=message) as error:
        brought.reward(given.format(tmp_path))
    assert "\n" not in str(error.value)


def test_pairs_of_the_hub_are_fetched_once(tmp_path, monkeypatch):
    """A file of a data set by its name, or the split train, which is kept as Parquet."""
    import datasets
    import huggingface_hub

    stored, asked = tmp_path / "train.jsonl", []
    stored.write_text('{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", "rejected": "b"}\n')

    def download(repository, name, repo_type):
        asked.append((repository, name, repo_type))
        return str(stored)

    def load(repository, split):
        asked.append((repository, split))
        return datasets.Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b"}])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = brought.pairs("Anthropic/hh-rlhf:helpful-base/train.jsonl", tmp_path)
    assert found.path == stored and found.name.startswith("Anthropic/hh-rlhf")
    whole = [brought.pairs("org/pairs", tmp_path / "cache") for _ in range(2)]
    assert whole[0] == whole[1] and whole[0].path.suffix == ".parquet"
    assert [pair.prompt for pair in read_pairs(whole[0].path)] == ["q"]
    assert asked == [
        ("Anthropic/hh-rlhf", "helpful-base/train.jsonl", "dataset"),
        ("org/pairs", "train"),
    ]


def test_pairs_that_are_nowhere_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, message in (
        ("org/pairs", "hf download --repo-type dataset org/pairs"),
        ("org/pairs:train.jsonl.gz", "hf download --repo-type dataset org/pairs"),
        ("folder/deep/pairs.jsonl", "there is no such file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            brought.pairs(given, tmp_path / "cache")
        assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.parquet"))


class Step:
    def __init__(self, digest):
        self.assets = {"own pairs": digest}


class Context:
    def __init__(self, digest, places, tmp_path):
        self.step = Step(digest)
        self.runtime = Runtime(results=tmp_path, cache=tmp_path, brought=places)


def test_a_file_that_was_changed_meanwhile_is_not_read(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("before")
    found = brought.file(file)
    context = Context(found.sha256, {found.sha256: found.path}, tmp_path)
    assert brought.of(context, "own pairs") == found.path
    file.write_text("after")
    with pytest.raises(UserError, match="was changed since the command began"):
        brought.of(context, "own pairs")
    file.unlink()
    with pytest.raises(UserError, match="is not there on this machine"):
        brought.of(context, "own pairs")
    with pytest.raises(UserError, match="was not brought"):
        brought.of(Context("0" * 64, {}, tmp_path), "own pairs")
