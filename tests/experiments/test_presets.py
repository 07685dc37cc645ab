"""The papers' presets on a made-up hub: small files and models with exactly the real ones' columns
and formats, at the pinned revisions of the hub's cache."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from experiments.registry import EXPERIMENTS
from pipelines.shared import assets, convert, hub
from pipelines.shared.assets import ASSETS, HH_TRAIN, PYTHIA, SIEBERT
from pipelines.shared.corpus import train_tokenizer
from pipelines.shared.errors import UserError

PRESETS = ("imdb", "tldr", "hh", "overoptimization")
WORDS = ["fine", "funny", "moving", "dull", "flat", "film", "plot", "cast", "here", "it"]
ASSISTANT = "\n\nAssistant:"


def sentence(draw: random.Random, least: int = 4, most: int = 9) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def place(root: Path, repository: str, revision: str, dataset: bool = False) -> Path:
    kind = "datasets" if dataset else "models"
    folder = root / f"{kind}--{repository.replace('/', '--')}" / "snapshots" / revision
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def made_up_hub(tmp_path_factory) -> Path:
    """A hub's cache with everything that the presets pin."""
    root, draw = tmp_path_factory.mktemp("hub"), random.Random(0)
    texts = [sentence(draw) for _ in range(200)] + ["\n\nHuman: film?\n\nAssistant: TL;DR:"] * 20
    torch.manual_seed(0)
    small = {"pad_token_id": None, "eos_token_id": 0, "bos_token_id": 0}

    def tokenizer(length: int):
        made = train_tokenizer(texts, vocab_size=300)
        made.pad_token, made.model_max_length = None, length  # as GPT-2's and Pythia's have none
        return made

    def save(asset, model, **how) -> None:
        folder = place(root, asset.repository, asset.revision)
        model.save_pretrained(folder, **how)
        tokenizer(model.config.max_position_embeddings).save_pretrained(folder)

    gpt2 = GPT2Config(vocab_size=300, n_positions=256, n_embd=32, n_layer=1, n_head=2, **small)
    save(assets.GPT2_LARGE, GPT2LMHeadModel(gpt2))
    for width, asset in zip(
        (8, 16, 24, 32, 40), (*PYTHIA.values(), assets.PYTHIA_2_8B), strict=True
    ):
        config = GPTNeoXConfig(
            vocab_size=304,  # more than there are tokens, as Pythia's
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=4 * width,
            max_position_embeddings=1024,
            **small,
        )
        save(asset, GPTNeoXForCausalLM(config))
    roberta = RobertaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=300,
        type_vocab_size=1,
        pad_token_id=1,
        num_labels=2,
    )
    pickled(place(root, SIEBERT.repository, SIEBERT.revision), roberta, tokenizer(256))

    reviews = place(root, "stanfordnlp/imdb", assets.IMDB_TRAIN.revision, dataset=True)
    (reviews / "plain_text").mkdir()
    for split in ("train", "test"):
        rows = [
            (f"{sentence(draw)} {split} {n}.<br /><br />{sentence(draw, 8, 40)}", n % 2)
            for n in range(240)
        ]
        table = pd.DataFrame(rows, columns=["text", "label"])
        table.to_parquet(reviews / "plain_text" / f"{split}-00000-of-00001.parquet")

    dialogues = place(root, "Anthropic/hh-rlhf", HH_TRAIN.revision, dataset=True)
    for part, split, count in (
        ("harmless-base", "train", 60),
        ("helpful-base", "train", 60),
        ("helpful-base", "test", 24),
        ("helpful-online", "train", 10),
        ("helpful-rejection-sampled", "train", 10),
        ("harmless-base", "test", 4),
        ("helpful-online", "test", 4),
        ("helpful-rejection-sampled", "test", 4),
    ):
        (dialogues / part).mkdir(exist_ok=True)
        with gzip.open(dialogues / part / f"{split}.jsonl.gz", "wt") as file:
            for number in range(count):
                prompt = f"\n\nHuman: film {part[-4:]} {split} {number}?{ASSISTANT}"
                row = {
                    "chosen": f"{prompt} fine {sentence(draw)}",
                    "rejected": f"{prompt} dull {sentence(draw)}",
                }
                file.write(json.dumps(row) + "\n")

    pairs = place(root, assets.TLDR_PAIRS.repository, assets.TLDR_PAIRS.revision, dataset=True)
    posts: list[str] = []
    for split, parts, count in (("train", 1, 120), ("validation", 1, 24)):
        (pairs / "default" / split).mkdir(parents=True)
        for part in range(parts):
            prompts = [f"POST: {sentence(draw)} {split} {part} {n}\nTL;DR:" for n in range(count)]
            posts += prompts
            made = {
                "prompt": prompts,
                "chosen": [f" fine {sentence(draw)}" for _ in prompts],
                "rejected": [f" dull {sentence(draw)}" for _ in prompts],
            }
            pd.DataFrame(made).to_parquet(pairs / "default" / split / f"{part:04d}.parquet")
    summaries = assets.TLDR_SUMMARIES
    folder = place(root, summaries.repository, summaries.revision, dataset=True) / "data"
    folder.mkdir()
    # The real ones keep empty lines, which the pairs' prompts do not.
    posts = [post.replace("\n", "\n\n") for post in posts]
    made = {"prompt": posts, "completion": [f" {sentence(draw)}" for _ in posts]}
    pd.DataFrame(made).to_parquet(folder / "train-00000-of-00001.parquet")
    return root


