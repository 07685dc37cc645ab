"""Numbers as text for a reader."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

MISSING = "\u2013"
MINUS = "\u2212"
NAMES = {
    "sft": "SFT",
    "preferred-ft": "Preferred-FT",
    "unlikelihood": "Unlikelihood",
    "ppo": "PPO",
    "ppo-adaptive": "PPO-adaptive",
    "ppo-gt": "PPO-GT",
    "reinforce": "REINFORCE",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "dpo-conservative": "conservative DPO",
    "dpo-robust": "robust DPO",
    "dpo-hinge": "hinge DPO",
    "ipo": "IPO",
    "ipo-mean": "IPO-mean",
    "kto": "KTO",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "online-dpo": "online DPO",
    "online-dpo-gt": "online DPO-GT",
    "best-of-n": "best of n",
    "best-of-n-proxy": "best of n by proxy",
    "optimum": "estimated optimum",
}


def arm_name(arm: str) -> str:
    """An arm's id as it is written in a sentence."""
    return NAMES.get(arm, arm)


def policy_name(row: Mapping[str, Any], seed: bool = False) -> str:
    """ "PPO 0.1 labels.noise=0.2 (seed 0)": arm, setting and variant, and the seed if wanted."""
    setting = "" if pd.isna(row["setting"]) else f"{row['setting']:g}"
    name = " ".join(part for part in (arm_name(row["arm"]), setting, row["variant"]) if part)
    return f"{name} (seed {row['seed']})" if seed else name


def options(variant: str) -> dict[str, str]:
    """A variant's settings by name.

    >>> options("dpo.learning_rate=0.0003 labels.noise=0.2")
    {'dpo.learning_rate': '0.0003', 'labels.noise': '0.2'}
    """
    return dict(part.split("=", 1) for part in variant.split())


def agree(variant_a: str, variant_b: str) -> bool:
    """Whether two variants have equal values of the options that both name: the same labels, say.

    >>> agree("labels.noise=0.2 dpo.epochs=2", "labels.noise=0.2"), agree("a.b=1", "a.b=2")
    (True, False)
    """
    a, b = options(variant_a), options(variant_b)
    return all(a[name] == b[name] for name in a.keys() & b.keys())


def some(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many digits after the point: columns of one unit line up."""
    # "z": a negative number that rounds to 0 has no sign.
    return MISSING if pd.isna(value) else f"{value:z,.{digits}f}".replace("-", MINUS)


def short(value: float, trim: bool = False) -> str:
    """A count with an SI prefix and 3 significant digits; `trim` drops zeros, as on an axis.

    >>> short(3.8e12), short(258.0), short(0), short(3e12, trim=True)
    ('3.80 T', '258', '0', '3 T')
    """
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    power = min(max(int(np.floor(np.log10(abs(value)) / 3)), 0), 6)
    scaled = value / 1000**power
    return f"{f'{scaled:.3g}' if trim else number(scaled)} {' kMGTPE'[power]}".strip()


def number(value: float, digits: int = 3) -> str:
    """A number for a reader: `digits` significant digits, none before the point dropped.

    >>> number(0.012345), number(273.4), number(12345.6), number(-1.5)
    ('0.0123', '273', '12,346', '\u22121.50')
    """
    if pd.isna(value):
        return MISSING
    if value in (float("inf"), float("-inf")):
        return "\u221e" if value > 0 else "\u2212\u221e"
    magnitude = f"{abs(value):.{digits - 1}e}"
    power = int(magnitude.partition("e")[2])
    if abs(value) < 5e-5:
        text = "0"
    else:
        text = f"{abs(value):,.{max(digits - 1 - power, 0)}f}"
    return f"\u2212{text}" if value < 0 and text != "0" else text


def setting(value: float) -> str:
    """An arm's setting as it was given."""
    return MISSING if pd.isna(value) else f"{value:g}"


def percent(value: float) -> str:
    return MISSING if pd.isna(value) else f"{value:z.0%}".replace("-", MINUS)


def share_closed(row: Mapping[str, Any]) -> str:
    """ "24% [20%, 28%]" of the gap closed; "none" or "none shown" where there is no gain.

    "none": the gain's interval is below 0; "none shown": it covers 0, and no share is claimed.
    """
    if pd.isna(row["closed_share"]):
        return MISSING
    if row["closed_high"] < 0:
        return "none"
    if not row["closed_low"] > 0:
        return "none shown"
    return (
        f"{percent(row['closed_share'])} "
        f"[{percent(row['closed_low'])}, {percent(row['closed_high'])}]"
    )


def with_error(row: Mapping[str, Any], name: str, digits: int = 2) -> str:
    """ "1.52 ± 0.05": a mean and its standard error."""
    if pd.isna(row[name]):
        return MISSING
    mean = fixed(row[name], digits)
    error = row[f"{name}_se"]
    return mean if pd.isna(error) else f"{mean} \u00b1 {error:.{digits}f}"


def with_interval(row: Mapping[str, Any], name: str) -> str:
    """ "1.52 [1.42, 1.62]": a mean and its 95% interval."""
    if pd.isna(row[name]):
        return MISSING
    text = f"{row[name]:+z.2f} [{row['ci_low']:z.2f}, {row['ci_high']:z.2f}]"
    return text.replace("-", MINUS)


ORDERED_BY = {  # what orders the completions of a pair and is no policy
    "reward-model": "reward model",
    "gold": "the judge",
    "length": "the longer one",
}


def ordered_by(row: Mapping[str, Any]) -> str:
    """Who orders, in a row of HELD_OUT_ACCURACY."""
    if row["judge"] == "policy":
        return policy_name(row)
    return " ".join(part for part in (ORDERED_BY[row["judge"]], row["variant"]) if part)


def in_words_of(manifest: Mapping[str, Any], text: str) -> str:
    """`text` as it is said of a study without a gold reward: by the name of what stands for it."""
    judge = manifest.get("judge", "")
    if not judge:
        return text
    capital = judge[0].upper() + judge[1:]
    return text.replace("gold reward", judge).replace("Gold reward", capital)
