"""Figures that look alike: colours told apart with any colour vision, readable fonts, PNG and PDF.

Figures are matplotlib's own objects; nothing here touches ``pyplot``, its state or its settings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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


def label_axes(axes: Any, x: str, y: str, title: str = "") -> None:
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


def save(figure: Any, path: Path, forms: Sequence[str] = ("png", "pdf")) -> None:
    """Write ``path`` as PNG, and beside it as PDF, each whole or not at all.

    Args:
        figure: matplotlib's.
        path: with the ending ``.png``, or without one.
        forms: which of both.
    """
    import matplotlib

    stem = path.name.removesuffix(".png")
    with matplotlib.rc_context(_LOOK):
        for form in forms:
            options: Any = {"png": {"dpi": 150}, "pdf": {"metadata": {"CreationDate": None}}}[form]
            with write_safely(path.with_name(f"{stem}.{form}")) as temporary:
                figure.savefig(temporary, format=form, **options)


def bars(drawn: pd.DataFrame, label: str, value: str, series: str, y: str) -> Any:
    """Bars side by side, with standard deviations or intervals where there are any.

    Args:
        drawn: a row per bar; ``deviation``, or ``low`` and ``high``, may be NaN.
        label: column of the groups of bars, along the x axis.
        value: column of the heights.
        series: column that colours and hatches tell apart.
        y: name of the y axis.
    """
    labels, names = drawn[label].unique(), drawn[series].unique()
    figure, axes = new(max(6.0, 0.55 * len(labels) * len(names) + 2.5))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        part = drawn[drawn[series] == name].set_index(label).reindex(labels)
        x = np.arange(len(labels)) + (number - (len(names) - 1) / 2) * width
        axes.bar(x, part[value], width, label=plain(str(name)), **bar(number))
        ends = None
        if "low" in part:
            ends = np.abs(part[["low", "high"]].sub(part[value], axis=0).to_numpy().T)
        elif "deviation" in part and part["deviation"].notna().any():
            ends = part["deviation"]
        if ends is not None:
            axes.errorbar(x, part[value], ends, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    turned = {"rotation": 30, "ha": "right"} if max(map(len, map(str, labels))) * len(labels) > 50 else {}
    axes.set_xticks(np.arange(len(labels)), [plain(str(one)) for one in labels], **turned)
    axes.grid(False, axis="x")
    label_axes(axes, label, y)
    legend_below(figure, axes, series)
    return figure


def curves(drawn: pd.DataFrame, x: str, panels: str, y: str) -> Any:
    """One panel per metric, a curve per domain over the values tried, a bar for the standard deviation.

    Args:
        drawn: columns ``x``, ``panels``, ``domain``, ``mean`` and ``deviation``; values of ``x`` at equal distances.
        x: column of the values tried.
        panels: column of the metrics.
        y: what all panels show, such as a mean over seeds.
    """
    metrics, values = drawn[panels].unique(), list(drawn[x].unique())
    figure, axes = new(4.2 * len(metrics) + 1.4, 3.6, 1, len(metrics), squeeze=False)
    for panel, metric in zip(axes[0], metrics, strict=True):
        for number, (domain, part) in enumerate(drawn[drawn[panels] == metric].groupby("domain", sort=False)):
            place = [values.index(value) + 0.04 * number for value in part[x]]  # bars of equal values side by side
            style = line(number)
            look = {"label": plain(str(domain)), "capsize": 3, **style}
            panel.errorbar(place, part["mean"], part["deviation"].fillna(0), **look)
        panel.set_xticks(range(len(values)), [plain(str(value)) for value in values])
        label_axes(panel, x, f"{metric} ({y})")
    legend(axes[0][-1], "domain")
    return figure


def histogram(drawn: pd.DataFrame, label: str, x: str, y: str) -> Any:
    """Counts before and after, side by side: ``drawn`` has the columns ``label``, ``before`` and perhaps ``after``."""
    long = drawn.melt(id_vars=[label], var_name="augmentation", value_name="users")
    figure = bars(long, label, "users", "augmentation", y)
    figure.axes[0].set_xlabel(x)
    return figure


def maps(drawn: pd.DataFrame, titles: Sequence[str]) -> Any:
    """Two-dimensional maps of items, one panel per value of ``panel``, in rows of two.

    Args:
        drawn: columns ``panel`` (0, 1, ...), ``x``, ``y``, ``domain`` and ``generated``.
        titles: of the panels.
    """
    n_rows = -(-len(titles) // 2)
    figure, axes = new(9.5, 4.2 * n_rows, n_rows, 2, squeeze=False)
    domains = drawn["domain"].unique()
    for number, (panel, title) in enumerate(zip(axes.flat, titles, strict=False)):
        items = drawn[drawn["panel"] == number]
        for place, domain in enumerate(domains):
            colour, marker = COLOURS[place], MARKERS[place]
            for generated, look in ((False, {"alpha": 0.45, "s": 8}), (True, {"s": 22, "edgecolor": "black"})):
                part = items[(items["domain"] == domain) & (items["generated"] == generated)]
                if len(part):
                    name = f"{domain}, written" if generated else str(domain)
                    look = {"color": colour, "marker": marker, "linewidth": 0.5, **look}
                    panel.scatter(part["x"], part["y"], label=plain(name), **look)
        panel.set_xticks([])
        panel.set_yticks([])
        label_axes(panel, "t-SNE 1 (no unit)", "t-SNE 2 (no unit)", title)
    legend(axes[0][-1], "items of")
    return figure


def costs(drawn: pd.DataFrame) -> Any:
    """Parameters and time of inference per model, both on logarithmic axes, each point named."""
    figure, axes = new()
    for number, row in enumerate(drawn.to_dict("records")):
        look = {key: line(number)[key] for key in ("color", "marker")}
        n_parameters = max(row["parameters"], 1)  # Pop has none, which a logarithm cannot show
        axes.scatter(n_parameters, row["ms_per_user"], s=60, label=plain(row["model"]), **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    label_axes(axes, "parameters (number, without fixed text vectors)", "time to rank (ms per user)")
    legend(axes, "model")
    return figure