def pickled(folder: Path, config: RobertaConfig, tokenizer) -> None:
    """A classifier whose weights are a pickle, as the real one's at its pinned revision."""
    model = RobertaForSequenceClassification(config)
    tokenizer.add_special_tokens({"pad_token": tokenizer.decode([1])})
    tokenizer.save_pretrained(folder)
    config.architectures = ["RobertaForSequenceClassification"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def test_a_pickle_runs_nothing_and_makes_nothing_up(tmp_path):
    """The weights are read as tensors alone; those that are missing are an error."""
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=2,
    )
    source = tmp_path / "source"
    pickled(source, config, train_tokenizer(["a film"] * 4, vocab_size=300))
    whole = torch.load(source / "pytorch_model.bin")
    ran = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    torch.save({**whole, "x": Malicious()}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be converted to safetensors") as error:
        convert.from_pickle(source, tmp_path / "kept")
    assert "\n" not in str(error.value) and not ran.exists()
    missing = {name: weight for name, weight in whole.items() if "classifier" not in name}
    torch.save(missing, source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no classifier\.dense\.bias"):
        convert.from_pickle(source, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    torch.save(whole, source / "pytorch_model.bin")
    convert.from_pickle(source, tmp_path / "kept")
    assert (tmp_path / "kept" / "model.safetensors").is_file()


def run(
    command: str, name: str, root: Path, tmp_path: Path, *more: str
) -> subprocess.CompletedProcess:
    arguments = [command, name, "--scale", "paper", "--results", str(tmp_path / "results"), *more]
    if command == "run":
        arguments += ["--cache", str(tmp_path / "cache")]
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments],
        env=os.environ | {"HF_HUB_CACHE": str(root), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


def setting(**values: object) -> list[str]:
    return [
        part
        for name, value in values.items()
        for part in ("--set", f"{name.replace('__', '.')}={value}")
    ]


IN_FP32 = setting(weights__precision="fp32")  # bf16 is slow on a CPU
SMALL = setting(
    sampling__max_new_tokens=8,
    sft__batch_size=16,
    reward_model__batch_size=8,
    evaluation__prompts=8,
    evaluation__samples=2,
    evaluation__reference_samples=16,
    dpo__beta=0.1,
    dpo__batch_size=16,
    dpo__snapshots=1,
)
PPO = setting(ppo__updates=1, ppo__rollouts=16, ppo__minibatches=2, ppo__ppo_epochs=1)
PPO += setting(ppo__snapshots=1)


def table(tmp_path: Path, name: str, which: str) -> pd.DataFrame:
    (folder,) = (tmp_path / "results" / "experiments").glob(f"{name}-paper*")
    return pd.read_csv(folder / "tables" / f"{which}.csv")


def logged(tmp_path: Path, stage: str) -> dict:
    (folder,) = (tmp_path / "results" / "runs" / stage).iterdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {name: value for row in rows for name, value in row.items()}


@pytest.mark.slow
def test_imdb(made_up_hub, tmp_path):
    arms = ("--arms", "ppo-adaptive,dpo,unlikelihood,preferred-ft,ppo-gt")
    more = setting(
        corpus__max_tokens=24,
        reward_model__epochs=1,
        ppo__kl_target=3.0,
        unlikelihood__alpha=0.1,
    )
    done = run("run", "imdb", made_up_hub, tmp_path, *arms, *IN_FP32, *SMALL, *PPO, *more)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert set(table(tmp_path, "imdb", "frontier")["arm"]) >= {
        "sft",
        "ppo-adaptive",
        "ppo-gt",
        "dpo",
    }
    corpus = logged(tmp_path, "corpus")
    assert corpus["texts/evaluation"] + corpus["texts/sft"] <= 480
    assert 0.3 < corpus["texts/sft"] / 240 < 0.5 and corpus["texts/evaluation"] > 200
    assert logged(tmp_path, "gold")["held_out_reviews"] == corpus["texts/evaluation"]
    # The pickled classifier was read as tensors and kept as safetensors.
    (kept,) = (tmp_path / "cache" / "models").iterdir()
    assert (kept / "model.safetensors").is_file()
    page = next((tmp_path / "results" / "experiments").glob("imdb-paper*/report.html")).read_text()
    for said in ("siebert/sentiment-roberta-large-english", SIEBERT.revision[:12], "RMSprop"):
        assert said in page, said


@pytest.mark.slow
def test_tldr(made_up_hub, tmp_path):
    more = setting(judge__batch_size=8, ppo__kl_coef=0.05, data__max_length=256)
    done = run("run", "tldr", made_up_hub, tmp_path, *IN_FP32, *SMALL, *PPO, *more)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert set(table(tmp_path, "tldr", "frontier")["arm"]) >= {"sft", "ppo", "dpo"}
    corpus, sft = logged(tmp_path, "corpus"), logged(tmp_path, "sft")
    assert corpus["rows"] == 120 + 24 and corpus["prompts/evaluation"] == 24
    # Summaries of posts that are judged on, or that teach the judge or the tuning, are not shown.
    assert sft["demonstrations"] == corpus["prompts/preference"]
    assert sft["demonstrations/judged on"] == 144 - corpus["prompts/preference"]
    assert not table(tmp_path, "tldr", "held_out_accuracy").empty


@pytest.mark.slow
def test_hh(made_up_hub, tmp_path):
    more = setting(
        judge__batch_size=8,
        preferred_ft__batch_size=16,
        preferred_ft__snapshots=1,
        data__max_length=256,
        data__share_judge=0.4,
    )
    done = run("run", "hh", made_up_hub, tmp_path, *SMALL, *more)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert set(table(tmp_path, "hh", "frontier")["arm"]) >= {"sft", "dpo", "best-of-n-proxy"}
    corpus = logged(tmp_path, "corpus")
    assert corpus["rows"] == 140 + 36, "the parts of the data set together"
    assert corpus["pairs/evaluation"] == 36


@pytest.mark.slow
def test_overoptimization(made_up_hub, tmp_path):
    more = setting(
        judge__batch_size=8,
        ppo__kl_coef=0.05,
        sampling__prompts=24,
        data__max_length=256,
        reward_model__init="pythia-70m-deduped,pythia-410m-deduped",
    )
    name = "overoptimization"
    done = run("run", name, made_up_hub, tmp_path, *IN_FP32, *SMALL, *PPO, *more)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    frontier = table(tmp_path, name, "frontier")
    assert frontier[frontier["arm"] == "ppo"]["variant"].nunique() == 2
    assert frontier[frontier["arm"] == "dpo"]["variant"].isna().all()
    runs = tmp_path / "results" / "runs"
    widths = {
        AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint").config.hidden_size
        for folder in (runs / "reward-model").iterdir()
    }
    assert widths == {8, 24}
    (gold,) = (runs / "gold").iterdir()
    judge = AutoModelForSequenceClassification.from_pretrained(gold / "checkpoint")
    assert judge.config.hidden_size == 40


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_not_at_hand_is_one_line_with_its_commands(name, tmp_path):
    empty = tmp_path / "hub"
    done = run("run", name, empty, tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert not list((tmp_path / "results").rglob("*.*"))
    steps = EXPERIMENTS[name].resolve("paper").steps()
    wanted = {key for step in steps for key in step.assets.values()}
    for asset in ASSETS.values():
        if asset.identity in wanted:
            assert f"hf download {asset.repository} " in line and asset.revision in line, asset.name
    assert line.count("hf download") == line.count("--revision") > 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_planned_without_a_network(name, tmp_path):
    done = run("plan", name, tmp_path / "hub", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "steps to run" in done.stdout


@pytest.mark.parametrize("name", PRESETS)
def test_every_revision_is_a_commit_and_the_ledger_has_a_row_for_each_choice(name):
    study = EXPERIMENTS[name].resolve("paper")
    pinned = {key for step in study.steps() for key in step.assets.values()}
    for identity in pinned:
        asset = assets.BY_IDENTITY[identity]
        assert len(asset.revision) == 40 and set(asset.revision) <= set("0123456789abcdef")
    rows = study.manifest()["deviations"]
    assert len(rows) >= 7 and all(row["paper"] and row["here"] for row in rows)


def test_files_that_came_from_another_question_are_not_taken_for_all(made_up_hub, tmp_path):
    """The hub's cache may hold some of a split's files, or a model without its tokenizer."""
    for asset, left_out in ((HH_TRAIN, "helpful-online"), (assets.GPT2_LARGE, "tokenizer.json")):
        kind = "datasets" if asset is HH_TRAIN else "models"
        inside = Path(f"{kind}--{asset.repository.replace('/', '--')}") / "snapshots"
        inside /= asset.revision
        shutil.copytree(
            made_up_hub / inside, tmp_path / inside, ignore=shutil.ignore_patterns(left_out)
        )
    script = (
        "import sys; from pathlib import Path; from pipelines.shared.assets import *\n"
        "for asset in (HH_TRAIN, GPT2_LARGE):\n"
        "    try: asset.prepare(Path(sys.argv[1]))\n"
        "    except UserError as error: print(error)"
    )
    for root, lines in ((made_up_hub, 0), (tmp_path, 2)):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "cache")],
            env=os.environ | {"HF_HUB_CACHE": str(root), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        told = done.stdout.splitlines()
        assert len(told) == lines
        assert all("is not in the hub's cache and cannot be fetched" in line for line in told)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_a_split_in_pieces_that_cannot_be_read_is_one_line(tmp_path):
    bad = tmp_path / "0000.parquet"
    bad.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(
        UserError, match=r"0000.parquet: cannot be read .*: fetch it again"
    ) as error:
        hub._together([bad])
    assert "\n" not in str(error.value)


def test_an_arm_without_settings_for_such_a_model_is_refused():
    with pytest.raises(UserError, match=r"arm rloo has no settings at scale paper.*learning_rate"):
        EXPERIMENTS["imdb"].resolve("paper", arms=["rloo"])
    given = ["rloo.learning_rate=1e-6"]
    assert EXPERIMENTS["imdb"].resolve("paper", arms=["rloo"], assignments=given)


def test_ledgers_tell_of_the_settings_as_they_are():
    for name in PRESETS:
        study = EXPERIMENTS[name].resolve("paper", assignments=["weights.precision=fp32"])
        rows = {row["item"]: row["here"] for row in study.manifest()["deviations"]}
        assert rows["precision"] == "fp32; evaluation in fp32"


def test_no_two_assets_are_known_by_the_same():
    assert len(assets.BY_IDENTITY) == len(ASSETS)
