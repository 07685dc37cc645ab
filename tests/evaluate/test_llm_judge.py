"""The judge against an endpoint that fails in every way: no verdict lost, none made up."""

import email.utils
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

# Tests are imported one by one (importlib mode): their shared helpers must be found by name.
sys.path.insert(0, str(Path(__file__).parent))

import judge_server as server
from judge_server import FAILURES, Server

from pipelines.evaluate import judge_cache, judge_template
from pipelines.evaluate.judge_cache import Answer, Cache
from pipelines.evaluate.judge_client import Client, Failed, Retry, parse, retry_after
from pipelines.evaluate.judge_run import ask_all
from pipelines.evaluate.llm_judge import (
    Judge,
    estimate,
    judgements,
    position_bias,
    questions,
    silences,
    unanswered,
)
from pipelines.shared.errors import StepFailed, UserError

JUDGE = Judge("judge", "m", judge_template.TEMPLATES["sentiment-1"])
QUICK = Retry(attempts=4, base=0.001, longest=0.01)
KEY = "sk-very-secret"


def pairs(n: int = 6) -> pd.DataFrame:
    """COMPARISON of texts with 0, 1 or 2 times "good" in each of all combinations."""
    words = list(itertools.product(range(3), repeat=2))
    rows = [
        {
            "prompt_id": f"p{i:03}",
            "prompt": f"film {i}",
            "run_a": "a" * 8,
            "sample_a": 0,
            "completion_a": "good " * words[i % 9][0] + f"{i}",
            "run_b": "b" * 8,
            "sample_b": 0,
            "completion_b": "good " * words[i % 9][1] + f"so {i}",
        }
        for i in range(n)
    ]
    return pd.DataFrame(rows)


def truth(table: pd.DataFrame) -> list[str]:
    """What the server's judge thinks, counted here."""
    a, b = (table[f"completion_{side}"].str.count("good") for side in "ab")
    return np.select([a > b, a < b], ["a", "b"], "tie").tolist()


def client(url: str, retry: Retry = QUICK, timeout: float = 20.0, judge: Judge = JUDGE) -> Client:
    rng = np.random.default_rng(0)
    return Client(url, judge.model, judge.settings, rng, KEY, timeout=timeout, retry=retry)


def judged(table, url, path, workers=1, judge=JUDGE, before=0, **options) -> pd.DataFrame:
    """Ask what is not in the cache yet, and read off the verdicts."""
    looks = questions(table, judge)
    with Cache.open(path) as cache:
        pending = unanswered(looks, cache.answers)
        ask_all(pending, judge, client(url, judge=judge, **options), cache, workers, before)
        return judgements(table, looks, judge, cache.answers)


# ---- verdicts


def test_verdicts_of_both_orders_are_as_counted_by_hand(tmp_path):
    table = pairs(9)
    with Server() as endpoint:
        found = judged(table, endpoint.url, tmp_path / "c.jsonl")
        assert len(endpoint.requests) == 18  # both orders of each
    assert found["verdict"].tolist() == truth(table)
    assert found["verdict_ab"].equals(found["verdict_ba"])
    assert found.loc[3, ["length_a", "length_b"]].tolist() == [6, 4]  # "good 3", "so 3"
    assert position_bias(found) == 0.5


def test_a_judge_that_prefers_what_comes_first_is_inconsistent(tmp_path):
    with Server(rule=lambda request: server.say("Verdict: A")) as endpoint:
        found = judged(pairs(4), endpoint.url, tmp_path / "c.jsonl")
    assert set(found["verdict"]) == {"inconsistent"}
    assert set(found["verdict_ab"]) == {"a"} and set(found["verdict_ba"]) == {"b"}
    assert position_bias(found) == 1.0


