"""Win rates by hand and by brute force, against the labeller's choice, and how intervals cover."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import norm
from synthetic_arms import catalogue
from synthetic_study import Builder

from analysis.figures.win_rate_plot import against_kl, matrix
from analysis.frontiers.frontier import points
from analysis.judging.chosen import chosen_weights, shares
from analysis.judging.contests import (
    GOLD,
    PROXY,
    SFT,
    Contest,
    Run,
    Runs,
    against_sft,
    between,
    contest_of,
    runs_of,
)
from analysis.judging.judged import reward_verdicts
from analysis.judging.representatives import representatives
from analysis.judging.win_rates import contests, estimate, length_controlled, win_rates
from analysis.statistics import finals
from analysis.studies.catalogue import Catalogue
from analysis.studies.labeller import labeller_of
from analysis.studies.study import Study, load
from pipelines.evaluate.schema import JUDGEMENTS, WIN_RATES, conform
from pipelines.shared.errors import UserError
from pipelines.shared.preferences import simulated_labels

A, B = ("ppo", 0.1, ""), ("dpo", 0.1, "")
TWO = pd.DataFrame([A, B], columns=["arm", "setting", "variant"])


def small(seeds: int = 2) -> Builder:
    return Builder(prompts=12, samples=3, reference=16, seeds=seeds)


def made(builder: Builder, tmp_path: Path) -> Study:
    return load(builder.write(tmp_path / "study"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    builder = small()
    builder.proxy(reward_model(builder, 1), seed=1)
    return load(builder.write(tmp_path_factory.mktemp("small") / "study"))


def reward_model(builder: Builder, seed: int) -> str:
    evaluation = next(arm["evaluation"] for arm in builder.arms if arm["seed"] == seed)
    return builder.records[evaluation]["identity"]["upstream"]["reward_model"]


def evaluation_of(builder: Builder, arm: str, setting: float | None, seed: int) -> str:
    return next(
        row["evaluation"]
        for row in builder.arms
        if (row["arm"], row["setting"], row["seed"]) == (arm, setting, seed)
    )


def row_of(table: pd.DataFrame, a: str, b: str, judge: str, setting: float | None = 0.1):
    rows = table[(table["arm_a"] == a) & (table["arm_b"] == b) & (table["judge"] == judge)]
    if setting is not None:
        rows = rows[rows["setting_a"] == setting]
    assert len(rows) == 1
    return rows.iloc[0]


def ends(rate: float, half: float) -> list[float]:
    """The interval of a win rate with this half-width, taken to log-odds and back."""
    odds = half / (rate * (1 - rate)) * np.array([-1, 1])
    return expit(np.log(rate / (1 - rate)) + odds).tolist()


def contest(points, total=None, longer=None) -> Contest:
    """One of a seed and prompt's points, (S, P)."""
    points = np.asarray(points, float)
    total = np.ones_like(points) if total is None else np.asarray(total, float)
    longer = np.zeros_like(points) if longer is None else np.asarray(longer, float)
    seeds, prompts = (list(range(size)) for size in points.shape)
    return Contest(A, B, GOLD, seeds, prompts, points, total, longer, 0.0, 0.0, 0.0)


def test_all_pairs_of_samples_by_hand(tmp_path):
    builder = Builder(prompts=2, samples=2, reference=4)
    for arm, values in (("ppo", [0.0, 2.0, 5.0, 5.0]), ("dpo", [1.0, 2.0, 4.0, 5.0])):
        key = evaluation_of(builder, arm, 0.1, 0)
        table = builder.tables[key].sort_values(["step", "prompt_id", "sample"])
        last = table["step"] == table["step"].max()
        table.loc[last, "reward_gold"] = values
        table.loc[last, "length"] = 10
        builder.tables[key] = table
    row = row_of(win_rates(contests(made(builder, tmp_path), TWO)), "ppo", "dpo", GOLD)
    # First prompt: 0 loses to 1 and 2; 2 beats 1 and ties with 2. Second: twice a win and a tie.
    assert row[["wins", "ties", "losses"]].tolist() == [3, 3, 2]
    assert row["win_rate"] == pytest.approx(4.5 / 8)
    # Prompts' means 1.5 / 4 and 3 / 4: standard error of two values is half their difference.
    assert row[["ci_low", "ci_high"]].tolist() == pytest.approx(
        ends(0.5625, 12.7062 * 0.375 / 2), abs=1e-6
    )
    assert row["length_controlled"] == pytest.approx(row["win_rate"])
    assert row[["inconsistent", "unparsable", "seeds", "prompts"]].tolist() == [0, 0, 1, 2]
    assert pd.isna(row["both_orders_agree"])


