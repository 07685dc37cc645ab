"""How often policies and rewards order completions as people did."""

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis.figures.style import SETTINGS, new_figure, styles
from analysis.formats import ordered_by

ROW = 0.2  # inches
OTHERS = "#4d4d4d"  # colour of what is no policy


def held_out(table: pd.DataFrame) -> Figure:
    """A line for each judge, policies first: its share of held-out pairs with the 95% interval.

    Args:
        table: HELD_OUT_ACCURACY.
    """
    looks = styles(list(dict.fromkeys(table["arm"].dropna())))
    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(4.6, 0.7 + ROW * len(table))
        axes = figure.subplots()
        names = []
        for place, row in enumerate(table.to_dict("records")):
            colour, marker = looks[row["arm"]] if row["judge"] == "policy" else (OTHERS, "o")
            axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=colour, lw=1.4)
            axes.plot(row["accuracy"], place, color=colour, marker=marker, ms=4.5)
            names.append(ordered_by(row))
        axes.axvline(0.5, color="black", lw=0.8, ls="--")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("held-out pairs ordered as people did (95% interval)")
        return figure