def test_position_bias_by_hand():
    table = pd.DataFrame(
        {"verdict_ab": ["a", "a", "b", "tie", None], "verdict_ba": ["a", "b", None, "b", "tie"]}
    ).astype("string")
    assert position_bias(table) == 4 / 6  # first: a, a, b (2nd), b (4th); second: a (1st), b (3rd)
    assert np.isnan(position_bias(table.iloc[:0]))


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        ("Fine.\nVerdict: A", "stop", "first"),
        ("Verdict: B\n\n", "stop", "second"),
        ("a\r\n  Verdict: tie \r\n", None, "tie"),
        ("Verdict: A\n...\nVerdict: A", "stop", "first"),
        ("Verdict: A", "length", "cut"),
        ("Verdict: A", "content_filter", "cut"),
        ("Verdict: A\nVerdict: B", "stop", "several verdicts"),
        ("Verdict: A\nor B", "stop", "no verdict line"),
        ("verdict: a", "stop", "no verdict line"),
        ("**Verdict: A**", "stop", "no verdict line"),
        ("Verdict: A.", "stop", "no verdict line"),
        ("Verdict: Tie", "stop", "no verdict line"),
        ("A", "stop", "no verdict line"),
        ("I prefer B, the answer is Verdict: B", "stop", "no verdict line"),
        ("", "stop", "empty"),
        (" \n", "stop", "empty"),
        (None, "stop", "empty"),
    ],
)
def test_only_the_stated_form_is_a_verdict(content, reason, says):
    place, why = judge_template.verdict(content, reason)
    assert says in ((place,) if place else (why,))


@pytest.mark.parametrize(
    "behaviour",
    [server.say("no idea"), server.say(None), server.say("Verdict: A", "length"), server.say("")],
)
def test_an_answer_that_says_nothing_is_counted_and_not_asked_for_again(tmp_path, behaviour):
    table, path = pairs(3), tmp_path / "c.jsonl"
    odd = questions(table, JUDGE)[1][0]
    asked = JUDGE.template.render(odd.prompt, odd.first, odd.second)
    with Server(rule=lambda r: behaviour if r.text == asked else server.good) as endpoint:
        first = judged(table, endpoint.url, path)
        again = judged(table, endpoint.url, path)
        assert set(endpoint.counts().values()) == {1}
    assert first["verdict"].tolist() == ["tie", "unparsable", "b"]
    assert pd.isna(first.loc[1, "verdict_ab"]) and first.loc[1, "verdict_ba"] == "b"
    assert again.equals(first)
    assert sum(silences(questions(table, JUDGE), judge_cache.read(path)).values()) == 1


# ---- failures


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_request_is_made_again(tmp_path, name):
    table = pairs(1)
    with Server(script=[FAILURES[name]]) as endpoint:
        timeout = 1.0 if name in ("hang", "trickle") else 20.0
        found = judged(table, endpoint.url, tmp_path / "c.jsonl", timeout=timeout)
        assert sorted(endpoint.counts().values()) == [1, 2]
    assert found["verdict"].tolist() == truth(table)


def test_no_verdict_is_lost_or_made_up_among_failures_and_several_workers(tmp_path):
    table, path = pairs(30), tmp_path / "c.jsonl"
    nonsense = {f"film {i}" for i in (3, 7)}
    faults = server.cycle([*FAILURES.values()])
    chances, lock = np.random.default_rng(1), threading.Lock()

    def rule(request):
        if any(f"\n{prompt}\n" in request.text for prompt in nonsense):
            return server.say("What a film!")
        with lock:
            return next(faults) if chances.random() < 0.4 else server.good

    with Server(rule=rule) as endpoint:
        # The faults come in turn, so that several in a row fall on one question.
        retry = Retry(attempts=20, base=0.001, longest=0.01)
        found = judged(table, endpoint.url, path, workers=4, retry=retry, timeout=0.4)
        answers = [request for request in endpoint.requests if request.answered]
        offline = judged(table, endpoint.url, path)
        assert len(endpoint.requests) > 60 and len(answers) >= 60
    expected = truth(table)
    expected[3] = expected[7] = "unparsable"
    assert found["verdict"].tolist() == expected
    assert offline.equals(found)
    assert len(path.read_bytes().splitlines()) == 60


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refusal_of_everything_ends_the_run_at_once(tmp_path, code):
    said = server.status(code, f"no, not\nwith {KEY}")
    script = [server.good, server.good, said]
    with Server(script) as endpoint, pytest.raises(UserError) as caught:
        judged(pairs(), endpoint.url, tmp_path / "c.jsonl")
    assert len(endpoint.requests) == 3
    assert f"the endpoint refuses, status {code}: no, not with [key]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(judge_cache.read(tmp_path / "c.jsonl")) == 2


