"""Figures of the experiments, each drawn from the data frame that is written beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt import figures


def bars(drawn: pd.DataFrame, label: str, value: str, series: str, y: str) -> Any:
    """Bars side by side, with standard deviations where there are any.

    Args:
        drawn: a row per bar; ``deviation`` may be NaN.
        label: column of the groups of bars, along the x axis.
        value: column of the heights.
        series: column that colours and hatches tell apart.
        y: name of the y axis.
    """
    labels, names = drawn[label].unique(), drawn[series].unique()
    figure, axes = figures.new(max(6.0, 0.55 * len(labels) * len(names) + 2.5))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        part = drawn[drawn[series] == name].set_index(label).reindex(labels)
        x = np.arange(len(labels)) + (number - (len(names) - 1) / 2) * width
        axes.bar(x, part[value], width, label=figures.plain(str(name)), **figures.bar(number))
        if "deviation" in part and part["deviation"].notna().any():
            axes.errorbar(x, part[value], part["deviation"], fmt="none", ecolor="black", elinewidth=1, capsize=2)
    turned = {"rotation": 30, "ha": "right"} if max(map(len, map(str, labels))) * len(labels) > 50 else {}
    axes.set_xticks(np.arange(len(labels)), [figures.plain(str(one)) for one in labels], **turned)
    axes.grid(False, axis="x")
    figures.label(axes, label, y)
    figures.legend(axes, series)
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
    figure, axes = figures.new(4.2 * len(metrics) + 1.4, 3.6, 1, len(metrics), squeeze=False)
    for panel, metric in zip(axes[0], metrics, strict=True):
        for number, (domain, part) in enumerate(drawn[drawn[panels] == metric].groupby("domain", sort=False)):
            place = [values.index(value) + 0.04 * number for value in part[x]]  # bars of equal values side by side
            style = figures.line(number)
            look = {"label": figures.plain(str(domain)), "capsize": 3, **style}
            panel.errorbar(place, part["mean"], part["deviation"].fillna(0), **look)
        panel.set_xticks(range(len(values)), [figures.plain(str(value)) for value in values])
        figures.label(panel, x, f"{metric} ({y})")
    figures.legend(axes[0][-1], "domain")
    return figure


def histogram(drawn: pd.DataFrame, label: str, x: str, y: str) -> Any:
    """Counts before and after, side by side: ``drawn`` has the columns ``label``, ``before`` and ``after``."""
    long = drawn.melt(id_vars=[label], value_vars=["before", "after"], var_name="augmentation", value_name="users")
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
    figure, axes = figures.new(9.5, 4.2 * n_rows, n_rows, 2, squeeze=False)
    domains = drawn["domain"].unique()
    for number, (panel, title) in enumerate(zip(axes.flat, titles, strict=False)):
        items = drawn[drawn["panel"] == number]
        for place, domain in enumerate(domains):
            colour, marker = figures.COLOURS[place], figures.MARKERS[place]
            for generated, look in ((False, {"alpha": 0.45, "s": 8}), (True, {"s": 22, "edgecolor": "black"})):
                part = items[(items["domain"] == domain) & (items["generated"] == generated)]
                if len(part):
                    name = f"{domain}, written" if generated else str(domain)
                    look = {"color": colour, "marker": marker, "linewidth": 0.5, **look}
                    panel.scatter(part["x"], part["y"], label=figures.plain(name), **look)
        panel.set_xticks([])
        panel.set_yticks([])
        figures.label(panel, "t-SNE 1 (no unit)", "t-SNE 2 (no unit)", title)
    figures.legend(axes[0][-1], "items of")
    return figure


def costs(drawn: pd.DataFrame) -> Any:
    """Parameters and time of inference per model, both on logarithmic axes, each point named."""
    figure, axes = figures.new()
    for number, row in enumerate(drawn.to_dict("records")):
        look = {key: figures.line(number)[key] for key in ("color", "marker")}
        n_parameters = max(row["parameters"], 1)  # Pop has none, which a logarithm cannot show
        axes.scatter(n_parameters, row["ms_per_user"], s=60, label=figures.plain(row["model"]), **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    figures.label(axes, "parameters (number, without fixed text vectors)", "time to rank (ms per user)")
    figures.legend(axes, "model")
    return figure
