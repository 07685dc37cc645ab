"""Each policy pays for all that it stands on, once."""

import pytest

from analysis import plots
from analysis.compute import compute, ratios, typical
from analysis.study import dependencies, load
from pipelines.shared.errors import UserError


@pytest.fixture
def table(builder, tmp_path):
    return compute(load(builder.write(tmp_path / "s")))


def cost(table, arm, setting, stage):
    rows = table[(table["arm"] == arm) & (table["stage"] == stage)]
    rows = rows[rows["setting"].isna()] if setting is None else rows[rows["setting"] == setting]
    assert len(rows) == 1
    return rows.iloc[0]


def test_totals_without_and_with_preference_data(table):
    # Seconds: corpus 3, sft 135, gold 2, completions 12, pairs 1, reward model 20, DPO's reference
    # log-probs 4, dpo 25, ppo 100.
    assert cost(table, "sft", None, "total")["seconds"] == 138
    assert cost(table, "dpo", 0.1, "total")["seconds"] == 138 + 4 + 25
    assert cost(table, "dpo", 0.1, "total_with_pairs")["seconds"] == 138 + 4 + 25 + 15
    assert cost(table, "ppo", 0.1, "total")["seconds"] == 138 + 20 + 100
    assert cost(table, "ppo", 0.1, "total_with_pairs")["seconds"] == 138 + 20 + 100 + 15
    assert cost(table, "ppo", 0.1, "total")["flops"] == 10**12 + 3 * 10**11 + 2 * 10**12
    assert cost(table, "ppo", 0.1, "total")["peak_memory_bytes"] == 135_000_000
    assert "evaluation" not in set(table["stage"])


def test_stages_of_one_kind_are_summed_and_memory_is_the_largest(builder, tmp_path):
    # A policy that stands on another of its own stage: two rounds of DPO.
    arm = next(a for a in builder.arms if a["arm"] == "dpo" and a["setting"] == 0.3)
    second = builder.add("dpo", "round-2", {"before": arm["policy"], "sft": builder.sft}, 40, 7)
    builder.records[arm["evaluation"]]["identity"]["upstream"]["policy"] = second
    arm["policy"] = second
    row = cost(compute(load(builder.write(tmp_path / "s"))), "dpo", 0.3, "dpo")
    assert (row["seconds"], row["flops"]) == (65, 4 * 10**11 + 7)
    assert row["peak_memory_bytes"] == 40_000_000


def test_a_shared_dependency_counts_once(builder):
    policy = next(a["policy"] for a in builder.arms if a["arm"] == "ppo")
    stages = [builder.records[step]["stage"] for step in dependencies(builder.records, policy)]
    assert sorted(stages) == sorted(set(stages))
    assert stages[-1] == "ppo" and stages.index("corpus") < stages.index("sft")


def test_missing_dependency(builder):
    policy = next(a["policy"] for a in builder.arms if a["arm"] == "ppo")
    del builder.records[builder.sft]
    with pytest.raises(UserError, match=rf"step {builder.sft[:8]}, which .* stands on"):
        dependencies(builder.records, policy)


def test_ratios(table):
    rows = ratios(table).set_index(["basis", "metric"])
    assert rows.loc[("total", "seconds"), "ratio"] == pytest.approx(258 / 167)
    assert rows.loc[("total_with_pairs", "seconds"), "ratio"] == pytest.approx(273 / 182)
    assert ratios(table, "ppo", "kto").empty


def test_bars_are_labelled_with_the_tables_totals(table):
    costs = typical(table)
    costs.loc[(costs["arm"] == "dpo") & (costs["stage"] == "total"), "seconds"] = 1234.0
    texts = [text.get_text() for axes in plots.cost(costs).axes for text in axes.texts]
    assert any(text.startswith("1.23 k / ") for text in texts), texts


def test_reference_logprobs_are_dpos_own_cost(table):
    assert cost(table, "dpo", 0.1, "reference-logprobs")["seconds"] == 4
    assert "reference-logprobs" not in set(table.loc[table["arm"] == "ppo", "stage"])
    labels = plots.cost(typical(table)).legends[0].get_texts()
    assert "reference-logprobs" in {label.get_text() for label in labels}
