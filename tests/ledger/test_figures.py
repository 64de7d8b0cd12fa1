"""Witness: the bytes of a figure saved twice, with the house style and, as a control, without it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from IPython.core.pylabtools import print_figure
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from companion.ledger import figures

ROOT = Path(__file__).resolve().parents[2]
SHELL = """
import hashlib, sys
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from matplotlib.backends.backend_svg import FigureCanvasSVG
from companion.ledger.figures import house_style
shell = InteractiveShell.instance()
house_style()
for _ in range(2):
    figure = Figure()
    FigureCanvasSVG(figure)
    figure.subplots().plot([0, 1, 4])
    data, _ = shell.display_formatter.format(figure)
    svg = data["image/svg+xml"]
    print(sorted(data), hashlib.sha256(svg.encode()).hexdigest(), "<dc:date>" in svg)
"""


@pytest.fixture(autouse=True)
def settings():
    """The settings of matplotlib before, and again afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def drawn() -> Figure:
    figure = Figure()
    FigureCanvasSVG(figure)
    ax = figure.subplots()
    ax.plot([0, 1, 4], "o-", label="squares")
    ax.fill_between([0, 1, 2], [0, 0, 0], [0, 1, 4], alpha=0.2)
    ax.set(xlabel="$k$", ylabel="error", title="a title")
    figures.label_line(ax, 2, 4, "squares", figures.COLORS[1])
    return figure


def svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def test_the_same_code_draws_the_same_file():
    figures.house_style()
    assert svg(drawn()) == svg(drawn())


def test_the_same_figure_saved_twice_is_the_same_file():
    figures.house_style()
    figure = drawn()
    svg(figure)
    figure.set_layout_engine("none")  # constrained layout moves axes by hundredths of a point at every drawing
    assert svg(figure) == svg(figure)


def test_without_the_house_style_it_is_not():
    assert svg(drawn()) != svg(drawn())
    figure = drawn()
    assert svg(figure) != svg(figure)


def test_another_figure_is_another_file():
    figures.house_style()
    other = drawn()
    other.axes[0].plot([0, 2])
    assert svg(drawn()) != svg(other)


def test_a_notebook_shows_the_same_bytes_too_and_no_date(tmp_path):
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", SHELL], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("['image/svg+xml', 'text/plain'] ")
    assert first.endswith(" False")


def test_a_figure_is_dark_on_transparent_and_its_letters_are_outlines():
    figures.house_style()
    text = svg(drawn()).decode()
    assert "<text" not in text
    assert "fill: #ffffff" not in text
    assert figures.COLORS[0].lower() in text


def test_a_lines_name_stands_at_its_end_in_its_colour():
    figures.house_style()
    (label,) = drawn().axes[0].texts
    assert (label.get_text(), label.xy, label.get_color()) == ("squares", (2, 4), figures.COLORS[1])


def test_colours_are_distinct():
    assert len({mpl.colors.to_rgb(color) for color in figures.COLORS}) == len(figures.COLORS) == 7


def test_a_notebook_shows_the_figure_without_a_background():
    def shown(facecolor: str | None) -> str:
        with mpl.rc_context():
            figures.house_style()
            figure = Figure()
            FigureCanvasSVG(figure)
            figure.subplots().plot([0, 1])
            if facecolor is not None:
                figure.patch.set_facecolor(facecolor)
            return str(print_figure(figure, fmt="svg"))  # what a notebook's inline backend calls

    assert "fill: #ffffff" in shown("white")
    assert "fill: #ffffff" not in shown(None)