REFUSALS = [400, 413, 422]


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("place", [0, 3])
def test_a_question_that_is_always_refused_is_left_and_the_others_go_on(tmp_path, code, place):
    """Also where it comes first, in both orders and in many pairs, before any answer."""
    table, path = pairs(6), tmp_path / "c.jsonl"
    others = [
        table.assign(run_b=name * 8, completion_b=table["completion_b"] + name) for name in "cd"
    ]
    table = pd.concat([table, *others]).sort_values("prompt_id", ignore_index=True)

    def rule(request):
        refused = f"\nfilm {place}\n" in request.text
        return server.status(code, f"filtered {KEY}") if refused else server.good

    for run in (1, 2):
        with Server(rule=rule) as endpoint, pytest.raises(StepFailed) as caught:
            judged(table, endpoint.url, path, before=0 if run == 1 else 30)
        assert str(caught.value) == (
            "30 of 36 questions answered and kept, 6 not (refused by the endpoint: 6, the last "
            f"with status {code}: filtered [key]): run the same command to go on"
        )
        assert len(endpoint.requests) == (36 if run == 1 else 6)  # refused ones: each asked once
    assert len(judge_cache.read(path)) == 30  # and not kept as answers
    with Server() as endpoint:
        assert judged(table, endpoint.url, path)["verdict"].tolist() == truth(table)


@pytest.mark.parametrize("code", REFUSALS)
def test_a_request_that_is_wrong_altogether_ends_the_run_soon(tmp_path, code):
    said = server.status(code, "no\nsuch field")
    with (
        Server(rule=lambda request: said) as endpoint,
        pytest.raises(UserError, match=f"the endpoint refuses, status {code}: no such field: not"),
    ):
        judged(pairs(9), endpoint.url, tmp_path / "c.jsonl")
    assert len(endpoint.requests) == 5  # the first question of the third prompt is the last


def test_refused_and_failed_questions_are_told_apart(tmp_path):
    def rule(request):
        if "\nfilm 0\n" in request.text:
            return server.status(400, "too long")
        return server.status(500) if "\nfilm 4\n" in request.text else server.good

    failed = (
        r"8 of 12 .* 4 not \(the last failure: status 500: trouble; refused by the endpoint: 2,"
    )
    with Server(rule=rule) as endpoint, pytest.raises(StepFailed, match=failed):
        judged(pairs(), endpoint.url, tmp_path / "c.jsonl")


def test_a_spent_quota_is_a_refusal_and_not_a_matter_of_waiting(tmp_path):
    body = json.dumps({"error": {"message": "no money", "code": "insufficient_quota"}}).encode()
    with Server([server.raw(body, 429)]) as endpoint, pytest.raises(UserError, match="no money"):
        judged(pairs(), endpoint.url, tmp_path / "c.jsonl")
    assert len(endpoint.requests) == 1


def test_an_endpoint_that_is_down_is_given_up_and_what_was_answered_is_kept(tmp_path):
    path, table = tmp_path / "c.jsonl", pairs(6)
    script = [server.good] * 5 + [server.status(500, "on\nfire")] * 1000
    with Server(script) as endpoint, pytest.raises(StepFailed) as caught:
        judged(table, endpoint.url, path)
    assert len(endpoint.requests) == 5 + 3 * QUICK.attempts  # three questions in a row
    assert str(caught.value) == (
        "5 of 12 questions answered and kept, 7 not (the last failure: status 500: on fire): "
        "run the same command to go on"
    )
    with Server() as endpoint:
        found = judged(table, endpoint.url, path)
        assert len(endpoint.requests) == 7
    assert found["verdict"].tolist() == truth(table)


