"""Somebody's pairs, cut and split: no prompt on both sides, nothing lost unseen."""

import csv
import json
from types import SimpleNamespace

import pandas as pd
import pytest
from tokenizers import normalizers

from pipelines.data import brought, corpus, fine_tune
from pipelines.data.pairs import SIDES
from pipelines.data.pipeline import DEMONSTRATIONS, PAIRS, PROMPTS, TEST
from pipelines.data.specs import DataSpec, RoomSpec
from pipelines.shared.errors import UserError
from pipelines.shared.models import load_tokenizer, new_policy
from pipelines.shared.specs import ModelSpec, Runtime

KINDS = {"pairs": PAIRS, "test": TEST, "prompts": PROMPTS, "demonstrations": DEMONSTRATIONS}


def rows(count=60):
    """Three pairs of each prompt, which is typed in two ways."""
    made = []
    for number in range(count):
        prompt = f"film {number // 3}:"
        made.append(
            {
                "prompt": prompt.upper() if number % 3 == 2 else prompt,
                "chosen": f" fine {number}",
                "rejected": f" dull {number}",
            }
        )
    return made


@pytest.fixture
def start(tokenizer, tmp_path):
    folder = tmp_path / "start" / "checkpoint"
    new_policy(ModelSpec(layers=1, width=16, heads=2, context=48), tokenizer).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder.parent


@pytest.fixture
def prepare(start, tmp_path):
    """Runs the step on files of rows; returns its folder and what it logged."""

    def run(spec=None, room=12, **files):
        out = tmp_path / "corpus"
        out.mkdir(exist_ok=True)
        assets, places = {}, {}
        for name, given in files.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in given))
            kind = KINDS[name]
            assets[kind] = brought.digest_of(path)
            places[assets[kind]] = path
        specs = {"data": spec or DataSpec(), "room": RoomSpec(room)}
        logged = []
        context = SimpleNamespace(
            step=SimpleNamespace(assets=assets),
            spec=specs.__getitem__,
            inputs={"start": start, "corpus": out, "completions": out},
            path=out,
            runtime=Runtime(results=tmp_path, cache=tmp_path, brought=places),
            log=logged.append,
        )
        corpus.prepare(context)
        return SimpleNamespace(folder=out, logged=logged[-1], context=context)

    return run


def test_a_prompt_is_in_one_split_however_it_is_typed(prepare):
    made = prepare(pairs=rows())
    table = pd.read_parquet(made.folder / "all_pairs.parquet")
    assert len(table) == 60 and set(table["split"]) == set(corpus.SPLITS)
    key = table["prompt"].str.lower()
    assert table.groupby(key)["split"].nunique().max() == 1
    assert key.nunique() == 20 and table["prompt_id"].nunique() == 40, "two ways to type each"
    texts = pd.read_parquet(made.folder / "texts.parquet")
    assert texts["prompt_id"].is_unique
    assert set(texts["prompt_id"]) == set(table["prompt_id"])
    assert made.logged["rows"] == 60
    assert sum(made.logged[f"pairs/{name}"] for name in corpus.SPLITS) == 60


def test_the_ids_are_the_texts(prepare, tokenizer):
    table = pd.read_parquet(prepare(pairs=rows()).folder / "all_pairs.parquet")
    row = table.iloc[0]
    assert tokenizer.decode(list(row["prompt_ids"])) == row["prompt"] == "film 0:"
    assert row["line"] == 1
    for side, word in zip(SIDES, ("fine", "dull"), strict=True):
        assert tokenizer.decode(list(row[f"{side}_ids"])[:-1]) == row[side] == f" {word} 0"
        assert row[f"{side}_ids"][-1] == tokenizer.eos_token_id


