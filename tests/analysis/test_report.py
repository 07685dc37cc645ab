"""The page stands alone, its numbers are computed, and the same inputs give the same bytes."""

import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
from synthetic_study import DPO, PPO, Builder

from analysis import findings, views
from analysis.formats import fixed, number, short, with_error
from analysis.report import sample_completions, write_report
from analysis.study import load
from pipelines.evaluate.schema import TABLES

CSVS = ["frontier", "compute", "objective", "comparison", "kl_agreement", "reward_model"]


class Loads(HTMLParser):
    """Everything that a page would fetch, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.loads = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]


def test_report_is_one_file_that_loads_nothing(written):
    text = (written / "report.html").read_text()
    page = Loads(text)
    assert len(page.loads) == 5 and all(v.startswith("data:image/png;base64,") for v in page.loads)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in text and "url(" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "&lt;made up&gt;" in text


def test_everything_is_written(written):
    for name in [*CSVS, "sample_completions"]:
        assert (written / "tables" / f"{name}.csv").stat().st_size > 50, name
        assert r"\toprule" in (written / "tables" / f"{name}.tex").read_text(), name
    for name in ("frontier", "objective", "cost", "training", "estimators"):
        assert (written / "figures" / f"{name}.png").stat().st_size > 10_000, name
        assert (written / "figures" / f"{name}.pdf").stat().st_size > 5_000, name
    for name in ("frontier", "objective", "compute"):
        assert list(pd.read_csv(written / "tables" / f"{name}.csv")) == list(TABLES[name])


def test_same_inputs_same_bytes_and_text_survives_without_samples(written, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(written, again)
    (again / "tables" / "samples.parquet").unlink()
    for path in [*again.glob("figures/*"), *again.glob("tables/*.tex"), again / "report.html"]:
        path.unlink()
    write_report(again)
    made = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    for path in made:
        if path.name != "samples.parquet":
            assert (again / path).read_bytes() == (written / path).read_bytes(), path


def test_only_compute_depends_on_timings(written, builder, tmp_path):
    for made in builder.records.values():
        made["cost"]["seconds"] *= 2
    folder = builder.write(tmp_path / "slow")
    write_report(folder)
    for name in [*CSVS, "sample_completions"]:
        same = (folder / "tables" / f"{name}.csv").read_bytes() == (
            written / "tables" / f"{name}.csv"
        ).read_bytes()
        assert same == (name != "compute"), name


def test_fresh_clone_without_any_text(builder, tmp_path):
    folder = builder.write(tmp_path / "s", samples=False)
    result = write_report(folder)
    assert "The generated text is not stored here" in (folder / "report.html").read_text()
    assert len(result["headline"]) == 1 + len(DPO) + len(PPO)


def test_several_seeds(tmp_path):
    folder = Builder(prompts=6, samples=2, reference=32, seeds=2).write(tmp_path / "s")
    result = write_report(folder)
    assert set(result["headline"]["seeds"]) == {2}
    assert "2 seeds" in result["caveats"][0]
    assert len(pd.read_csv(folder / "tables" / "reward_model.csv")) == 2


def test_completions_side_by_side(builder, tmp_path):
    table = sample_completions(load(builder.write(tmp_path / "s")))
    assert table["prompt_id"].nunique() == 6 and len(table) == 6 * (1 + len(DPO) + len(PPO))
    assert table["arm"].iloc[0] == "sft"
    assert table.loc[table["arm"] == "sft", "log_ratio"].abs().max() < 1e-6


def test_one_seed_is_said(written):
    assert (
        "One seed (seed 0): all intervals are over prompts only"
        in (written / "report.html").read_text()
    )


def test_wording_follows_the_data():
    def row(setting, difference, low, high, higher):
        names = {"arm_a": "ppo", "variant_a": "", "arm_b": "dpo", "variant_b": "", "higher": higher}
        numbers = {"setting": setting, "difference": difference, "ci_low": low, "ci_high": high}
        return {**names, **numbers}

    rows = [row(0.1, 1.0, 0.5, 1.5, "ppo"), row(1.0, -2.0, -2.5, -1.5, "dpo")]
    [text] = findings.compared(pd.DataFrame([*rows, row(3.0, 0.1, -0.2, 0.4, "none shown")]))
    assert "PPO is above DPO by 1.00 [0.50 to 1.50] at c = 0.1" in text
    assert "DPO is above PPO by 2.00 [1.50 to 2.50] at c = 1" in text
    assert re.search(
        r"no difference shown between PPO and DPO at c = 3 .*0\.10 \[.0\.20 to 0\.40\]", text
    )
    [text] = findings.compared(pd.DataFrame([row(3.0, 0.1, -0.2, 0.4, "none shown")]))
    assert "above" not in text and "no difference shown" in text


def test_meter_in_doubt_is_said():
    table = pd.DataFrame(
        {
            "arm": ["sft", "ppo"],
            "setting": [None, 0.1],
            "agree": [True, False],
            "largest_z": [0.0, 7.0],
            "n_prompts": 256,
        }
    )
    assert "differ by more than 3 standard errors for 1 of 2 policies (PPO 0.1" in findings.meter(
        table
    )
    assert "agree within 3" in findings.meter(table.assign(agree=True, largest_z=1.0))


def test_shares_without_a_trusted_optimum_are_bounds():
    table = pd.DataFrame(
        {
            "arm": "dpo",
            "setting": [0.1, 0.3, 1.0],
            "seed": 0,
            "variant": "",
            "reward_gold": 1.0,
            "kl": 1.0,
            "objective": 1.0,
            "objective_sft": 0.5,
            "objective_optimum": 2.0,
            "ess": [2.0, 5.0, 90.0],
            "gain": 0.5,
            "gain_se": 0.1,
            "above_sft": True,
            "closed_share": [1.4, 0.4, 0.3],
        }
    )
    shown = [row[-1] for row in views.objective_grid(table)["rows"]]
    assert shown == ["no bound", "\u2264 40%", "30%"]


@pytest.mark.parametrize(
    "tuning, parts", [(None, 0), ("", 0), ("sentiment-tuning", 1), ({"a": 1}, 1)]
)
def test_tuning_log_of_any_kind(tuning, parts):
    assert len(views.tuning_parts(tuning)) == parts


def test_numbers_for_readers():
    assert [number(v) for v in (0.012345, 273.4, 12345.6, -1.5, 0.0, 9.996)] == [
        "0.0123", "273", "12,346", "\u22121.50", "0", "10.0",
    ]  # fmt: skip
    assert number(float("nan")) == "\u2013" and fixed(-0.5) == "\u22120.50"
    assert [short(v) for v in (0, 258.0, 3.8e12)] == ["0", "258", "3.80 T"]
    assert with_error({"x": 1.234, "x_se": 0.05}, "x") == "1.23 \u00b1 0.05"
