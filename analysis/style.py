"""How figures look: colours, markers, scales, and how they are saved.

No pyplot, so no global state and no window. Colours are Okabe and Ito's, which colour-blind readers
can tell apart; every arm has its own marker too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

OKABE_ITO = matplotlib.color_sequences["okabe_ito"]
STYLES = {
    "sft": (OKABE_ITO[0], "*"),
    "dpo": (OKABE_ITO[5], "o"),
    "ppo": (OKABE_ITO[6], "s"),
    "optimum": (OKABE_ITO[3], ""),
    "best-of-n": (OKABE_ITO[7], "|"),
}
SPARE = [(OKABE_ITO[colour], mark) for mark in "^DvPX<>" for colour in (1, 2, 3, 7)]
# A method's own stage has the arm's colour; what arms share is grey.
STAGE_COLOURS = {
    "corpus": "#cccccc",
    "sft": "#8a8a8a",
    "reward-model": OKABE_ITO[1],
    "ppo": OKABE_ITO[6],
    "dpo": OKABE_ITO[5],
    "reference-logprobs": OKABE_ITO[2],  # DPO's own cost
    "completions": OKABE_ITO[7],
    "gold": OKABE_ITO[4],
    "pairs": OKABE_ITO[3],
}
SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text, as journals ask
    "svg.fonttype": "none",
}
# Colour, marker and place in its row of each KL estimator.
ESTIMATORS = {
    "k1": (OKABE_ITO[1], "v", -0.22),
    "k3": (OKABE_ITO[2], "D", 0.0),
    "rb": (OKABE_ITO[0], "o", 0.22),
}
KL_LABEL = "KL to the SFT model (nats per completion)"
HALO = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}


def styles(arms: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """(colour, marker) of each arm: fixed for the well-known, by order of name for others."""
    others = iter(SPARE)
    return {arm: STYLES.get(arm) or next(others) for arm in sorted(set(arms), key=str)}


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write <name>.png (200 dpi) and <name>.pdf without timestamps: same data, same bytes."""
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None})


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def root_scale(axes: Axes, side: str, highest: float) -> None:
    """A square-root axis from just below 0: KL spans decades, and reward grows about as its root.

    Args:
        side: "x" or "y".
        highest: upper end, in nats.
    """
    roots = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * np.square(x))
    getattr(axes, f"set_{side}scale")("function", functions=roots)
    # A margin on the left of 2.5% of the axis, which is its square in nats.
    getattr(axes, f"set_{side}lim")(-((0.025) ** 2) * highest, highest)
    ticks = [0.0]
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 50, 100, 200, 500, 1000):
        if tick <= highest and np.sqrt(tick / highest) - np.sqrt(ticks[-1] / highest) > 0.055:
            ticks.append(tick)
    axis = getattr(axes, f"{side}axis")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
