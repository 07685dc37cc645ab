"""Tables of frontiers: rewards at budgets, areas, dominance; and what their intervals cover."""

import numpy as np
import pandas as pd
import pytest
from synthetic_frontiers import BASE, World
from synthetic_tables import toy_scores

from analysis.frontiers.attainable import Policies
from analysis.frontiers.dominance import area_weights, dominance, frontier_summary, matrices, trace
from pipelines.shared.errors import UserError

NOTHING = (np.zeros(0), np.zeros((0, 40)))


def flat(kls, rewards, prompts=40):
    """Policies that are alike on all prompts."""
    return Policies(
        np.tile(np.array(kls)[:, None], prompts), np.tile(np.array(rewards)[:, None], prompts)
    )


def test_area_weights_integrate_lines_exactly():
    grid = np.array([0.0, 1.0, 4.0])
    line = 2 + 3 * grid
    for end in (0.5, 1.0, 2.5, 4.0):
        assert area_weights(grid, end, "kl") @ line == pytest.approx(2 * end + 1.5 * end**2)
    roots = 2 + 3 * np.sqrt(grid)
    assert area_weights(grid, 2.25, "root_kl") @ roots == pytest.approx(2 * 1.5 + 1.5 * 1.5**2)
    for end in (0.0, -1e-12):
        assert not area_weights(grid, end, "kl").any()
        assert not area_weights(grid, end, "root_kl").any(), "a KL below 0 is rounding"


def test_summary_and_dominance_by_hand():
    base = np.zeros(40)
    measured = {
        ("dpo", ""): {0: flat([1.0, 4.0], [1.0, 2.5])},
        ("ppo", ""): {0: flat([2.0], [1.0])},
    }
    found = trace(measured, base, NOTHING, np.random.default_rng(0), draws=20)
    summary = frontier_summary(found).set_index(["arm", "kl_budget"])
    assert summary.loc[("dpo", 2.0), "reward"] == pytest.approx(1.5)
    assert summary.loc[("ppo", 1.0), "reward"] == pytest.approx(0.5)
    # Both reach 2 nats. DPO: 1/2 + (1 + 1.5)/2 = 1.75; PPO: a triangle of 1.
    assert summary["kl_common"].eq(2).all()
    assert summary.loc[("dpo", 1.0), "dominated_area"] == pytest.approx(1.75, abs=0.01)
    assert summary.loc[("ppo", 1.0), "dominated_area"] == pytest.approx(1.0, abs=0.01)
    assert summary["regret"].isna().all()  # no optimum was given
    row = dominance(found).set_index("axis").loc["kl"]
    assert row["difference"] == pytest.approx(0.375, abs=0.005) and row["higher"] == "dpo"
    assert row["p"] == pytest.approx(1.0) and row["kl_common"] == 2


def test_regret_is_to_the_optimum_at_the_same_kl():
    betas = np.geomspace(0.05, 20, 400)
    objective = np.tile((0.5 / betas)[:, None], 40)  # rewards N(0, 1)
    measured = {("dpo", ""): {0: flat([2.0], [1.0])}}
    found = trace(measured, np.zeros(40), (betas, objective), np.random.default_rng(0), draws=20)
    table = frontier_summary(found).set_index("kl_budget")
    assert table.loc[2.0, "regret"] == pytest.approx(2.0 - 1.0, rel=1e-3)
    assert table.loc[0.5, "regret"] == pytest.approx(1.0 - 0.25, rel=1e-3)


def test_arms_without_a_common_kl_range():
    measured = {("dpo", ""): {0: flat([1.0], [1.0])}, ("ppo", ""): {0: flat([0.0], [0.7])}}
    found = trace(measured, np.zeros(40), NOTHING, np.random.default_rng(0), draws=20)
    row = dominance(found).iloc[0]
    assert pd.isna(row["higher"]) and np.isnan(row["difference"]) and np.isnan(row["p"])
    assert frontier_summary(found)["dominated_area"].eq(0).all()


def test_missing_rewards_make_an_arm_missing_not_worse():
    measured = {
        ("dpo", ""): {0: flat([1.0], [1.0])},
        ("ppo", ""): {0: flat([2.0], [np.nan])},
        ("kto", ""): {0: flat([np.nan], [1.0])},
    }
    found = trace(measured, np.zeros(40), NOTHING, np.random.default_rng(0), draws=20)
    table = frontier_summary(found).groupby("arm")["reward"]
    assert table.count().to_dict() == {"dpo": 5, "kto": 0, "ppo": 0}
    rows = dominance(found)
    assert rows["difference"].isna().all() and rows["higher"].isna().all()