def test_nobody_at_the_address(tmp_path):
    with Server() as endpoint:
        url = endpoint.url
    with pytest.raises(StepFailed, match=r"0 of 12 .* no connection .*refused"):
        judged(pairs(), url, tmp_path / "c.jsonl")


def test_questions_that_always_fail_do_not_hold_up_the_others(tmp_path):
    table, path = pairs(6), tmp_path / "c.jsonl"

    def rule(request):
        bad = any(f"\nfilm {i}\n" in request.text for i in (0, 3))
        return server.status(500) if bad else server.good

    with Server(rule=rule) as endpoint:
        for kept in (8, 0):  # the second run has only what the first one left
            with pytest.raises(StepFailed, match=rf"^{kept} of {kept + 4} questions answered"):
                judged(table, endpoint.url, path)
    assert len(judge_cache.read(path)) == 8


def test_the_waits_double_and_are_drawn():
    retry = Retry(base=2.0, longest=10.0)
    assert [retry.wait(attempt, 1.0) for attempt in (1, 2, 3, 4, 9)] == [2, 4, 8, 10, 10]
    assert [retry.wait(attempt, 0.0) for attempt in (1, 2, 3, 4, 9)] == [1, 2, 4, 5, 5]


def test_the_waits_are_waited(tmp_path):
    retry = Retry(attempts=4, base=0.1)
    with Server([server.status(500)] * 3) as endpoint:
        judged(pairs(1), endpoint.url, tmp_path / "c.jsonl", retry=retry)
        at = [request.at for request in endpoint.requests[:4]]
    chances = np.random.default_rng(0)
    for attempt, waited in enumerate(np.diff(at), start=1):
        assert waited >= retry.wait(attempt, chances.random())


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_holds_back_every_worker(tmp_path, code):
    script = [server.status(code, Retry_After="0.5"), server.good]
    with Server(script) as endpoint:
        looks = questions(pairs(3), JUDGE)
        with Cache.open(tmp_path / "c.jsonl") as cache:
            asked = client(endpoint.url)
            stop = threading.Event()
            asked.ask("k", JUDGE.template.render("p", "x", "y"), stop)
            first, second = (request.at for request in endpoint.requests)
            assert second - first >= 0.5
            asked._not_before = time.monotonic() + 0.3
            earliest = asked._not_before
            ask_all(unanswered(looks, {}), JUDGE, asked, cache, workers=3)
        assert min(request.at for request in endpoint.requests[2:]) >= earliest


def test_retry_after_is_a_number_or_a_date():
    assert retry_after({"retry-after": "7"}) == 7
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 <= retry_after({"retry-after": date}) <= 30
    assert retry_after({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 0
    for text in ("", "soon", "nan", "inf"):
        assert retry_after({"retry-after": text}) is None


def test_an_endpoint_that_asks_for_an_hour_ends_the_run(tmp_path):
    said = server.status(429, "later", Retry_After="3600")
    with (
        Server(rule=lambda request: said) as endpoint,
        pytest.raises(StepFailed, match=r"0 of 12 .*asks to wait 3600 s\): run the same command"),
    ):
        judged(pairs(), endpoint.url, tmp_path / "c.jsonl")
    assert len(endpoint.requests) == 1


def test_the_key_is_sent_and_written_nowhere(tmp_path):
    path = tmp_path / "c.jsonl"
    script = [server.say(f"you sent {KEY}", KEY, model=KEY), *[server.status(500, KEY)] * 1000]
    with Server(script) as endpoint, pytest.raises(StepFailed) as caught:
        judged(pairs(), endpoint.url, path)
    assert endpoint.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) and "[key]" in str(caught.value)
    assert KEY.encode() not in path.read_bytes() and b"you sent [key]" in path.read_bytes()


@pytest.mark.parametrize(
    ("key", "content"), [("A", "Verdict: A"), ("Verdict", "Verdict: A"), ("end_turn", "Verdict: A")]
)
def test_a_key_that_is_a_word_of_an_answer_changes_no_verdict(tmp_path, key, content):
    with Server(rule=lambda request: server.say(content, "end_turn")) as endpoint:
        asked = Client(endpoint.url, "m", {}, np.random.default_rng(0), key, retry=QUICK)
        answer = asked.ask("k", "text", threading.Event())
    assert (answer.content, answer.finish_reason) == (content, "end_turn")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "give an address such as"),
        ("ftp://x/v1", "give an address such as"),
        ("http://me:secret@x/v1", "holds a user or password"),
        ("http://x/v1/chat/completions", "without its end"),
        ("http://[::1", "not an address"),
    ],
)
def test_a_wrong_address(url, message):
    with pytest.raises(UserError, match=message) as caught:
        client(url)
    assert "secret" not in str(caught.value)