def test_training_pairs_and_completions_fit_together(prepare):
    given = [*rows(), {"prompt": "film 0:", "chosen": " fine 0", "rejected": " fine 1"}]
    spec = DataSpec(share_judge=0.0, share_validation=0.0, share_evaluation=0.2)
    made = prepare(spec, pairs=given)
    corpus.completions(made.context)
    corpus.pairs(made.context)
    pairs = pd.read_parquet(made.folder / "pairs.parquet")
    completions = pd.read_parquet(made.folder / "completions.parquet")
    split = pd.read_parquet(made.folder / "all_pairs.parquet")
    training = split[split["split"] == "preference"]
    assert len(pairs) == len(training) and set(pairs["prompt_id"]) == set(training["prompt_id"])
    assert not {"chosen_reward", "rejected_reward"} & set(pairs)
    assert not completions.duplicated(["prompt_id", "completion"]).any()
    assert not completions.duplicated(["prompt_id", "sample"]).any()
    by_key = completions.set_index(["prompt_id", "sample"])["completion"]
    for side in SIDES:
        keys = pd.MultiIndex.from_frame(pairs[["prompt_id", f"{side}_sample"]])
        assert by_key[keys].tolist() == pairs[side].tolist()


def test_a_test_file_is_judged_on_and_not_trained_on(prepare):
    test = [{"prompt": f"Film  {n}:", "chosen": " new", "rejected": " old"} for n in range(4)]
    made = prepare(DataSpec(share_evaluation=0.0), pairs=rows(), test=test)
    table = pd.read_parquet(made.folder / "all_pairs.parquet")
    held_out = table[table["split"] == "evaluation"]
    assert held_out["chosen"].tolist() == [" new"] * 4
    kept = table[table["split"] != "evaluation"]["prompt"].str.lower()
    assert not {f"film {n}:" for n in range(4)} & set(kept)
    assert made.logged["rows/in the test file"] == 12
    with (made.folder / "left_out.csv").open() as file:
        left = list(csv.DictReader(file))
    assert [row["line"] for row in left] == [str(n) for n in range(1, 13)]
    assert {row["problem"] for row in left} == {"in the test file"}


def test_prompts_of_ones_own_are_split_as_the_pairs_are(prepare):
    more = [{"prompt": f"film {n}:"} for n in range(40)] + [{"prompt": "x" * 500}]
    made = prepare(pairs=rows(), prompts=more)
    texts = pd.read_parquet(made.folder / "texts.parquet")
    assert texts["prompt_id"].is_unique and not texts["prompt"].str.startswith("xxx").any()
    known = texts["prompt"].str.extract(r"(\d+)")[0].astype(int)
    assert set(known) > set(range(20)), "prompts without pairs are there too"
    pairs = pd.read_parquet(made.folder / "all_pairs.parquet")
    assert len(pairs) == 60
    new = texts[known >= 20]
    assert "judge" not in set(new["split"]), "only pairs are of use there"


def test_room_is_left_for_what_policies_write(prepare, tokenizer):
    long = "a fine film " * 6
    tokens = len(tokenizer(long)["input_ids"])
    given = [*rows(), {"prompt": long, "chosen": " a", "rejected": " b"}]
    assert "rows/too long" not in prepare(pairs=given, room=48 - tokens).logged
    assert prepare(pairs=given, room=48 - tokens + 1).logged["rows/too long"] == 1


def test_prompts_of_the_same_tokens_are_in_one_split(prepare, start):
    """A tokenizer may read two texts as one: what counts is what the model reads."""
    tokenizer = load_tokenizer(start / "checkpoint")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save_pretrained(start / "checkpoint")
    wide = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)})
    given = [*rows(), *({**row, "prompt": row["prompt"].translate(wide)} for row in rows())]
    table = pd.read_parquet(prepare(pairs=given).folder / "all_pairs.parquet")
    assert table.groupby("prompt_id")["split"].nunique().max() == 1
    test = [{**row, "prompt": row["prompt"].translate(wide)} for row in rows(9)]
    made = prepare(DataSpec(share_evaluation=0.0), pairs=rows(), test=test)
    assert made.logged["pairs/evaluation"] == 9 and made.logged["rows/in the test file"] == 9