def test_between_policies_is_brute_force_over_seeds_and_prompts(study):
    table = win_rates(contests(study, TWO))
    for judge, column in ((GOLD, "reward_gold"), (PROXY, "reward_proxy")):
        rewards = {
            arm: finals(study.scores).query("arm == @arm and setting == 0.1")
            for arm in ("ppo", "dpo")
        }
        pairs = rewards["ppo"].merge(rewards["dpo"], on=["seed", "prompt_id"])
        assert len(pairs) == 2 * 12 * 9
        sign = np.sign(pairs[f"{column}_x"] - pairs[f"{column}_y"])
        row = row_of(table, "ppo", "dpo", judge)
        assert [row["wins"], row["losses"]] == [(sign > 0).sum(), (sign < 0).sum()]
        assert row["win_rate"] == pytest.approx(((sign + 1) / 2).mean())
        assert row[["seeds", "prompts"]].tolist() == [2, 12]


def test_every_final_policy_meets_sft_and_chosen(study):
    table = win_rates(contests(study, TWO))
    gold = table[table["judge"] == GOLD]
    policies = finals(study.scores).query("arm != 'sft'").groupby(["arm", "setting"]).ngroups
    assert (gold["arm_b"] == "sft").sum() == policies == 8
    assert (gold["arm_b"] == "chosen").sum() == policies + 1
    # A reward model is the judge against chosen for the seed whose scores are stored alone.
    proxy = table[(table["judge"] == PROXY) & (table["arm_b"] == "chosen")]
    assert set(proxy["seeds"]) == {1} and len(proxy) == policies + 1
    assert (
        table["win_rate"].between(0, 1) & (table["ci_low"] >= 0) & (table["ci_high"] <= 1)
    ).all()
    total = table[["wins", "ties", "losses"]].sum(axis=1)
    assert total.tolist() == pytest.approx((9 * table["seeds"] * table["prompts"]).tolist())
    assert ((table["wins"] + table["ties"] / 2) / total).tolist() == pytest.approx(
        table["win_rate"].tolist()
    )


def test_chosen_is_brute_force_over_labelled_pairs(study):
    row = row_of(win_rates(contests(study, TWO)), "dpo", "chosen", GOLD)
    ours = finals(study.scores).query("arm == 'dpo' and setting == 0.1")
    rates = []
    for (_, prompt), group in ours.groupby(["seed", "prompt_id"]):
        of_prompt = study.reference["prompt_id"] == prompt
        theirs = study.reference.loc[of_prompt, "reward_gold"].to_numpy()
        one, two = np.triu_indices(len(theirs), k=1)
        first = expit(theirs[one] - theirs[two])
        for value in group["reward_gold"]:
            wins = first * (value > theirs[one]) + (1 - first) * (value > theirs[two])
            rates.append(wins.mean())
    assert row["win_rate"] == pytest.approx(np.mean(rates))


def test_labeller_is_that_of_the_policys_pairs(tmp_path):
    builder = small(seeds=1)
    pairs = next(made for made in builder.records.values() if made["stage"] == "pairs")
    pairs["identity"]["recipe"]["labels"] = {"temperature": 0.5, "noise": 0.5}
    study = made(builder, tmp_path)
    assert labeller_of(study, study.manifest["arms"][0]["evaluation"]) == (0.5, 0.5)
    # With every second label flipped, the chosen is any SFT completion.
    row = row_of(win_rates(contests(study, TWO)), "dpo", "chosen", GOLD)
    ours = finals(study.scores).query("arm == 'dpo' and setting == 0.1")
    both = ours.merge(study.reference, on="prompt_id")
    assert row["win_rate"] == pytest.approx((both["reward_gold_x"] > both["reward_gold_y"]).mean())


