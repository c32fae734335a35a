"""Figures that look alike: colours told apart with any colour vision, readable fonts, PNG and PDF.

Figures are matplotlib's own objects; nothing here touches ``pyplot``, its state or its settings.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from recbole_edt.files import write_safely

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Eight colours of Okabe and Ito; the palest last."""
LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "//", "..", "xx", "\\\\", "--")
"""Lines, markers and hatches say in print what colours say on a screen."""

_LOOK: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "pdf.fonttype": 42,  # TrueType: text that can be searched and edited
}


def new(width: float = 7, height: float = 4.2, n_rows: int = 1, n_columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """An empty figure and its axes.

    Args:
        width: in inches.
        height: in inches.
        n_rows: of axes.
        n_columns: of axes.
        options: of matplotlib's ``Figure.subplots``, such as ``sharex``.

    Returns: the figure, and its axes: one, or an array of them.
    """
    import matplotlib  # slow to import
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(n_rows, n_columns, **options)


def line(number: int) -> dict[str, Any]:
    """Colour, line and marker of the curve with this number, for ``axes.plot``."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[(number + number // len(COLOURS)) % len(LINES)],  # another where a colour comes again
        "marker": MARKERS[number % len(MARKERS)],
        "linewidth": 1.8,
        "markersize": 5,
    }


def bar(number: int) -> dict[str, Any]:
    """Colour and hatch of the bars with this number, for ``axes.bar``."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "hatch": HATCHES[number % len(HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.5,
    }


def label(axes: Any, x: str, y: str, title: str = "") -> None:
    """Name both axes, each with its unit, such as ``time (s)``."""
    axes.set_xlabel(plain(x))
    axes.set_ylabel(plain(y))
    if title:
        axes.set_title(plain(title))


def legend(axes: Any, title: str | None = None) -> None:
    """A legend to the right of the axes, where it hides nothing; none if nothing has a name."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        wrapped = [textwrap.fill(name, 30) for name in names]
        place: Any = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
        axes.legend(handles, wrapped, title=title, fontsize=10, frameon=False, **place)


def legend_below(figure: Any, axes: Any, title: str | None = None) -> None:
    """A legend of these axes below all axes, in as many columns as fit; the figure grows by its height.

    Args:
        figure: with all its axes.
        axes: whose names are shown; none if nothing has a name.
        title: of the legend.
    """
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    wrapped = [textwrap.fill(name, 30) for name in names]
    place: Any = {"loc": "outside lower left", "alignment": "left"}
    look: Any = {"title": title, "fontsize": 10, "frameon": False, "handlelength": 3.2, **place}
    single = figure.legend(handles, wrapped, **look)
    width, height = figure.get_size_inches()
    columns = int(width * figure.dpi / single.get_window_extent().width)
    single.remove()  # it was there to be measured
    shown = figure.legend(handles, wrapped, ncols=max(1, min(columns, len(names))), **look)
    figure.set_size_inches(width, height + shown.get_window_extent().height / figure.dpi)


def plain(text: str) -> str:
    """Text without the dollar signs that would start a formula; a leading underscore would hide it from a legend."""
    return " " * text.startswith("_") + text.replace("$", r"\$")


def save(figure: Any, path: Path) -> None:
    """Write ``path`` as PNG, and beside it as PDF, each whole or not at all.

    Args:
        figure: matplotlib's.
        path: with the ending ``.png``, or without one.
    """
    import matplotlib

    stem = path.name.removesuffix(".png")
    with matplotlib.rc_context(_LOOK):
        for suffix, options in (("png", {"dpi": 150}), ("pdf", {"metadata": {"CreationDate": None}})):
            with write_safely(path.with_name(f"{stem}.{suffix}")) as temporary:
                figure.savefig(temporary, format=suffix, **options)