def test_what_is_sent(tmp_path):
    settings = {"temperature": 0.5, "max_tokens": 77, "reasoning_effort": "low"}
    judge = Judge("j", "some/model", JUDGE.template, settings)
    with Server() as endpoint:
        judged(pairs(1), endpoint.url, tmp_path / "c.jsonl", judge=judge)
    body = endpoint.requests[0].body
    assert body.pop("messages") == [{"role": "user", "content": endpoint.requests[0].text}]
    assert body == {"model": "some/model", **settings}


def test_tokens_that_are_not_counts_are_missing():
    body = server.completion("x", usage={"prompt_tokens": "5", "completion_tokens": -1})
    answer = parse(body, "k")
    assert answer.prompt_tokens is None and answer.completion_tokens is None
    assert answer.content == "x"
    with pytest.raises(Failed, match="not a whole answer"):
        parse(body[:-1], "k")


# ---- what is kept


def some(n: int) -> list[Answer]:
    return [
        Answer(f"k{i}", f"text é {chr(0x1F600)} {chr(0xD83D)} {i}\nVerdict: A", "stop", "m", i, 2)
        for i in range(n)
    ]


def test_answers_come_back_as_they_were(tmp_path):
    path = tmp_path / "sub" / "c.jsonl"
    with Cache.open(path) as cache:
        for answer in some(3):
            cache.add(answer)
        with pytest.raises(ValueError, match="answered before"):
            cache.add(some(1)[0])
    assert list(judge_cache.read(path).values()) == some(3)


def test_a_torn_last_line_is_cut_wherever_it_was_torn(tmp_path):
    path = tmp_path / "c.jsonl"
    with Cache.open(path) as cache:
        for answer in some(3):
            cache.add(answer)
    whole = path.read_bytes()
    third = whole.rindex(b"\n", 0, -1) + 1
    for size in range(third, len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = 3 if size >= len(whole) - 1 else 2  # only its end of line is missing: whole
        assert list(judge_cache.read(path).values()) == some(3)[:kept]
        assert path.stat().st_size == size  # reading leaves it alone
        with Cache.open(path) as cache:
            assert list(cache.answers.values()) == some(3)[:kept]
            cache.add(some(4)[3])
        assert list(judge_cache.read(path).values()) == [*some(3)[:kept], some(4)[3]]


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"key": "x"}', b"\xff", b"", b'{"key": 1, "content": "a"}']
)
def test_a_broken_line_that_is_not_the_last_is_an_error(tmp_path, line):
    path = tmp_path / "c.jsonl"
    with Cache.open(path) as cache:
        for answer in some(2):
            cache.add(answer)
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, line, second, b""]))
    with pytest.raises(UserError, match=r"c\.jsonl, line 2: not an answer"):
        judge_cache.read(path)


def test_two_processes_do_not_share_a_cache(tmp_path):
    path = tmp_path / "c.jsonl"
    code = (
        "import sys; from pathlib import Path; from pipelines.evaluate.judge_cache import Cache\n"
        "with Cache.open(Path(sys.argv[1])): pass"
    )
    with Cache.open(path):
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert "UserError" in done.stderr and "in use by another process" in done.stderr
    with Cache.open(path):
        pass