def test_weights_are_what_the_labeller_draws():
    rewards = np.array([0.3, -1.0, 2.0, 0.3])
    generator = np.random.default_rng(0)
    one, two = np.array([(i, j) for i in range(4) for j in range(4) if i < j]).T
    pairs = generator.integers(0, 6, 200_000)
    swap = simulated_labels(rewards[one[pairs]], rewards[two[pairs]], 0.7, 0.2, generator)
    drawn = np.bincount(np.where(swap, two[pairs], one[pairs]), minlength=4) / len(pairs)
    weights = chosen_weights(rewards[None], 0.7, 0.2)[0]
    assert weights.sum() == pytest.approx(1)
    assert weights == pytest.approx(drawn, abs=0.005)
    assert weights[0] == pytest.approx(weights[3])
    with pytest.raises(ValueError, match="2 samples"):
        chosen_weights(rewards[None, :1], 1.0, 0.0)


def test_shares_count_ties():
    opponents, weights = np.array([[3.0, 1.0, 2.0, 2.0]]), np.array([[0.1, 0.2, 0.3, 0.4]])
    found = shares(np.array([[2.0, 0.0, 9.0]]), opponents, weights)
    assert found[:, 0].T == pytest.approx(np.array([[0.2, 0.7, 0.1], [0, 0, 1], [1, 0, 0]]))


def test_only_common_seeds_and_one_reward_model(tmp_path):
    builder = small()
    builder.arms = [
        row for row in builder.arms if (row["arm"], row["setting"], row["seed"]) != (*A[:2], 1)
    ]
    study = made(builder, tmp_path)
    table = win_rates(contests(study, TWO))
    assert row_of(table, "ppo", "dpo", GOLD)["seeds"] == 1
    assert row_of(table, "dpo", "sft", PROXY)["seeds"] == 2
    runs = runs_of(study)
    other = next(run for run in runs.every if run.policy == B)
    assert runs.start(other).reward_model == other.reward_model
    # Two reward models: nobody's scores are comparable, and there is no row.
    for run in runs.every:
        if run.policy == A:
            object.__setattr__(run, "reward_model", "another")
    met = between(runs, [A, B]) + [c for c in against_sft(runs) if c.a == A]
    assert {c.judge for c in met} == {GOLD}


def test_sft_is_met_as_the_runs_own_reward_model_scores_it():
    def run(policy, name, model, seed=0):
        return Run(policy, seed, name, name, model, {GOLD: np.zeros((1, 1))}, np.zeros((1, 1)))

    starts = [run(SFT, "s1", "x", seed=1), run(SFT, "s2", "x"), run(SFT, "s3", "y")]
    runs = Runs(["p"], [*starts, run(A, "a", "y"), run(B, "b", "z")], ["sft"])
    assert runs.start(runs.every[3]).name == "s3"
    assert runs.start(runs.every[4]).name == "s2"  # by gold it does not matter which
    assert runs.of[SFT][0].name == "s2"


@pytest.mark.parametrize(
    ("arm", "column", "rows", "message"),
    [
        ("dpo", "reward_gold", slice(0, 1), r"1 of 36 values of reward_gold of DPO 0.1 \(seed 0\)"),
        ("sft", "reward_proxy", slice(0, 2), "2 of 36 values of reward_proxy of SFT"),
    ],
)
def test_missing_rewards_are_refused(tmp_path, arm, column, rows, message):
    builder = small()
    key = evaluation_of(builder, arm, 0.1 if arm == "dpo" else None, 0)
    table = builder.tables[key]
    last = table.index[table["step"] == table["step"].max()]
    builder.tables[key].loc[last[rows], column] = np.nan
    with pytest.raises(UserError, match=message):
        contests(made(builder, tmp_path), TWO)


def test_missing_rewards_of_the_reference_samples_are_refused(tmp_path):
    builder = small()
    builder.tables[builder.reference].loc[3, "reward_gold"] = np.nan
    with pytest.raises(UserError, match="1 of 192 values of reward_gold of the reference samples"):
        contests(made(builder, tmp_path), TWO)


