"""Preference pairs as people bring them: every format, every form, every kind of bad row."""

import csv
import gzip
import json

import pandas as pd
import pytest

from pipelines.data import rows
from pipelines.data.checks import RULES, check, prompt_key, summary
from pipelines.data.pairs import Pair, read_pairs
from pipelines.shared.errors import UserError

EXPLICIT = [
    {"prompt": "Name a colour.", "chosen": " Red.", "rejected": " No."},
    {"prompt": "Süß?", "chosen": " Ja,\nsehr.", "rejected": " Nein."},
]
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def as_jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(path, records):
    """The records in the format that the name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pd.DataFrame(records).to_parquet(path)
        return path
    if name.endswith(".csv"):
        plain = path.with_name("plain.csv")
        with open(plain, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
        text = plain.read_text(encoding="utf-8")
        text = plain.open(encoding="utf-8", newline="").read()
    else:
        text = as_jsonl(records) if name.endswith(".jsonl") else json.dumps(records)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def pairs(path):
    found = list(read_pairs(path))
    assert all(isinstance(row, Pair) for row in found), found
    return found


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz"]
)
def test_every_format_gives_the_same_pairs(tmp_path, name):
    found = pairs(write(tmp_path / name, EXPLICIT))
    assert [(p.prompt, p.chosen, p.rejected) for p in found] == [
        tuple(record.values()) for record in EXPLICIT
    ]
    # A CSV's header is line 1.
    assert [p.number for p in found] == ([2, 3] if ".csv" in name else [1, 2])


def test_a_csv_field_may_span_lines_and_rows_are_named_by_their_first(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen,rejected\nq,"a\nb\nc",d\nq2,e\nq3,f,g\n')
    first, second, third = read_pairs(path)
    assert (first.number, first.chosen) == (2, "a\nb\nc")
    assert second == (5, "has 2 fields where the header has 3")
    assert third.number == 6


def test_a_dialogue_is_split_at_its_last_answer(tmp_path):
    start = f"{HUMAN} Hi.{ASSISTANT} Hello.{HUMAN} And?{ASSISTANT}"
    record = {"chosen": f"{start} Fine.", "rejected": f"{start} Bad."}
    [pair] = pairs(write(tmp_path / "hh.jsonl.gz", [record]))
    assert (pair.prompt, pair.chosen, pair.rejected) == (start, " Fine.", " Bad.")


def test_messages_with_their_prompt_in_any_place(tmp_path):
    user, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "What?"))
    )
    records = [
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"prompt": "Hi", "chosen": [user, good], "rejected": [user, bad]},  # UltraFeedback's
        {"prompt": "Hi", "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
    ]
    for number, record in enumerate(records):
        [pair] = pairs(write(tmp_path / f"{number}.jsonl", [record]))
        assert pair.prompt == (("user", "Hi"),), record
        assert (pair.chosen, pair.rejected) == (
            (("assistant", "Hello"),),
            (("assistant", "What?"),),
        )


def bad_rows():
    """A file with every kind of bad row; the line of each."""
    good = [{"prompt": f"Question {n}?", "chosen": " Yes.", "rejected": " No."} for n in range(2)]
    same = dict(good[0])
    lines = [
        json.dumps(good[0]),
        '{"prompt": "x", "chosen": ',
        json.dumps({"prompt": " ", "chosen": "a", "rejected": "b"}),
        json.dumps({"prompt": "x", "chosen": "a", "rejected": "\n"}),
        json.dumps({"prompt": "x", "chosen": "a", "rejected": "a"}),
        json.dumps(same),
        json.dumps({"prompt": "Question 0?", "chosen": " No.", "rejected": " Yes."}),
        json.dumps({"prompt": "x", "chosen": "a " * 50, "rejected": "b"}),
        json.dumps({"prompt": "in the  TEST file", "chosen": "a", "rejected": "b"}),
        json.dumps({"prompt": "x", "chosen": "a"}),
        json.dumps({"prompt": "x", "chosen": ["a"], "rejected": ["b"]}),
        "[1, 2]",
        json.dumps({"chosen": "a", "rejected": "b"}),
        json.dumps({"prompt": "x", "chosen": "a", "rejected": 3}),
        json.dumps(good[1]),
    ]
    kinds = {
        **{3: "empty prompt", 4: "empty completion", 5: "identical", 6: "duplicate"},
        **{7: "contradiction", 8: "too long", 9: "in the test file"},
        **dict.fromkeys((2, 10, 11, 12, 13, 14), "malformed"),
    }
    return "\n".join(lines) + "\n", kinds


def test_every_kind_of_bad_row_is_named_with_its_line(tmp_path):
    text, kinds = bad_rows()
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    found = check(
        read_pairs(path),
        encode=lambda prompt, completion: (prompt.split(), completion.split()),
        longest=20,
        test_prompts=frozenset({prompt_key("In the test file")}),
    )
    assert {problem.number: problem.kind for problem in found.problems} == kinds
    assert set(kinds.values()) == set(RULES)
    assert found.rows == 15
    assert [pair.number for pair in found.pairs] == [1, 7, 15], "a contradiction is kept"
    details = {problem.number: problem.detail for problem in found.problems}
    assert details[6] == "of 1" and details[7] == "of 1" and details[8] == "51 tokens, 20 fit"
    assert details[10] == "has no rejected (its columns: chosen, prompt)"
    assert "not an object" in details[12] and "JSON" in details[2]


def test_what_is_left_out_is_no_pair_to_be_repeated(tmp_path):
    """The second of two rows that are too long is too long, not a duplicate."""
    long = Pair(1, "q", "a " * 30, "b")
    found = check(
        [long, Pair(2, *(long.prompt, long.chosen, long.rejected))],
        encode=lambda prompt, completion: (prompt.split(), completion.split()),
        longest=5,
    )
    assert [problem.kind for problem in found.problems] == ["too long", "too long"]


def test_what_pairs_are_like():
    rows = (("Q", "long one", "no"), (" q ", "a", "b"), ("r", "a", "cc"))
    found = summary([Pair(number, *row) for number, row in enumerate(rows, start=1)])
    assert (found.pairs, found.prompts, found.most) == (3, 2, 2)
    assert (found.prompt_length, found.chosen_length, found.rejected_length) == (1, 1, 2)
    assert found.longer_chosen == 0.5  # two of the three are of unequal lengths
    alike = summary([Pair(1, "q", "a", "b")])
    assert alike.longer_chosen is None


def refusal(path):
    with pytest.raises(UserError) as error:
        list(read_pairs(path))
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def test_wrong_columns_are_refused_at_the_first_row(tmp_path):
    path = write(tmp_path / "a.csv", [{"question": "q", "answer": "a"}])
    assert "has no chosen and no rejected (its columns: answer, question)" in refusal(path)


def test_a_bad_first_row_does_not_hide_the_others(tmp_path):
    records = [{"prompt": "q", "chosen": "a"}, {"prompt": "\ud800", "chosen": "a", "rejected": "b"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*records, EXPLICIT[0]]))
    first, second, third = read_pairs(path)
    assert first == (1, "has no rejected (its columns: chosen, prompt)")
    assert second == (2, "prompt holds half a character (a lone surrogate)")
    assert third.prompt == EXPLICIT[0]["prompt"]


def test_mixed_forms_are_named(tmp_path):
    dialogue = f"{HUMAN} Hi.{ASSISTANT}"
    records = [*EXPLICIT, {"chosen": f"{dialogue} a", "rejected": f"{dialogue} b"}]
    *_, last = read_pairs(write(tmp_path / "a.jsonl", records))
    assert last == (3, "is implicit, where the first pair (at 1) is explicit")


def test_not_utf_8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_jsonl(EXPLICIT).encode() + b'{"prompt": "\xff"}\n')
    assert "line 3: byte 13 of it is not UTF-8" in refusal(path)


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST_LINE", 2**20)
    path = tmp_path / "a.jsonl"
    path.write_text(as_jsonl(EXPLICIT) + '{"prompt": "' + "x" * 2**21)
    assert "line 3: longer than 1 MiB" in refusal(path)


def test_a_json_array_that_is_too_large_to_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LARGEST_JSON", 2**20)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([dict(EXPLICIT[0], chosen="x" * 2**20)]))
    assert "larger than 1 MiB: save it as JSON Lines" in refusal(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_truncated_gzip(tmp_path, name):
    many = [{"prompt": str(n) * 40, "chosen": "a", "rejected": "b"} for n in range(2_000)]
    path = write(tmp_path / name, many)
    path.write_bytes(path.read_bytes()[:-50])
    assert "damaged or cut off" in refusal(path)


def test_no_gzip_at_all(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_text(as_jsonl(EXPLICIT))
    assert "damaged or cut off after line 0" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "x", "must end in one of .jsonl, .json, .csv, .parquet"),
        ("a.jsonl", "", "has no pairs"),
        ("a.jsonl", "\n\n", "has no pairs"),
        ("a.json", '{"prompt": 1}', "must be a JSON array of objects, is an object"),
        ("a.json", '[{"prompt": 1},\n]', "line 2: is not JSON"),
        ("a.parquet", "PAR1 not really", "is not a whole Parquet file"),
        ("a.csv", 'prompt,chosen,rejected\nq,"a', "line 2: is not CSV"),
        ("a.csv", "prompt,chosen,chosen\nq,a,b", "line 1: two columns are called 'chosen'"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    assert said in refusal(path)


def test_no_such_file_and_a_folder(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.jsonl")


def test_dialogues_that_part_too_early_or_have_no_answer(tmp_path):
    records = [
        {"chosen": f"{HUMAN} a{ASSISTANT} b", "rejected": f"{HUMAN} other{ASSISTANT} c"},
        {"chosen": "no marker", "rejected": "none"},
    ]
    first, second = read_pairs(write(tmp_path / "a.jsonl", records))
    assert first == (1, "chosen and rejected differ before their last answer: they share no prompt")
    assert second[0] == 2 and "to part prompt and answer at" in second[1]