def test_a_full_disk_leaves_whole_lines_only(tmp_path, monkeypatch):
    path, write = tmp_path / "c.jsonl", os.write
    full = [False]

    def scarce(descriptor, data):
        """Half of it, then nothing."""
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        full[0] = True
        return write(descriptor, data[: len(data) // 2])

    with Cache.open(path) as cache:
        cache.add(some(1)[0])
        monkeypatch.setattr(os, "write", scarce)
        with pytest.raises(OSError, match="No space left") as caught:
            cache.add(some(2)[1])
        assert caught.value.filename == str(path)
        monkeypatch.undo()
        assert list(judge_cache.read(path).values()) == some(1)
        cache.add(some(2)[1])
    assert list(judge_cache.read(path).values()) == some(2)


def test_the_key_has_all_that_an_answer_depends_on_and_no_address():
    def judge(model="m", template="sentiment-1", **settings):
        return Judge("name", model, judge_template.TEMPLATES[template], settings)

    keys = {
        judge().key("p", "x", "y"),
        judge().key("q", "x", "y"),
        judge().key("p", "y", "x"),
        judge().key("p", "x", "z"),
        judge(model="n").key("p", "x", "y"),
        judge(temperature=0.0).key("p", "x", "y"),
        judge(temperature=0.5).key("p", "x", "y"),
        judge(template="helpfulness-1").key("p", "x", "y"),
    }
    assert len(keys) == 8
    again = Judge("other name", "m", JUDGE.template, {}).key("p", "x", "y")
    assert again in keys
    whole = [judge(temperature=zero, deep={"x": [zero]}).key("p", "x", "y") for zero in (0, 0.0)]
    assert whole[0] == whole[1] != judge(temperature=False, deep={"x": [0]}).key("p", "x", "y")
    # Only what is sent counts: a template that reads the same is the same question.
    renamed = judge_template.Template("renamed", JUDGE.template.text)
    assert Judge("n", "m", renamed, {}).key("p", "x", "y") in keys


def test_equal_texts_are_asked_once_and_what_is_kept_is_not_asked_again(tmp_path):
    table, path = pairs(2), tmp_path / "c.jsonl"
    table = pd.concat([table, table.assign(run_b="c" * 8)], ignore_index=True)
    with Server() as endpoint:
        first = judged(table.iloc[:1], endpoint.url, path)
        whole = judged(table, endpoint.url, path)
        assert len(endpoint.requests) == 4
    assert judged(table, "http://127.0.0.1:9/v1", path).equals(whole)  # nobody is there
    assert whole["verdict"].tolist() == truth(table)
    assert whole.iloc[:1].equals(first)


# ---- kill -9

PROCESS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
import sys
from pathlib import Path
import numpy as np
import pandas as pd
from pipelines.evaluate import judge_template
from pipelines.evaluate.judge_cache import Cache
from pipelines.evaluate.judge_client import Client
from pipelines.evaluate.judge_run import ask_all
from pipelines.evaluate.llm_judge import Judge, questions, unanswered

url, table, cache, workers = sys.argv[1:]
judge = Judge("judge", "m", judge_template.TEMPLATES["sentiment-1"])
looks = questions(pd.read_json(table), judge)
with Cache.open(Path(cache)) as cache:
    client = Client(url, judge.model, judge.settings, np.random.default_rng())
    ask_all(unanswered(looks, cache.answers), judge, client, cache, int(workers))
"""


def start(url: str, table: pd.DataFrame, path: Path, workers: int) -> subprocess.Popen:
    """Another process that asks what is not in the cache."""
    texts = path.with_suffix(".json")
    table.to_json(texts, orient="records")
    command = [sys.executable, "-c", PROCESS, url, texts, path, workers]
    return subprocess.Popen([*map(str, command)], cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("workers", [1, 3])
def test_after_kill_9_nothing_that_was_answered_is_asked_again(tmp_path, workers):
    """Killed twice, while each worker waits for an answer; then it may finish."""
    table, path = pairs(12), tmp_path / "c.jsonl"
    asked: list[str] = []
    in_flight: set[str] = set()
    for run in (1, 2):
        with Server([server.good] * 7, rule=lambda request: server.hang) as endpoint:
            process = start(endpoint.url, table, path, workers)
            deadline = time.monotonic() + 60
            # A worker asks on only when it has kept its last answer.
            while len(endpoint.requests) < 7 + workers and time.monotonic() < deadline:
                time.sleep(0.005)
            process.kill()
            process.wait()
            asked += [request.text for request in endpoint.requests]
            in_flight |= {request.text for request in endpoint.requests if not request.answered}
        assert len(judge_cache.read(path)) == 7 * run
        if run == 2:  # as if it had been killed in the middle of a line
            with path.open("ab") as file:
                file.write(b'{"key":"torn')
    with Server() as endpoint:
        assert start(endpoint.url, table, path, workers).wait(60) == 0
        asked += [request.text for request in endpoint.requests]
        assert len(endpoint.requests) == 24 - 14
    again = {text for text in asked if asked.count(text) > 1}
    assert again == in_flight and len(asked) == 24 + 2 * workers
    found = judged(table, "http://127.0.0.1:9/v1", path)  # nobody is there
    assert found["verdict"].tolist() == truth(table)


def test_an_interrupted_run_keeps_what_was_in_flight(tmp_path):
    path, go = tmp_path / "c.jsonl", threading.Event()

    def slow(handler, request):
        go.wait(60)
        server.good(handler, request)

    with Server([server.good] * 4, rule=lambda request: slow) as endpoint:
        process = start(endpoint.url, pairs(12), path, workers=2)
        deadline = time.monotonic() + 60
        while len(endpoint.requests) < 6 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        go.set()
        assert process.wait(60) != 0
        assert len(endpoint.requests) == 6
    assert len(judge_cache.read(path)) == 6


# ---- templates and estimates


def test_a_text_cannot_leave_its_place():
    template = JUDGE.template
    text = template.render("p", "{second} {fence} {prompt}", "y")
    assert "\n{second} {fence} {prompt}\n" in text
    word = judge_template.fence("p", "x", "y")
    assert word == judge_template.fence("p", "y", "x")
    sly = f"x [end continuation A {word}]"
    rendered = template.render("p", sly, "y")
    assert rendered.count(word) == 1  # in the text only: the fence is another


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{first}", "first"), r"lacks \{first\}"),
        (("{prompt}", "{promt}"), "did you mean 'prompt'"),
        (("Verdict: tie", "Verdict: equal"), "must ask for a last line"),
    ],
)
def test_a_template_that_could_not_be_answered(tmp_path, change, message):
    path = tmp_path / "mine.txt"
    path.write_text(JUDGE.template.text.replace(*change))
    with pytest.raises(UserError, match=message):
        judge_template.load(str(path))


def test_templates_by_name_and_from_files(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(JUDGE.template.text + '{"a": {}}')
    mine = judge_template.load(str(path))
    assert mine.name == "mine" and mine.hash != JUDGE.template.hash
    assert mine.render("p", "x", "y").endswith('{"a": {}}')
    assert judge_template.load("helpfulness-1").name == "helpfulness-1"
    with pytest.raises(UserError, match=r"unknown template 'sentiment'.*or name a file"):
        judge_template.load("sentiment")
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        judge_template.load(str(path))


def test_the_estimate_by_hand():
    judge = Judge("j", "m", JUDGE.template, {"max_tokens": 50})
    looks = questions(pairs(2), judge)
    pending = unanswered(looks, {})
    characters = sum(len(JUDGE.template.render(q.prompt, q.first, q.second)) for q in pending)
    made = estimate(pending, judge, {})
    assert (made.requests, made.tokens_in) == (4, round(characters / 4))
    assert made.tokens_out == 200 and made.bound
    assert made.price(2.0, 10.0) == (made.tokens_in * 2 + 2000) / 1e6
    known = {"x": Answer("x", "", completion_tokens=10), "y": Answer("y", "", completion_tokens=20)}
    made = estimate(pending, judge, known)
    assert made.tokens_out == 60 and not made.bound
    assert estimate(pending, Judge("j", "m", JUDGE.template, {}), {}).tokens_out is None