def test_no_reward_model_no_rows(tmp_path):
    builder = small()
    for key in builder.tables:
        if "reward_proxy" in builder.tables[key]:
            builder.tables[key]["reward_proxy"] = np.nan
    table = win_rates(contests(made(builder, tmp_path), TWO))
    assert set(table["judge"]) == {GOLD}


# Judgements


def judgement(
    study: Study, a: str, b: str, prompt: str, verdict: str, seed: int = 0, **more
) -> dict:
    names = {
        arm["arm"] if arm["setting"] is None else f"{arm['arm']} {arm['setting']:g}": arm[
            "evaluation"
        ][:8]
        for arm in study.manifest["arms"]
        if arm["seed"] == seed
    } | {"chosen": study.reference_run}
    orders = {"inconsistent": ("a", "b"), "unparsable": (None, "a")}.get(verdict, (verdict,) * 2)
    return {
        "judge": "llm",
        "annotator": "",
        "run_a": names[a],
        "sample_a": 0,
        "run_b": names[b],
        "sample_b": 0,
        "prompt_id": prompt,
        "verdict": verdict,
        "verdict_ab": orders[0],
        "verdict_ba": orders[1],
        "length_a": 30,
        "length_b": 20,
        **more,
    }


def judgements(rows: list[dict]) -> pd.DataFrame:
    return conform(pd.DataFrame(rows, columns=list(JUDGEMENTS)), "judgements")


def test_judgements_are_counted_and_turned(study):
    said = ["a", "a", "b", "tie", "inconsistent", "unparsable"]
    rows = [judgement(study, "ppo 0.1", "dpo 0.1", f"p{k:03d}", v) for k, v in enumerate(said)]
    # The same pair the other way round: DPO lost.
    rows.append(judgement(study, "dpo 0.1", "ppo 0.1", "p006", "b", length_a=7))
    rows.append(judgement(study, "dpo 0.1", "chosen", "p000", "b", verdict_ba=None))
    met = contests(study, TWO, judgements(rows))
    table = win_rates(met)
    row = row_of(table, "ppo", "dpo", "llm")
    assert row[["wins", "ties", "losses"]].tolist() == [3, 2, 1]
    assert row["win_rate"] == pytest.approx(4 / 6)
    assert row[["inconsistent", "unparsable"]].tolist() == [1, 1]
    assert row["both_orders_agree"] == pytest.approx(5 / 6)  # of those parsed in both
    assert row[["seeds", "prompts"]].tolist() == [1, 6]
    longer = next(one.longer for one in met if one.judge == "llm" and one.b == B)
    assert longer.tolist() == [[10] * 5 + [13]]
    row = row_of(table, "dpo", "chosen", "llm")
    assert [row["losses"], row["win_rate"]] == [1, 0]
    assert pd.isna(row["ci_low"]) and pd.isna(row["both_orders_agree"])


def test_people_count_alike_and_prompts_by_their_verdicts(study):
    rows = [
        judgement(study, "ppo 0.1", "dpo 0.1", prompt, verdict, judge="people", annotator=who)
        for prompt, who, verdict in [
            ("p000", "x", "a"),
            ("p000", "y", "a"),
            ("p001", "x", "b"),
            ("p002", "x", "b"),
        ]
    ]
    row = row_of(win_rates(contests(study, TWO, judgements(rows))), "ppo", "dpo", "people")
    assert row["win_rate"] == 0.5 and row["prompts"] == 3
    # Linearised ratio, mean 4/3 verdicts a prompt: (2 - 1) / (4/3), (0 - 0.5) / (4/3) twice.
    cells = 0.5 + np.array([1.0, -0.5, -0.5]) / (4 / 3)
    wide = ends(0.5, 4.30265 * cells.std(ddof=1) / 3**0.5)
    assert row[["ci_low", "ci_high"]].tolist() == pytest.approx(wide, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_a": "00000000"}, "runs that are not in this study .00000000"),
        ({"run_a": "SAME"}, "not two policies of one seed"),
        ({"run_b": "SEED"}, "not two policies of one seed"),
        ({"verdict": "A"}, "unknown verdict A by llm"),
        ({"judge": "gold"}, "cannot be called gold"),
        ({"sample_a": None}, "judgements: "),
    ],
)
def test_judgements_that_cannot_be_used(study, change, message):
    row = judgement(study, "ppo 0.1", "dpo 0.1", "p000", "a")
    runs = {
        "SAME": row["run_b"],
        "SEED": judgement(study, "dpo 0.1", "sft", "p", "a", seed=1)["run_a"],
    }
    row |= {key: runs.get(value, value) for key, value in change.items()}
    with pytest.raises(UserError, match=message):
        contests(study, TWO, pd.DataFrame([row]))


