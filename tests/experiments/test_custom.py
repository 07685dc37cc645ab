"""`run custom`: somebody's own model and pairs, as a user types it."""

import gzip
import json
import random
import shutil

import pandas as pd
import pytest

from experiments.cli import main
from pipelines.shared.corpus import train_tokenizer
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec

ASSISTANT = "\n\nAssistant:"


@pytest.fixture(scope="module")
def own(tokenizer, tmp_path_factory):
    """A folder with model/, pairs.jsonl.gz as in hh-rlhf, and reward.py."""
    folder = tmp_path_factory.mktemp("own")
    spec = ModelSpec(layers=1, width=16, heads=2, context=96)
    tokenizer.pad_token = tokenizer.eos_token  # as GPT-2 is often saved
    new_policy(spec, tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)
    words = ["fine", "funny", "moving", "dull", "film", "here"]
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        for number in range(150):
            prompt = f"\n\nHuman: film {number}?{ASSISTANT}"
            rest = " ".join(draw.choices(words, k=3))
            row = {"chosen": f"{prompt} fine {rest}", "rejected": f"{prompt} dull {rest}"}
            file.write(json.dumps(row) + "\n")
    (folder / "reward.py").write_text(
        "def fine(prompts, completions):\n"
        "    assert all('Human' in prompt for prompt in prompts)\n"
        "    return [float(text.count('e')) for text in completions]\n"
    )
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a fine, funny and moving film", "a dull film"] * 4, vocab_size=280)


def run(own, results, *more):
    given = ["--model", str(own / "model"), "--pairs", str(own / "pairs.jsonl.gz")]
    scale = ["--scale", "smoke", "--results", str(results)]
    return main(["run", "custom", *scale, *given, *more])


FEWER = ["--set", "ppo.kl_coef=0.1", "--set", "dpo.beta=0.1"]


@pytest.mark.slow
def test_both_methods_stand_side_by_side_without_a_gold_reward(own, tmp_path, capsys):
    assert run(own, tmp_path, *FEWER) == 0
    assert "report:" in capsys.readouterr().out
    (study,) = (tmp_path / "experiments").glob("custom-pairs-*-smoke*")
    manifest = json.loads((study / "manifest.json").read_text())
    assert {arm["arm"] for arm in manifest["arms"]} == {"sft", "ppo", "dpo"}
    assert set(manifest["brought"]) == {"own model", "own pairs"}
    text = (study / "manifest.json").read_text() + (study / "report.html").read_text()
    assert str(own) not in text, "no path of this machine in what may be published"
    page = (study / "report.html").read_text()
    assert "No reward was given to judge by" in page
    assert "cannot claim that people would prefer" in page and "gold reward" not in page.lower()
    assert "true reward" not in page, "papers' claims are not put to the test by a judge"
    assert "own choices</h2>" in page and "150 rows" in page
    table = pd.read_csv(study / "tables" / "held_out_accuracy.csv")
    assert table["judge"].value_counts().to_dict() == {
        "policy": 2,
        "reward-model": 1,
        "gold": 1,
        "length": 1,
    }
    frontier = pd.read_csv(study / "tables" / "frontier.csv")
    assert (frontier[frontier["arm"] == "dpo"]["kl"] > 0).any()
    _check_splits(tmp_path)
    assert run(own, tmp_path, *FEWER) == 0
    assert "every step was reused" in capsys.readouterr().out
    given = ["--model", str(own / "model"), "--pairs", str(own / "pairs.jsonl.gz")]
    scale = ["--scale", "smoke", "--results", str(tmp_path)]
    assert main(["report", "custom", *scale, *given, *FEWER]) == 0
    _check_peoples_choices(own, study, tmp_path)


def _check_peoples_choices(own, study, results):
    """Policies can be held against the completions that people preferred."""
    chosen = pd.read_parquet(study / "tables" / "chosen.parquet")
    samples = pd.read_parquet(study / "tables" / "samples.parquet")
    assert set(chosen["prompt_id"]) == set(samples["prompt_id"])
    assert chosen["completion"].str.startswith(" fine").all()
    page = results / "page.html"
    brought = ["--own-model", str(own / "model"), "--own-pairs", str(own / "pairs.jsonl.gz")]
    study_of = ["custom", "--scale", "smoke", "--results", str(results), *brought, *FEWER]
    assert (
        main(
            ["label", *study_of, "--pairs", "20", "--between", "dpo:0.1/chosen", "--out", str(page)]
        )
        == 0
    )
    assert chosen["completion"].iloc[0].strip() in page.read_text()


