"""`check-data` as a user meets it."""

import json
import time

import pytest

from experiments.cli import main
from pipelines.shared.models import new_policy
from pipelines.shared.specs import ModelSpec


def pair(number, **changes):
    return {"prompt": f"Why {number}?", "chosen": " So.", "rejected": " No."} | changes


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def model(tokenizer, tmp_path):
    folder = tmp_path / "model"
    spec = ModelSpec(layers=1, width=16, heads=2, context=24)
    new_policy(spec, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_problems_are_named_and_the_rest_is_described(tmp_path, capsys):
    records = [pair(0), pair(0), pair(1, rejected=""), *(pair(n) for n in range(2, 6))]
    path = write(tmp_path / "a.jsonl", records)
    assert main(["check-data", str(path)]) == 0
    out = capsys.readouterr().out
    assert "duplicate" in out and "2 (of 1)" in out
    assert "empty completion" in out and "3 (rejected)" in out
    assert "5 of 7 rows can be trained on" in out and "5 prompts, at most 1 pairs of one" in out


def test_a_malformed_row_is_status_2_after_everything_was_said(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [pair(0), {"prompt": "x"}, pair(1), {"chosen": "y"}])
    assert main(["check-data", str(path)]) == 2
    told = capsys.readouterr()
    assert "malformed" in told.out and "1 of" not in told.out
    assert told.err.strip() == (
        f"rlhf-vs-dpo: {path}, line 2: has no chosen and no rejected (its columns: prompt) "
        "(2 such rows)"
    )


def test_lengths_are_counted_in_the_models_tokens(tmp_path, model, capsys):
    path = write(tmp_path / "a.jsonl", [pair(0), pair(1, chosen=" x y z" * 20)])
    assert main(["check-data", str(path), "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert "too long" in out and "24 fit" in out and "1 of 2 rows" in out
    assert main(["check-data", str(path), "--model", str(model), "--max-length", "400"]) == 0
    assert "2 of 2 rows" in capsys.readouterr().out


def test_prompts_of_the_test_file_are_left_out(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [pair(0), pair(1)])
    test = write(tmp_path / "test.jsonl", [pair(1, prompt="WHY  1?")])
    assert main(["check-data", str(path), "--test", str(test)]) == 0
    out = capsys.readouterr().out
    assert "in the test file" in out and "1 of 2 rows" in out
    test.write_text("no JSON")
    assert main(["check-data", str(path), "--test", str(test)]) == 2
    assert f"{test}, line 1: is not JSON" in capsys.readouterr().err


def test_nothing_left_and_bad_options(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [pair(0, rejected=" So.")])
    assert main(["check-data", str(path)]) == 2
    assert "no row is left to train on" in capsys.readouterr().err
    assert main(["check-data", str(path), "--max-length", "5"]) == 2
    assert "--model" in capsys.readouterr().err
    assert main(["check-data", str(path), "--model", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "has no config.json" in err and err.count("\n") == 1
    assert main(["check-data", str(path), "--model", "nobody/no-such-model"]) == 2
    err = capsys.readouterr().err
    assert "hf download nobody/no-such-model" in err and err.count("\n") == 1


def test_many_bad_rows_are_cut_and_named_in_full_with_all(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [pair(0), *(pair(n, rejected="") for n in range(30))])
    assert main(["check-data", str(path)]) == 0
    assert "and 20 more (--all)" in capsys.readouterr().out
    assert main(["check-data", str(path), "--all"]) == 0
    assert "31 (rejected)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_large_file_is_read_at_a_good_pace(tmp_path):
    path = write(tmp_path / "a.jsonl", [pair(n) for n in range(50_000)])
    started = time.monotonic()
    assert main(["check-data", str(path)]) == 0
    assert time.monotonic() - started < 60