def test_a_pair_judged_twice_is_refused(study):
    row = judgement(study, "ppo 0.1", "dpo 0.1", "p000", "a")
    turned = judgement(study, "dpo 0.1", "ppo 0.1", "p000", "a")
    with pytest.raises(UserError, match=r"judged prompt p000 of .* twice"):
        contests(study, TWO, judgements([row, turned]))
    with pytest.raises(UserError, match="judgements"):
        contests(study, TWO, judgements([row]).drop(columns="verdict"))


def test_gold_as_a_judge_of_the_same_pairs(study):
    rows = [judgement(study, "ppo 0.1", "dpo 0.1", f"p{k:03d}", "tie") for k in range(12)]
    rows += [judgement(study, "ppo 0.1", "chosen", "p000", "tie", sample_b=5)]
    again = judgement(study, "dpo 0.1", "ppo 0.1", "p003", "tie", judge="people")
    found = reward_verdicts(study, judgements([*rows, again]))
    assert len(found) == 13  # however many judged a pair, and in whichever order
    rewards = finals(study.scores).query("seed == 0 and sample == 0 and setting == 0.1")
    rewards = rewards.pivot(index="prompt_id", columns="arm", values="reward_gold")
    wanted = np.where(rewards["ppo"] > rewards["dpo"], "a", "b")
    assert found["verdict"].iloc[:12].tolist() == wanted.tolist()
    theirs = study.reference.query("prompt_id == 'p000' and sample == 5")["reward_gold"].item()
    assert found["verdict"].iloc[12] == ("a" if rewards["ppo"]["p000"] > theirs else "b")
    with pytest.raises(UserError, match="1 of 13 judged pairs have no reward_gold"):
        reward_verdicts(study, judgements(rows).assign(sample_b=[*[0] * 12, 99]))


# Intervals and length control


def test_a_cell_without_comparisons_changes_nothing():
    whole = contest([[0.5, 0.4, 0.8, 0.3, 1.0]])
    more = contest([[0.5, 0.4, 0.8, 0.3, 1.0, 0.0]], total=[[1, 1, 1, 1, 1, 0]])
    assert more.win_rate == whole.win_rate == 0.6
    rate, low, high = estimate(more)
    # Six cells, of which the empty one is at the mean.
    cells = 0.6 + np.array([-0.1, -0.2, 0.2, -0.3, 0.4, 0.0]) / (5 / 6)
    half = 2.570582 * cells.std(ddof=1) / 6**0.5
    assert [rate, low, high] == pytest.approx([0.6, *ends(0.6, half)], abs=1e-6)


def test_prompts_that_are_all_alike_still_have_an_interval():
    # Clopper and Pearson of 20 of 20: low = 0.025^(1/20).
    assert estimate(contest(np.ones((2, 20)))) == pytest.approx((1, 0.025 ** (1 / 20), 1))
    assert estimate(contest(np.zeros((1, 20)))) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 20)))
    rate, low, high = estimate(contest(np.full((1, 20), 0.5)))
    assert rate == 0.5 and low == pytest.approx(1 - high) and 0.41 < low < 0.42
    assert np.isnan(estimate(contest([[1.0]]))[1:]).all()


def test_length_controlled_is_a_logistic_regression():
    generator = np.random.default_rng(0)
    longer = generator.normal(2, 3, (2, 60))
    x = np.tanh(longer / longer.std())
    total = generator.integers(1, 17, (2, 60))
    points = generator.binomial(total, expit(-0.4 + 1.1 * x))
    design = sm.add_constant(x.ravel())
    counts = np.stack([points.ravel(), (total - points).ravel()], axis=1)
    fit = sm.GLM(counts, design, family=sm.families.Binomial()).fit()
    found = length_controlled(contest(points, total, longer))
    assert found == pytest.approx(expit(fit.params[0]), abs=1e-8)
    assert found < contest(points, total).win_rate - 0.1  # a is longer, and longer wins