def test_seeds_are_paired_where_both_have_them():
    measured = {
        ("dpo", ""): {0: flat([1.0], [1.0]), 1: flat([1.0], [2.0]), 2: flat([1.0], [9.0])},
        ("ppo", ""): {0: flat([1.0], [0.5]), 1: flat([1.0], [1.5])},
    }
    found = trace(measured, np.zeros(40), NOTHING, np.random.default_rng(0), draws=20)
    row = dominance(found).set_index("axis").loc["kl"]
    assert row["seeds"] == 2 and row["difference"] == pytest.approx(0.25)  # half of 0.5: a triangle


def test_matrices_of_scores():
    snapshots = pd.concat([toy_scores(step=2), toy_scores(step=5)])
    both = pd.concat([snapshots, toy_scores(arm="sft", run="b"), toy_scores(seed=1, run="c")])
    found = matrices(both)[("dpo", "")]
    assert set(found) == {0, 1} and found[0].kl.tolist() == [[2.0, 4.0], [2.0, 4.0]]
    assert found[1].reward.tolist() == [[1.0, 5.0]]
    gap = matrices(toy_scores(reward_gold=[0.0, np.nan, 4.0, 6.0]))["dpo", ""][0]
    assert np.isnan(gap.reward[0, 0]) and gap.reward[0, 1] == 5.0


def test_bad_tables_are_refused():
    with pytest.raises(UserError, match="lack the columns kl_rb"):
        matrices(toy_scores().drop(columns="kl_rb"))
    with pytest.raises(UserError, match=r"temperatures 0\.5, 1 "):
        matrices(pd.concat([toy_scores(), toy_scores(run="b", temperature=0.5)]))
    fewer = toy_scores(run="b", seed=1)
    with pytest.raises(UserError, match="seed 1, run b, step 5"):
        matrices(pd.concat([toy_scores(), fewer[fewer["prompt_id"] == "a"]]))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage(seeds):
    """2,000 made-up studies: nominal 95% intervals of frontier rewards and of dominance hold the
    truth in 92% to 98%, and two identical arms are called different in at most 7%."""
    studies, prompts, end = 2000, 80, 20.0
    budgets = np.array([0.5, 2.0, 5.0])
    better, worse = World(), World(rise=0.6, kls=(0.2, 0.8, 2.0, 6.0))
    fine = end * np.linspace(0, 1, 101) ** 2
    generator = np.random.default_rng(1)
    true = {name: world.truth(fine, generator) for name, world in (("a", better), ("c", worse))}
    at = np.array([np.interp(budgets, fine, true["a"])])
    covered, difference, called = np.zeros(3), 0, 0
    for study in range(studies):
        generator = np.random.default_rng([7, seeds, study])
        hard = generator.normal(0, better.hard, prompts)
        base = BASE + hard + generator.normal(0, 0.1, prompts)
        measured = {
            (name, ""): world.study(seeds, prompts, generator, hard)
            for name, world in (("a", better), ("b", better), ("c", worse))
        }
        nothing = np.zeros(0), np.zeros((0, prompts))
        found = trace(measured, base, nothing, generator, 150, 10, budgets)
        table = frontier_summary(found).set_index(["arm", "kl_budget"]).loc["a"].loc[budgets]
        covered += (table["ci_low"] <= at[0]).to_numpy() & (at[0] <= table["ci_high"]).to_numpy()
        rows = dominance(found)
        rows = rows[rows["axis"] == "kl"].set_index(["arm_a", "arm_b"])
        called += rows.loc[("a", "b"), "higher"] != "none shown"
        row = rows.loc[("a", "c")]
        by = area_weights(fine, row["kl_common"], "kl")
        truth = (true["a"] - true["c"]) @ by / by.sum()
        difference += row["ci_low"] <= truth <= row["ci_high"]
    shares = [*covered / studies, difference / studies]
    assert all(0.92 <= share <= 0.98 for share in shares), shares
    assert called / studies <= 0.07, called / studies
    print(seeds, shares, called / studies)
