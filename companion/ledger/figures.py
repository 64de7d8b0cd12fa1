"""House style of figures: SVG on a transparent background, legible on a phone, safe for colour-blind readers.

Figures are drawn dark on transparent; the book's style sheet inverts line figures on the dark theme. A figure that
shows photographs carries the class ``photo`` and is left as it is.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes

#: Okabe and Ito's palette, in an order whose neighbours differ in lightness too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5F5F5F")

STYLE: dict[Any, Any] = {
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "figure.facecolor": "none",  # a notebook saves with the figure's own colour, whatever savefig.transparent says
    "figure.figsize": (7.2, 3.4),
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "image.cmap": "cividis",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.transparent": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "companion",  # the same figure gives the same file
}


def house_style() -> None:
    """Use the house style from here on, and SVG where a notebook shows the figure."""
    mpl.rcParams.update(STYLE)
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # a plain script without IPython
        return
    if get_ipython() is not None:
        set_matplotlib_formats("svg", metadata={"Date": None})


def label_line(ax: Axes, x: float, y: float, text: str, color: str) -> None:
    """Write a line's name beside it, in its colour, where a legend would send the eye away and back."""
    ax.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", color=color, va="center")