def test_length_controlled_is_null_where_it_cannot_be_told():
    share = [[0.2, 0.9, 0.4, 0.7]]
    assert length_controlled(contest(share)) == pytest.approx(0.55)
    rounding = 1e-15 * np.array([[1.0, -2.0, 1.0, 0.0]])
    assert length_controlled(contest(share, longer=rounding)) == pytest.approx(0.55)
    assert np.isnan(length_controlled(contest(share, longer=7 / 3 + rounding)))
    assert np.isnan(length_controlled(contest(share, longer=np.full((1, 4), 3.0))))
    assert np.isnan(length_controlled(contest([[0.5]], longer=[[1.0]])))
    separated = contest([[0.0, 0.0, 1.0, 1.0]], longer=[[-3.0, -1.0, 1.0, 2.0]])
    assert np.isnan(length_controlled(separated))
    assert np.isnan(length_controlled(contest(np.ones((1, 4)), longer=[[1.0, 2.0, 3.0, 4.0]])))


# Representatives and figures


def test_representatives_are_near_one_kl():
    def rows(arm: str, *kls: float) -> list[dict]:
        settings = [float(k) for k in range(len(kls))] if len(kls) > 1 else [np.nan]
        return [
            {"arm": arm, "setting": s, "variant": "", "kl": kl, "final": True}
            for s, kl in zip(settings, kls, strict=True)
        ]

    table = pd.DataFrame(
        rows("sft", 0.0)
        + rows("dpo", 1.0, 4.1, 6.0, 16.0)
        + rows("ppo", 1.1, 4.0, 30.0)
        + rows("kto", 0.9, 3.9)
        + rows("preferred-ft", 0.01)
        + [{"arm": "ppo", "setting": 7.0, "variant": "", "kl": 4.0, "final": False}]
    )
    found = representatives(table.sample(frac=1, random_state=0), Catalogue(catalogue()))
    assert found["arm"].tolist() == ["preferred-ft", "ppo", "dpo", "kto"]
    assert found["kl"].tolist() == [0.01, 4.0, 4.1, 3.9]
    assert set(found["target_kl"].round(9)) == {4.1}
    low = representatives(table, Catalogue(catalogue()), target=1.0)
    assert low["kl"].tolist() == [0.01, 1.1, 1.0, 0.9]
    assert representatives(table.head(1), Catalogue(catalogue())).empty


def test_matrix_shows_both_directions_and_what_is_not_shown(study):
    chosen = representatives(points(study.scores), study.catalogue)
    table = win_rates(contests(study, chosen))
    figure = matrix(table, chosen)
    axes = figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 2 * 12  # 4 x 4 without the diagonal: number and interval
    names = [label.get_text() for label in axes.get_xticklabels()]
    values = axes.images[0].get_array()
    ppo, sft = next(k for k, name in enumerate(names) if "PPO" in name), names.index("SFT")
    setting = chosen.loc[chosen["arm"] == "ppo", "setting"].item()
    rate = row_of(table, "ppo", "sft", GOLD, setting)["win_rate"]
    assert values[ppo, sft] == pytest.approx(rate)
    assert values[sft, ppo] == pytest.approx(1 - rate)
    assert matrix(table, chosen, "nobody") is None
    assert against_kl(table, points(study.scores), study.catalogue) is not None


