"""Labelled texts in a pretrained model's tokens, and a classifier of them as gold reward."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.sentiment import SENTIMENT
from pipelines.data import classifier, texts
from pipelines.data.encoding import Encoder
from pipelines.data.specs import ClassifierSpec, TextsSpec
from pipelines.shared.errors import UserError
from pipelines.shared.gold import load_gold
from pipelines.shared.hub import HubSplit
from pipelines.shared.ledger import Ledger
from pipelines.shared.specs import Runtime
from pipelines.shared.steps import Step

GOOD, BAD = "a fine, funny and moving film", "a dull film that goes nowhere"


def table_of(rows: list[tuple]) -> pd.DataFrame:
    columns = ["text", "positive", "tested"][: len(rows[0])]
    return pd.DataFrame(rows, columns=columns)


def test_a_text_is_cut_and_its_prompt_is_its_beginning(tokenizer):
    spec = TextsSpec(shortest_prompt=2, longest_prompt=5, max_tokens=8)
    rows = [(f"{text} {number}", number % 2 == 0) for number in range(40) for text in (GOOD, BAD)]
    made = texts.encoded(table_of(rows), spec, Encoder(tokenizer))
    assert len(made) == 80
    lengths = made["prompt_ids"].map(len)
    assert set(lengths) == {2, 3, 4, 5}, "each text draws its own"
    for row in made.itertuples():
        whole = tokenizer(row.text)["input_ids"]
        assert row.ids == [*whole, tokenizer.eos_token_id][:8]
        assert row.prompt_ids == whole[: len(row.prompt_ids)]
        assert row.prompt == tokenizer.decode(row.prompt_ids)
    assert made.groupby("prompt_id")["split"].nunique().eq(1).all()
    again = texts.encoded(table_of(rows[::-1]), spec, Encoder(tokenizer))
    assert set(again["prompt_id"]) == set(made["prompt_id"]), "drawn by the text, not by its place"


def test_a_text_no_longer_than_its_prompt_is_left_out(tokenizer):
    spec = TextsSpec(shortest_prompt=4, longest_prompt=4, max_tokens=8)
    short = tokenizer.decode(tokenizer(GOOD)["input_ids"][:4])
    made = texts.encoded(table_of([(GOOD, True), (short, True)]), spec, Encoder(tokenizer))
    assert made["text"].tolist() == [GOOD]


def test_the_sources_test_split_is_what_is_evaluated_on(tokenizer):
    """And a prompt that training texts have, too, is not."""
    spec = TextsSpec(
        source="imdb",
        shortest_prompt=3,
        longest_prompt=3,
        max_tokens=30,
        share_sft=0.5,
        share_preference=0.3,
        share_validation=0.2,
    )
    heads = [f"{letter} {other} film" for letter in "abcdefgh" for other in "uvwxyz"]
    training = [(f"{head} is fine {n}", True, False) for n, head in enumerate(heads)]
    tested = [
        ("q r film is dull", False, True),
        ("s t film is fine", True, True),
        (f"{heads[0]} nowhere", False, True),
    ]
    made = texts.encoded(table_of([*training, *tested]), spec, Encoder(tokenizer))
    evaluated = made[made["split"] == "evaluation"]["text"].tolist()
    assert evaluated == [tested[0][0], tested[1][0]]
    assert len(made) == len(training) + 2, "no training text is lost"
    assert set(made["split"]) == {"sft", "preference", "validation", "evaluation"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share_sft": 0.8}, "must leave a share for evaluation"),
        ({"source": "imdb", "share_sft": 0.9}, "sum to 1.1"),
        ({"shortest_prompt": 5}, "longest_prompt = 4: must be at least"),
        ({"max_tokens": 4}, "max_tokens = 4: must be above"),
        ({"source": "imbd"}, "imdb"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        TextsSpec(**changes)


def test_completions_are_no_longer_than_what_sft_reads():
    with pytest.raises(UserError, match=r"max_new_tokens = 104: must fit into corpus.max_tokens"):
        SENTIMENT.resolve("small", assignments=["sampling.max_new_tokens=100"])


def test_texts_are_no_longer_than_the_model(context):
    context.spec = lambda name: TextsSpec(max_tokens=25)
    with pytest.raises(UserError, match="max_tokens = 25: the model has 24 positions"):
        texts.prepare(context)


def test_imdbs_columns(tmp_path):
    path = tmp_path / "train.parquet"
    rows = {"text": ["Good.<br /><br />Very. ", "Bad.", " "], "label": [1, 0, 1]}
    pd.DataFrame(rows).to_parquet(path)
    made = texts.imdb_texts(path)
    assert made.to_dict("list") == {"text": ["Good.\n\nVery.", "Bad."], "positive": [True, False]}
    pd.DataFrame({"text": ["a"], "label": [-1]}).to_parquet(path)
    with pytest.raises(UserError, match="label -1: must be 0"):
        texts.imdb_texts(path)
    pd.DataFrame({"review": ["a"], "label": [1]}).to_parquet(path)
    with pytest.raises(UserError, match=r"no columns text and label \(its columns: review, label"):
        texts.imdb_texts(path)


@pytest.fixture
def context(policy, tokenizer, tmp_path):
    """Of a classifier's step, on texts whose words tell the label."""
    start, corpus, path = (tmp_path / name for name in ("start", "corpus", "gold"))
    for parameter in policy.parameters():
        parameter.data.div_(4)  # to where it can be trained from
    policy.save_pretrained(start / "checkpoint")
    tokenizer.save_pretrained(start / "checkpoint")
    tokenizer.save_pretrained(corpus / "tokenizer")
    path.mkdir()
    rows = [(f"{text} {number}", text == GOOD) for number in range(64) for text in (GOOD, BAD)]
    table = texts.encoded(table_of(rows), TextsSpec(max_tokens=24), Encoder(tokenizer))
    table.assign(split=["sft", "sft", "evaluation", "sft"] * 32).to_parquet(
        corpus / "texts.parquet"
    )
    logged: list[dict] = []
    return SimpleNamespace(
        step=Step("gold", "one", "a:b", 1, {}),
        path=path,
        seed=0,
        inputs={"start": start, "corpus": corpus},
        spec=lambda name: ClassifierSpec(epochs=3, batch_size=16, learning_rate=3e-3),
        runtime=Runtime(results=tmp_path, cache=tmp_path),
        ledger=Ledger(),
        progress=lambda *state: None,
        log=logged.append,
        logged=logged,
        micro_batches=1,
        parts=1,
        divisible=False,
    )


