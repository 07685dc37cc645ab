"""Held-out pairs of people, read back: every policy must have judged the same ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.formats import policy_name
from analysis.studies.footing import UNEQUAL, Records
from analysis.studies.records import vouched
from pipelines.evaluate.schema import HELD_OUT_REWARDS
from pipelines.shared.errors import UserError

PAIR = ["prompt_id", "line"]
LOGPROBS = ["logp_chosen", "logp_rejected"]


def read_held_out(
    folder: Path, manifest: Mapping[str, Any], records: Records, again: str
) -> pd.DataFrame | None:
    """What policies and rewards think of people's pairs; None where people compared nothing.

    Returns:
        HELD_OUT_REWARDS of each policy's reward model, with the columns log_ratio (nats: of log pi
        - log ref, chosen less rejected), arm, setting, seed, variant and reward_model (its
        fingerprint).

    Raises:
        UserError: a policy has none, another policy, reference or gold reward was asked, or the
            pairs differ.
    """
    rows = manifest.get("held_out", [])
    if not rows:
        return None
    path = folder / "manifest.json"
    policies = {policy_name(arm, True): arm["policy"] for arm in manifest["arms"]}
    named = {policy_name(row, True): row for row in rows}
    if len(rows) != len(named) or named.keys() != policies.keys():
        raise UserError(f"{path}: held_out does not have each of its arms once: {again}")
    if unlisted := [
        row[key] for row in rows for key in ("step", "rewards") if row[key] not in records
    ]:
        raise UserError(f"{path} uses {unlisted[0][:8]} but does not list it in steps: {again}")
    sft = records[manifest["reference_samples"]]["identity"]["upstream"]["sft"]
    wanted = {"sft": sft, "gold": manifest["gold"]}
    tables = {name: _log_probs(folder, records[row["step"]], again) for name, row in named.items()}
    for name, row in named.items():
        found = {
            **records[row["step"]]["identity"]["upstream"],
            **records[row["rewards"]]["identity"]["upstream"],
        }
        for key, value in {**wanted, "policy": policies[name]}.items():
            if found[key] != value:
                raise UserError(
                    f"{UNEQUAL}: the held-out pairs of {name} were judged by the {key} "
                    f"{found[key][:8]}, its evaluation by {value[:8]}: {again}"
                )
    start = next(tables[name] for name, policy in policies.items() if policy == sft)
    parts = []
    for name, row in named.items():
        rewards = vouched(folder, records[row["rewards"]], "held_out_rewards", again)
        if not (tables[name].index.equals(start.index) and _pairs(rewards).equals(start.index)):
            raise UserError(f"{UNEQUAL}: the held-out pairs of {name} are not those of the others")
        ratios = tables[name] - start
        parts.append(
            rewards[list(HELD_OUT_REWARDS)].assign(
                log_ratio=(ratios["logp_chosen"] - ratios["logp_rejected"]).to_numpy(),
                arm=row["arm"],
                setting=float("nan") if row["setting"] is None else float(row["setting"]),
                seed=row["seed"],
                variant=row["variant"],
                reward_model=records[row["rewards"]]["identity"]["upstream"]["reward_model"],
            )
        )
    return pd.concat(parts, ignore_index=True)


def _log_probs(folder: Path, record: Mapping[str, Any], again: str) -> pd.DataFrame:
    """One policy's log-probs, by pair."""
    table = vouched(folder, record, "held_out_logprobs", again)
    return table.set_index(PAIR)[LOGPROBS]


def _pairs(table: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table[PAIR])
