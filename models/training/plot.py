"""The loss curve of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from coreflow.models.arrays import Floats
from coreflow.models.storage import write_atomically

SMOOTHED_SHARE = 50  # the smoothed line is a mean over this part of the steps


def smooth(values: Floats, window: int) -> Floats:
    """Mean of each value and up to ``window - 1`` before it; as many values as there were."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def plot_curve(steps: Sequence[int], losses: Mapping[str, Sequence[float]], path: Path) -> None:
    """Losses by label over the steps as a PNG, every step faint and the smoothed line strong; written atomically.

    A figure of its own on the Agg canvas: nothing of pyplot's state is read or changed, and no display is needed.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (label, values), colour in zip(losses.items(), TABLEAU_COLORS, strict=False):
        series = np.array(values, dtype=np.float64)
        axes.plot(steps, series, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(series, max(1, len(series) // SMOOTHED_SHARE)), color=colour, linewidth=1.8, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title("Training loss")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", frameon=False)
    write_atomically(path, canvas.print_png)