@pytest.mark.slow
def test_a_fine_tuned_classifier_judges_texts_it_has_not_seen(context):
    torch.manual_seed(0)
    classifier.fit(context)
    last = context.logged[-1]
    assert last["held_out_reviews"] == 32 and last["held_out_majority"] == 1.0
    assert last["held_out_accuracy"] == 1.0
    gold = load_gold(context.path)
    halves = {
        "prompt": ["a fine, funny", "a dull film"],
        "completion": [" and moving", " that goes"],
    }
    scores = gold(pd.DataFrame(halves))
    assert scores[0] > 0 > scores[1]
    # The log-odds of "positive", whatever the texts beside it.
    alone = gold(pd.DataFrame({name: column[:1] for name, column in halves.items()}))
    assert scores[0] == pytest.approx(alone[0], abs=1e-4)
    assert context.ledger.phases()["train"]["flops"] > 0
    assert json.loads((context.path / "reward.json").read_text())["from"] == "human labels"


def test_the_evaluation_prompts_texts_are_not_trained_on(context, monkeypatch):
    seen = []
    monkeypatch.setattr(
        classifier, "rows_of", lambda table, tokenizer: seen.append(table) or [].index(0)
    )
    with pytest.raises(ValueError):
        classifier.fit(context)
    assert set(seen[0]["split"]) == {"sft"} and len(seen[0]) == 96


def test_accuracy_is_the_share_of_right_signs(context, monkeypatch):
    monkeypatch.setattr(
        classifier,
        "load_gold",
        lambda *unused: lambda table: np.where(table.index % 4 == 1, -1.0, 2.0),
    )
    tested = pd.DataFrame({"ids": [[40, 41]] * 4, "positive": [True, True, True, False]})
    classifier.log_accuracy(context, tested)
    assert context.logged[-1]["held_out_accuracy"] == 0.5
    assert context.logged[-1]["held_out_majority"] == 0.75


def test_a_review_of_both_splits_is_in_one(tmp_path, monkeypatch):
    """And one that the shares leave over is in none: it is not evaluated on."""
    frames = {
        "imdb-train": {"text": ["both", "same", "same"], "label": [1, 0, 0]},
        "imdb-test": {"text": ["both", "other"], "label": [1, 0]},
    }
    for name, columns in frames.items():
        pd.DataFrame(columns).to_parquet(tmp_path / f"{name}.parquet")
    monkeypatch.setattr(HubSplit, "file", lambda self, cache: cache / f"{self.name}.parquet")
    made = texts.labelled_texts("imdb", tmp_path)
    assert made.set_index("text")["tested"].to_dict() == {
        "both": True,
        "other": True,
        "same": False,
    }


def test_training_texts_that_the_shares_leave_over_are_nobodys(tokenizer):
    spec = TextsSpec(source="imdb", share_sft=0.2, share_preference=0.1, share_validation=0.1)
    rows = [(f"{a} {b} film is fine", True, False) for a in "abcdefghijkl" for b in "mnopqrst"]
    made = texts.encoded(table_of([*rows, (GOOD, True, True)]), spec, Encoder(tokenizer))
    assert made.loc[made["split"] == "evaluation", "text"].tolist() == [GOOD]
    assert 20 < len(made) < 60