def test_figures_of_many_arms():
    names = Catalogue(catalogue())
    arms = [arm for arm in names.names if names.families[arm] in ("rl", "dpo", "supervised")]
    kls = np.linspace(0.5, 9, len(arms))
    table = pd.DataFrame({"arm": arms, "setting": 0.1, "variant": "", "kl": kls, "final": True})
    rows = [
        dict(zip(WIN_RATES, (a, 0.1, "", b, s, "", GOLD, 1, 0, 1, 0.5, *ends), strict=False))
        for k, a in enumerate(arms)
        for b, s in [*((other, 0.1) for other in arms[k + 1 :]), ("sft", None), ("chosen", None)]
        for ends in [(0.4, 0.6) if b == "sft" else (0.51, 0.6)]
    ]
    rates = pd.DataFrame(rows)
    assert len(arms) == 18
    figure = matrix(rates, table)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 20 * 19 - 2  # of SFT and chosen against each other nothing is told
    assert texts.count("(50)") == 2 * 18
    few = table.head(4)
    figure = against_kl(rates[rates["arm_a"].isin(few["arm"])], few, names)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["By the gold reward"]


# Coverage


def simulated(
    generator: np.random.Generator, studies: int, seeds: int, difference: float, prompts: int = 64
):
    """Contests of two arms whose rewards vary with prompt, seed, both and sample; 4 samples each.

    An arm's seeds differ by 0.3 and its prompts by 0.5, around what all arms share.
    """
    shape = (studies, 2, seeds, prompts, 4)
    rewards = generator.normal(0, 1, shape)
    rewards += generator.normal(0, 0.3, (studies, 2, seeds, 1, 1))
    rewards += generator.normal(0, 0.5, (studies, 2, 1, prompts, 1))
    rewards += generator.normal(0, 0.3, (studies, 2, seeds, prompts, 1))
    rewards += generator.normal(0, 1, (studies, 1, 1, prompts, 1))
    rewards[:, 0] += difference
    for one, two in rewards:
        ahead = one[..., :, None] > two[..., None, :]
        wins = ahead.sum((2, 3))
        outcomes = np.stack([wins, np.zeros_like(wins), 16 - wins], axis=1)
        yield contest_of((A, B, GOLD), list(range(seeds)), range(prompts), outcomes, wins * 0.0)


SPREAD = np.sqrt(2 * (1 + 0.09 + 0.25 + 0.09))


@pytest.mark.slow
@pytest.mark.parametrize("difference", [0.6, 2.5])  # win rates of 64% and 93%
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_true_win_rate(seeds, difference):
    found = simulated(np.random.default_rng(seeds), 2000, seeds, difference)
    low, high = np.array([estimate(one)[1:] for one in found]).T
    truth = norm.cdf(difference / SPREAD)
    covered = ((low <= truth) & (truth <= high)).mean()
    assert 0.92 <= covered <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_identical_arms_are_rarely_called_different(seeds):
    # One seed: its interval is of the prompts alone, so here the seeds do not differ.
    generator = np.random.default_rng(10 + seeds)
    found = simulated(generator, 2000, seeds, difference=0.0)
    if seeds == 1:
        found = simulated_once(generator)
    low, high = np.array([estimate(one)[1:] for one in found]).T
    called = ((low > 0.5) | (high < 0.5)).mean()
    assert called <= 0.07


def simulated_once(generator: np.random.Generator):
    """Contests of one seed, of arms that differ by nothing but prompts and samples."""
    for _ in range(2000):
        rewards = generator.normal(0, 1, (2, 64, 4)) + generator.normal(0, 0.5, (2, 64, 1))
        wins = (rewards[0][:, :, None] > rewards[1][:, None, :]).sum((1, 2))[None]
        outcomes = np.stack([wins, np.zeros_like(wins), 16 - wins], axis=1)
        yield contest_of((A, B, GOLD), [0], range(64), outcomes, wins * 0.0)


@pytest.mark.slow
def test_two_hundred_policies_take_seconds(study):
    generator = np.random.default_rng(0)
    runs = []
    template = runs_of(study)
    base = template.every[0]
    for number in range(201):
        rewards = {judge: generator.normal(0, 1, (1000, 4)) for judge in (GOLD, PROXY)}
        policy = SFT if number == 200 else ("dpo", float(number), "")
        values = {"policy": policy, "rewards": rewards, "name": str(number), "seed": 0}
        runs.append(type(base)(**{**vars(base), **values, "lengths": rewards[GOLD]}))
    start = time.perf_counter()
    table = win_rates(against_sft(Runs([f"{k}" for k in range(1000)], runs, ["dpo", "sft"])))
    assert len(table) == 400 and time.perf_counter() - start < 10
