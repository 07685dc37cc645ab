"""Numbers as text for a reader."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

MISSING = "\u2013"
MINUS = "\u2212"
NAMES = {"sft": "SFT", "dpo": "DPO", "ppo": "PPO", "ipo": "IPO", "kto": "KTO", "orpo": "ORPO"}


def arm_name(arm: str) -> str:
    """An arm's id as it is written in a sentence."""
    return NAMES.get(arm, arm)


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
