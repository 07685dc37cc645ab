"""What a reader must know beside the answer: what limits it, and what the tables' words mean."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.formats import MINUS, arm_name, percent, some
from analysis.frontiers.best_of_n import grid_deficit
from analysis.frontiers.dominance import Frontiers
from analysis.frontiers.frontier import TRUSTED_ESS
from analysis.judging.held_out import held_out_accuracy
from analysis.studies.catalogue import Catalogue
from analysis.studies.study import Study


def caveats(study: Study) -> list[str]:
    """What limits the answer, found in the records: one seed, mixed machines, unequal threads."""
    seeds = sorted({arm["seed"] for arm in study.manifest["arms"]})
    records = study.records
    policies = [records[arm["policy"]] for arm in study.manifest["arms"]]
    found = []
    if len(seeds) == 1:
        found.append(
            f"One seed (seed {seeds[0]}): all intervals are over prompts only. They say how sure "
            "the measurement of these very policies is, not what another training run would give."
        )
    else:
        found.append(
            f"{len(seeds)} seeds: intervals are over prompts and over seeds, the latter "
            f"by Student's t with {len(seeds) - 1} degrees of freedom."
        )
    arms = [record for record in policies if record["stage"] != "sft"]
    setups = {f"{_machine(r['hardware'])}, {r['identity']['threads']} threads" for r in arms}
    if len(setups) > 1:
        found.append(
            f"Policies were trained in different places ({'; '.join(sorted(setups))}): their "
            "seconds are not comparable, their FLOPs are."
        )
    labels = [records[s]["identity"]["recipe"].get("labels") for s in records]
    shifted = {
        f"temperature {label['temperature']:g}, noise {label['noise']:g}"
        for label in labels
        if label and (label["temperature"] != 1 or label["noise"] > 0)
    }
    if shifted:
        found.append(
            f"Labels with {'; '.join(sorted(shifted))}: a labeller of temperature T teaches the "
            "gold reward divided by T, and noise flattens it further, as a larger T would. At "
            f"coefficient c the methods then aim at reward {MINUS} c\u00b7T\u00b7KL, not at the "
            "J that is measured here."
        )
    elsewhere = {
        arm["arm"]
        for arm in study.manifest["arms"]
        if records[arm["policy"]]["stage"] == "imported"
    }
    if elsewhere:
        found.append(
            f"Trained elsewhere: {some(sorted(elsewhere))}. What that cost is not known and "
            "not in any total, and that it started from the shared SFT model is not checked; KL, "
            "rewards and prompts are those of every policy."
        )
    dirty = sorted({records[s]["stage"] for s in records if records[s].get("uncommitted")})
    if dirty:
        found.append(f"Made from uncommitted code: {', '.join(dirty)}.")
    return [
        *judge_caveats(study),
        *cut_caveat(study),
        *found,
        *_mixed_code(study),
        *_earlier_accounting(study),
    ]


def gaps(tables: Mapping[str, pd.DataFrame], frontiers: Frontiers) -> list[str]:
    """What the frontiers could not tell: arms without a frontier, or without a common KL range.

    Args:
        tables: of the study, by name.
    """
    found = []
    unknown = [
        f"{arm_name(arm)} {variant}".strip()
        for (arm, variant), (_, value, _) in sorted(frontiers.found.items())
        if np.isnan(value).any()
    ]
    if unknown:
        found.append(
            f"No frontier is traced for {some(unknown)}: a reward or a KL of their policies is "
            "missing. Their rows are empty in tables/frontier_summary.csv and "
            "tables/dominance.csv."
        )
    table = tables["dominance"]
    lacking = table[(table["axis"] == "kl") & table["difference"].isna()]
    apart = [
        f"{arm_name(row.arm_a)} {row.variant_a}".strip()
        + " and "
        + f"{arm_name(row.arm_b)} {row.variant_b}".strip()
        for row in lacking.itertuples()
        if not {
            f"{arm_name(row.arm_a)} {row.variant_a}".strip(),
            f"{arm_name(row.arm_b)} {row.variant_b}".strip(),
        }
        & set(unknown)
    ]
    if apart:
        found.append(f"No common KL range: {some(apart, 4)}. Their frontiers are not compared.")
    if len(frontiers.found) > 1 and not frontiers.common > 0:
        found.append(
            "No KL range is common to all arms: no dominated area is given "
            "(tables/frontier_summary.csv)."
        )
    summary = tables["frontier_summary"]
    if len(summary) and summary["regret"].isna().all():
        found.append(
            "The optimum could not be estimated at any KL budget (effective sample size below "
            f"{TRUSTED_ESS:g}): no regret is given."
        )
    return found


JUDGED_WITH = ("torch", "trl")  # libraries whose versions may move an evaluation's numbers


def _mixed_code(study: Study) -> list[str]:
    """That evaluations were made by different commits or libraries; empty where by one."""
    steps = [arm["evaluation"] for arm in study.manifest["arms"]]
    made: dict[str, int] = {}
    for step in dict.fromkeys([*steps, study.manifest["reference_samples"]]):
        record = study.records[step]
        with_these = [
            f"{name} {record['versions'][name]}"
            for name in JUDGED_WITH
            if name in record["versions"]
        ]
        commit = f"commit {record['commit'][:8]}" if record["commit"] else "code outside a checkout"
        by = f"{commit} ({', '.join(with_these)})" if with_these else commit
        made[by] = made.get(by, 0) + 1
    if len(made) < 2:
        return []
    kinds = some([f"{count} by {by}" for by, count in sorted(made.items())], 4)
    return [
        f"Evaluations and reference samples were not all made by the same code: {kinds}. Their "
        "recipe and version are the same."
    ]


def _earlier_accounting(study: Study) -> list[str]:
    """That FLOPs were counted before the LM head was counted in full, in some steps or in all.

    Records of that time hold no networks.
    """
    counted = [r for r in study.records.values() if r["cost"]["flops"] > 0]
    earlier = [record for record in counted if "networks" not in record]
    if not earlier:
        return []
    which = "all" if len(earlier) == len(counted) else f"{len(earlier)} of {len(counted)}"
    return [
        f"The FLOPs of {which} steps are of an earlier accounting, which missed a part of the LM "
        "head: SFT's are about 7% too low and those of DPO and its relatives about 11%; networks "
        "and model memory were not recorded then."
    ]


def _machine(hardware: Mapping[str, Any]) -> str:
    return ", ".join(f"{hardware[key]}" for key in sorted(hardware))


def errors_note(headline: pd.DataFrame) -> str:
    """What the errors and intervals of the headline are made of, by the number of seeds."""
    seeds = int(headline["seeds"].max())
    over = (
        "by prompt (one seed: nothing is known of what another training run would give)"
        if seeds == 1
        else f"by prompt and, in quadrature, by seed ({seeds} seeds)"
    )
    return f"\u00b1 is one standard error, clustered {over}; brackets are 95% intervals (t)."


def sft_note(headline: pd.DataFrame, objective: pd.DataFrame, samples: int, reference: int) -> str:
    """Why the SFT row's reward is not the J(SFT) that gains are measured from; "" without both."""
    own = headline[headline["arm"] == "sft"]
    if own.empty or objective.empty:
        return ""
    return (
        f"The SFT row's reward, {own['reward_gold'].iloc[0]:.3f}, is from its own {samples} "
        f"completions a prompt, like every row's; gains are over J(SFT) = "
        f"{objective['objective_sft'].iloc[0]:.3f}, from the {reference} reference completions of "
        "the same model for the same prompts, which is the more exact."
    ).replace("-", MINUS)


