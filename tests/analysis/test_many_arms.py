"""Twenty arms: figures that can be read, sentences that stay short, arms without a J."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation, Text
from synthetic_arms import ARMS, catalogue
from synthetic_study import Builder

from analysis import families_plot, findings, labels, objective_plot, plots, report, style
from analysis.catalogue import Catalogue
from analysis.formats import arm_name
from analysis.frontier import points
from analysis.study import load
from analysis.tables import make_tables


@pytest.fixture(scope="module")
def study(full):
    return load(full["report"].parent)


@pytest.fixture(scope="module")
def tables(study):
    return make_tables(study)


@pytest.fixture(scope="module")
def figures(study, tables):
    return report.draw(study, tables, points(study.scores))


def names_of(axes):
    return [text for text in axes.texts if isinstance(text, Annotation)]


def test_only_arms_with_a_coefficient_have_a_gain(study, tables):
    aimed = {arm for arm, (_, _, coefficient, *_) in ARMS.items() if coefficient}
    for name in ("objective", "gains"):
        assert set(tables[name]["arm"]) == aimed, name
    table = findings.headline(
        points(study.scores),
        tables["objective"],
        tables["gains"],
        tables["compute"],
        study.catalogue,
    )
    assert table["gain"].notna().equals(table["arm"].isin(aimed))
    assert list(dict.fromkeys(table["arm"])) == [a for a in ARMS if a in set(table["arm"])]
    assert table["seconds"].notna().all()


def test_names_neither_overlap_nor_leave_the_axes(figures):
    figure = figures["frontier"]
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in names_of(axes)]
        frame = axes.get_window_extent()
        texts = [text.get_text() for text in names_of(axes)]
        for (a, first), (b, second) in itertools.combinations(zip(texts, boxes, strict=True), 2):
            apart = first.x1 <= second.x0 or second.x1 <= first.x0
            assert apart or first.y1 <= second.y0 or second.y1 <= first.y0, (a, b)
        for text, box in zip(texts, boxes, strict=True):
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1, text


def test_every_arm_is_named_in_the_overview_and_in_its_family(figures):
    axes = figures["frontier"].axes
    overview = {text.get_text() for text in names_of(axes[0])}
    assert overview >= {arm_name(arm) for arm, row in ARMS.items() if row[4] or arm == "sft"}
    by_title = {panel.get_title(loc="left"): panel for panel in axes[1:]}
    assert list(by_title) == [
        "supervised",
        "reinforcement learning",
        "DPO and its relatives",
        "sampling from the SFT model",
    ]
    own = {text.get_text() for text in names_of(by_title["DPO and its relatives"])}
    assert {"KTO", "online DPO", "SFT"} <= own and "PPO" not in own


def test_families_have_their_own_colour_and_marker():
    looks = style.family_styles({**dict.fromkeys("ab", "dpo"), "c": "rl", "d": "mine", "e": "own"})
    assert looks["a"] == looks["b"]
    assert len({colour for colour, _ in looks.values()}) == 4
    assert len({marker for _, marker in looks.values()}) == 4


def test_names_keep_apart_in_a_crowd():
    figure = style.new_figure(4, 3)
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    crowd = [labels.Label(0.99, 0.5, f"name {k}", "black") for k in range(8)]
    labels.place(axes, crowd, [np.array([[0.0, 0.5], [0.99, 0.5]])])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in names_of(axes)]
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    assert max(box.x1 for box in boxes) <= axes.get_window_extent().x1


def test_few_arms_keep_the_two_panels(builder, tmp_path):
    few = load(builder.write(tmp_path / "s"))
    assert not report.many_arms(few)
    drawn = report.draw(few, make_tables(few), points(few.scores))
    assert len(drawn["frontier"].axes) == 2


def test_the_objective_has_a_panel_a_coefficient_and_a_row_an_arm(figures):
    panels = figures["objective"].axes
    assert [panel.get_title(loc="left") for panel in panels] == [
        f"c = {c}" for c in ("0.05", "0.1", "0.3", "1")
    ]
    rows = [label.get_text() for label in panels[0].get_yticklabels()]
    assert rows[0] == "PPO" and "GRPO" in rows and "KTO" not in rows
    empty = pd.DataFrame({"arm": [], "setting": []})
    assert objective_plot.objective(empty, empty, Catalogue(catalogue())) is None


def test_the_estimators_figure_has_the_worst(tables, figures):
    table = tables["kl_agreement"]
    shown = [label.get_text() for label in figures["estimators"].axes[0].get_yticklabels()]
    assert len(shown) == plots.MOST_ROWS
    worst = table[table["arm"] != "sft"].sort_values("largest_z").iloc[-1]
    assert any(name.startswith(arm_name(worst["arm"])) for name in shown)


def test_training_has_a_column_pair_for_each_arm_with_snapshots(figures):
    titles = {axes.get_title(loc="left") for axes in figures["training"].axes if axes.get_visible()}
    assert titles - {""} == {arm_name(arm) for arm, row in ARMS.items() if row[4]}


def test_the_page_of_many_arms(study, full):
    assert max(len(sentence) for sentence in full["sentences"]) < 600
    page = full["report"].read_text()
    assert "what kto does, in a line" in page and "<h2>The arms</h2>" in page
    assert "Best-of-n trains nothing" in page and "J of all 36 policies" in page
    assert "All 70 policies start from the SFT model" in page
    assert "9 of 18 trained arms have c as their setting" in page
    assert "only PPO-GT sees the gold reward" in page
    assert "The 20 policies whose estimates differ most" in page
    header = (study.folder / "tables" / "headline.md").read_text().splitlines()[0]
    assert header.startswith("| arm | setting |")


def test_the_highest_is_of_arms_that_do_not_see_the_gold_reward():
    row = {"setting": 0.1, "variant": "", "ci_low": 0.0, "ci_high": 1.0}
    gains = {"ppo": 1.0, "dpo": 2.0, "rloo": 1.5, "ppo-gt": 9.0}
    table = pd.DataFrame([{**row, "arm": arm, "gain": gain} for arm, gain in gains.items()])
    text = findings.highest(table, Catalogue(catalogue()))
    assert "DPO at c = 0.1 (2.00 over SFT; 3 arms)" in text and "PPO-GT" not in text
    assert findings.highest(table.head(2), Catalogue(catalogue())) == ""


def test_many_shares_are_counted():
    row = {"arm": "dpo", "variant": "", "closed_low": 0.1, "closed_high": 0.9}
    rows = [{**row, "setting": k, "closed_share": k / 20} for k in range(1, 13)]
    text = findings._shares(pd.DataFrame(rows))
    assert text.startswith("12 policies close a part, from 5% to 60%; the most: DPO 12 closes 60%")
    assert text.count("closes") == 3


def test_variants_and_seeds_of_many_arms(tmp_path):
    builder = Builder.full(prompts=4, samples=2, reference=16, seeds=2)
    folder = builder.write(tmp_path / "s")
    made = load(folder)
    figure = families_plot.families(
        points(made.scores), make_tables(made)["frontier"], "reward", made.catalogue
    )
    assert len(figure.axes) == 5