def test_prompts_that_are_judged_on_are_not_sampled_on_in_training(prepare):
    test = [{"prompt": f"film {n}:", "chosen": " new", "rejected": " old"} for n in range(4)]
    more = [{"prompt": f"FILM  {n}:"} for n in range(4)]
    spec = DataSpec(share_evaluation=0.0)
    made = prepare(spec, pairs=rows(), test=test, prompts=more)
    texts = pd.read_parquet(made.folder / "texts.parquet")
    asked = texts["prompt"].str.lower().str.split().str.join(" ")
    held_out = set(asked[texts["split"] == "evaluation"])
    assert held_out == {f"film {n}:" for n in range(4)}
    assert not held_out & set(asked[texts["split"] != "evaluation"])


def test_rows_of_the_test_file_that_are_left_out_are_told(prepare):
    test = [{"prompt": f"film {n}:", "chosen": " new", "rejected": " old"} for n in range(4)]
    made = prepare(pairs=rows(), test=[*test, test[0] | {"rejected": " new"}])
    with (made.folder / "left_out.csv").open() as file:
        left = [row for row in csv.DictReader(file) if row["file"] == "test.jsonl"]
    assert [(row["line"], row["problem"]) for row in left] == [("5", "identical")]
    assert made.logged["rows"] == 65


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*rows(), {"prompt": "x"}], "line 61: has no chosen and no rejected"),
        (rows(3), "fewer than 2 prompts are held out"),
        ([{"prompt": [{"role": "user", "content": "q"}], "chosen": [], "rejected": []}], "line 1"),
        ([row | {"chosen": " x" * 90} for row in rows()], "no pairs are left to train on"),
        (
            [
                {
                    "prompt": [{"role": "user", "content": "q"}],
                    "chosen": [{"role": "assistant", "content": "a"}],
                    "rejected": [{"role": "assistant", "content": "b"}],
                }
            ],
            "line 1: the pairs are messages, and the tokenizer has no chat template",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(prepare, given, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(pairs=given)
    assert "\n" not in str(error.value)


def test_more_tokens_than_the_model_has_positions(prepare):
    with pytest.raises(UserError, match="= 64: the model has 48 positions"):
        prepare(DataSpec(max_length=64), pairs=rows())


def test_nothing_left_to_train_on(prepare):
    with pytest.raises(UserError, match="no pairs are left to train on"):
        prepare(
            DataSpec(share_evaluation=0.999, share_judge=0.0, share_validation=0.0), pairs=rows()
        )


def test_demonstrations_are_of_no_prompt_that_is_judged_on(prepare, tokenizer):
    """However it is typed; nor of one that a judge is trained on, nor longer than there is room."""
    shown = [{"prompt": f"FILM {number}:", "completion": f" good {number}"} for number in range(25)]
    shown.append({"prompt": "another", "completion": " word" * 40})
    made = prepare(pairs=rows(), demonstrations=shown)
    texts = pd.read_parquet(made.folder / "texts.parquet")
    judged = texts.loc[texts["split"] != "preference", "prompt"].str.lower()
    kept = [row for row in shown[:25] if row["prompt"].lower() not in set(judged)]
    assert 5 <= len(kept) < 25
    logged: list[dict] = []
    made.context.log = logged.append
    found = fine_tune.demonstrations(made.context)
    whole = [
        tokenizer(row["prompt"])["input_ids"]
        + tokenizer(row["completion"])["input_ids"]
        + [tokenizer.eos_token_id]
        for row in kept
    ]
    assert found["input_ids"][:] == whole
    for ids, labels in zip(found["input_ids"], found["labels"], strict=True):
        start = labels.count(-100)
        assert labels[start:] == ids[start:] and tokenizer.decode(ids[:start]).endswith(":")
    assert logged == [
        {
            "demonstrations": len(kept),
            "demonstrations/judged on": 25 - len(kept),
            "demonstrations/too long": 1,
        }
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "line 1: has no completion"),
        ({"prompt": "a", "completion": [{"role": "user", "content": "b"}]}, "must both be text"),
        ({"prompt": "a", "completion": " "}, "no demonstrations are left"),
    ],
)
def test_demonstrations_that_are_none_are_one_line(prepare, row, message):
    made = prepare(pairs=rows(), demonstrations=[row])
    with pytest.raises(UserError, match=message):
        fine_tune.demonstrations(made.context)