def seconds_note(study: Study) -> str:
    """Whether arms shared the machine while their seconds were taken; "" where each filled it."""
    policies = [study.records[arm["policy"]] for arm in study.manifest["arms"]]
    trained = [record for record in policies if record["stage"] != "sft"]
    threads = {record["identity"]["threads"] for record in trained}
    cores = {record["hardware"]["cores"] for record in trained}
    if not trained or max(threads) >= min(cores):
        return ""
    counts = " or ".join(f"{count}" for count in sorted(threads))
    return (
        f"Arms have {counts} thread{'' if counts == '1' else 's'} each of {min(cores)} cores and "
        "run side by side on the same machine: their seconds are of such runs, not of one alone."
    )


def gold_quality(rows: Sequence[Mapping[str, Any]]) -> str:
    """The gold classifier's accuracy on held-out reviews, from its metrics log; "" without one."""
    found = [row for row in rows if row.get("held_out_accuracy") is not None]
    if not found:
        return ""
    last = found[-1]
    text = (
        f"The gold classifier is right on {last['held_out_accuracy']:.1%} of held-out human labels"
    )
    if last.get("held_out_reviews") is not None:
        text += f" ({last['held_out_reviews']:,} reviews)"
    if last.get("held_out_majority") is not None:
        text += f"; always guessing the larger class is right on {last['held_out_majority']:.1%}"
    return text + "."


def judge_caveats(study: Study) -> list[str]:
    """What a study without a gold reward cannot claim; none where there is one."""
    if not study.manifest.get("judge"):
        return []
    return [
        "No reward was given to judge by. The judge is a reward model of pairs that no policy is "
        f"trained on, nor the reward model that PPO climbs. {_judge_quality(study)}",
        "So this report cannot claim that people would prefer one policy's texts: that takes "
        "people or language models as judges (rlhf-vs-dpo label and judge). The optimum, and every "
        "distance to it, is that of the judge's reward. And over-optimisation is understated: what "
        "judge and reward model get wrong alike looks like reward.",
    ]


def _judge_quality(study: Study) -> str:
    """How far the judge of somebody's own study agrees with people; "" where nobody knows."""
    if study.held_out is None or study.held_out.empty:
        return ""
    table = held_out_accuracy(study.held_out)
    row = table[table["judge"] == "gold"].iloc[0]
    low, high = (percent(row[name]) for name in ("ci_low", "ci_high"))
    return (
        f"It orders {percent(row['accuracy'])} [{low}, {high}] of {row['pairs']:,} held-out pairs "
        "as people did (chance: 50%)."
    )