def _check_splits(results):
    """Nothing that is judged on was trained on, and the judge's pairs are its own."""
    (corpus,) = (results / "runs" / "corpus").glob("*")
    split = pd.read_parquet(corpus / "all_pairs.parquet").groupby("prompt_id")["split"].first()
    (pairs,) = (results / "runs" / "pairs").glob("*/pairs.parquet")
    assert set(split[pd.read_parquet(pairs)["prompt_id"]]) == {"preference"}
    for scores in (results / "runs" / "evaluation").glob("*/scores.parquet"):
        assert set(split[pd.read_parquet(scores)["prompt_id"]]) == {"evaluation"}
    (gold,) = (results / "runs" / "gold").glob("*")
    assert gold.name.startswith("held-out-reward-model")
    assert {"judge", "preference", "evaluation"} <= set(split)


@pytest.mark.slow
def test_a_function_of_ones_own_is_the_gold_reward(own, tmp_path):
    reward = f"{own / 'reward.py'}:fine"
    more = ["--arms", "dpo,ppo-gt,kto", "--gold", reward, *FEWER, "--set", "kto.beta=0.1"]
    assert run(own, tmp_path, *more) == 0
    (study,) = (tmp_path / "experiments").glob("custom-pairs-*")
    page = (study / "report.html").read_text()
    assert "No reward was given" not in page and "gold reward" in page
    manifest = (study / "manifest.json").read_text()
    assert "reward.py:fine" in manifest and str(own) not in manifest + page
    (corpus,) = (tmp_path / "runs" / "corpus").glob("*/all_pairs.parquet")
    assert "judge" not in set(pd.read_parquet(corpus)["split"]), "there is no judge to train"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "custom"], "custom needs --model and --pairs"),
        (["run", "custom", "--model", "{own}/model"], "custom needs --pairs"),
        (
            [*"run custom --model {own}/model --pairs {own}/pairs.jsonl.gz --arms ppo-gt".split()],
            "arm ppo-gt is trained on the gold reward, and here is only a judge",
        ),
        (["run", "sentiment", "--pairs", "x"], "--pairs is for `custom`"),
        (["plan", "custom", "--model", "{own}/none", "--pairs", "{own}/pairs.jsonl.gz"], "none"),
        (["plan", "custom", "--model", "{own}/model", "--pairs", "{own}/none"], "no such file"),
        (["judge", "custom", "--model", "x", "--own-model", "{own}/model"], "custom needs --pairs"),
    ],
)
def test_what_is_missing_is_named_in_one_line(own, tmp_path, capsys, arguments, message):
    given = [part.format(own=own) for part in arguments]
    assert main([*given, "--results", str(tmp_path / "results")]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_plan_names_the_own_steps(own, tmp_path, capsys):
    given = ["--model", str(own / "model"), "--pairs", str(own / "pairs.jsonl.gz")]
    assert main(["plan", "custom", *given, "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for label in ("own-model", "own-pairs", "held-out-reward-model", "fine-tuned"):
        assert label in out


GOOD = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(9)]


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


BAD = {
    "a row without columns": (lines([*GOOD, {"prompt": "x"}]), "line 10: has no chosen and no"),
    "other columns": (lines([{"question": "q", "answer": "a"}]), "line 1: has no chosen and no"),
    "two forms": (
        lines([*GOOD, {"chosen": f"x{ASSISTANT} a", "rejected": f"x{ASSISTANT} b"}]),
        "line 10: is implicit, where the first pair",
    ),
    "not UTF-8": (lines(GOOD) + b'{"prompt": "\xff"}\n', "line 10: byte 13 of it is not UTF-8"),
    "a line without end": (lines(GOOD) + b'{"prompt": "' + b"x" * 17 * 2**20, "longer than 16 MiB"),
    "a gzip that is cut off": (gzip.compress(lines(GOOD))[:-20], "damaged or cut off"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_ends_the_run_and_leaves_nothing_half_written(own, tmp_path, capsys, kind):
    content, message = BAD[kind]
    bad = tmp_path / ("bad.jsonl.gz" if "gzip" in kind else "bad.jsonl")
    bad.write_bytes(content)
    given = ["--model", str(own / "model"), "--pairs", str(bad), "--scale", "smoke"]
    assert main(["run", "custom", *given, "--results", str(tmp_path / "results")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list((tmp_path / "results" / "runs").glob("corpus/*"))


def _remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    (folder / "config.json").write_text(json.dumps(config))


REFUSED = {
    "has no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "as a pickle only": lambda folder: (folder / "model.safetensors").rename(
        folder / "pytorch_model.bin"
    ),
    "code of its own": _remote_code,
    "has no config.json": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_model_is_refused_before_anything_is_written(own, tmp_path, capsys, message):
    model = shutil.copytree(own / "model", tmp_path / "model")
    REFUSED[message](model)
    given = ["--model", str(model), "--pairs", str(own / "pairs.jsonl.gz")]
    assert main(["run", "custom", *given, "--results", str(tmp_path / "results")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "results").exists()