def cut_caveat(study: Study) -> list[str]:
    """That most of what the SFT model writes is cut off; none where it is not."""
    own = study.scores[study.scores["arm"] == "sft"]
    if own.empty or own["finished"].mean() >= 0.5:
        return []
    return [
        f"{percent(1 - own['finished'].mean())} of the SFT model's completions are cut at "
        f"{own['length'].max():,} tokens: they are judged unfinished, and a reward model that was "
        "trained on whole texts reads them where they stop (sampling.max_new_tokens)."
    ]


def left_out_rows(study: Study) -> str:
    """What became of the rows of somebody's pairs; "" where the pairs are simulated."""
    rows = [
        row
        for step in study.manifest["steps"]
        if study.records[step]["stage"] == "corpus"
        for row in study.metrics[step]
        if "rows" in row
    ]
    if not rows:
        return ""
    found = rows[-1]
    left = [f"{value:,} {key[5:]}" for key, value in found.items() if key.startswith("rows/")]
    pairs = [f"{value:,} {key[6:]}" for key, value in found.items() if key.startswith("pairs/")]
    problems = f" Found: {some(left, 9)} (rows are left out, contradictions kept)." if left else ""
    return f"{found['rows']:,} rows.{problems} Pairs by split of their prompts: {some(pairs, 9)}."


def footing_note(study: Study) -> str:
    """That all policies were held to be equal in what a comparison needs; `load` has checked it."""
    arms = study.manifest["arms"]
    judges = {
        study.records[arm["evaluation"]]["identity"]["upstream"].get("reward_model") for arm in arms
    }
    sft = study.records[study.manifest["reference_samples"]]["identity"]["upstream"]["sft"]
    return (
        f"All {len(arms)} policies start from the SFT model {sft[:8]} and were measured against it "
        "by one evaluation: the same prompts, sampling and gold reward. Their training sampled "
        "alike, all pairs are of the same completions, and policies of one seed and variant share "
        "their pairs and their reward model. Reward models: "
        f"{len(judges - {None})}."
    )


def objective_note(catalogue: Catalogue, headline: pd.DataFrame) -> str:
    """Which arms have a J and which see the gold reward that it is measured on."""
    present = catalogue.ordered(headline["arm"])
    trained = [arm for arm in present if catalogue.trains_on(arm)]
    without = [arm for arm in trained if arm not in catalogue.aimed]
    told = [arm for arm in trained if catalogue.trains_on(arm) == "gold"]
    parts = []
    if without:
        parts.append(
            f"{len(trained) - len(without)} of {len(trained)} trained arms have c as their setting "
            "and aim at this J; the setting of the others is something else, and they have no J"
        )
    if told:
        parts.append(f"only {some([arm_name(arm) for arm in told], 3)} sees the gold reward")
    else:
        parts.append("no arm is trained on the gold reward itself")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def shared_error_note(study: Study) -> str:
    """That all gains have the error of one J(SFT) in common; "" where no arm has a J."""
    if not study.catalogue.aimed & {arm["arm"] for arm in study.manifest["arms"]}:
        return ""
    by_prompt = study.reference.groupby("prompt_id")["reward_gold"]
    samples, prompts = int(by_prompt.size().iloc[0]), by_prompt.ngroups
    error = float(np.sqrt(by_prompt.var(ddof=1).mean() / samples / prompts))
    size = "" if np.isnan(error) else f" ({error:.3f} in reward units, one standard error)"
    return (
        f"All gains are measured from one J(SFT), on the same {samples} reference completions a "
        f"prompt: its sampling error{size} is in every gain alike. So gains are not independent of "
        "one another; in differences between arms it cancels."
    )


def bound_note(frontier: pd.DataFrame) -> str:
    """How far log n - (n-1)/n is above the KL that was measured; "" without best-of-n.

    What the grid of N samples takes off by itself (see `best_of_n.grid_deficit`) is told apart.
    """
    kinds = frontier.pivot_table(
        index=["arm", "seed", "variant", "setting", "n_samples"],
        columns="kl_estimator",
        values="kl",
    )
    if not {"analytic", "measured"} <= set(kinds.columns):
        return ""
    kinds = kinds.dropna(subset=["analytic", "measured"]).reset_index()
    places = zip(kinds["setting"], kinds["n_samples"], strict=True)
    grid = np.array([grid_deficit(int(n), int(total)) for n, total in places])
    excess = (kinds["analytic"] - kinds["measured"] - grid).max()
    total = int(kinds["n_samples"].max())
    return (
        f"Best-of-n is drawn at log n {MINUS} (n{MINUS}1)/n, an upper bound of its KL. The KL "
        f"measured on {total} reference samples a prompt is low by their own grid, by at least "
        f"{grid.max():.4f} nats at n = {kinds['setting'].max():g}; beyond that, for equal scores, "
        f"it is at most {max(excess, 0.0):.3f} nats below the bound."
    )
