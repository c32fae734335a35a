"""Curves of training, and bars of results, as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt.data.two_domains import OVERALL
from recbole_edt.evaluate import significance
from recbole_edt.evaluate.metrics import domains_of, per_user
from recbole_edt.evaluate.results import EPOCH_CAP, METRIC, ModelResult, marked_names
from recbole_edt.render import figures

CAP_LEGEND = "ended by its epoch cap, not by early stopping: it may not have converged"

# Names of phases that fit above the curves.
_MOST_PHASES = 4


def curves_metric(runs: Sequence[ModelResult]) -> str:
    """The metric that curves show: the one that chose epochs, or ndcg@10 where runs differ in that."""
    chosen = {run.valid_metric.lower() for run in runs if run.epochs is not None}
    return chosen.pop() if len(chosen) == 1 else "ndcg@10"


def plot_curves(runs: Sequence[ModelResult], path: Path) -> None:
    """Draw validation metric and training loss per epoch of every run that has them, as PNG and PDF.

    A dotted line marks the start of a run's next phase, a ring the epoch whose weights were tested.
    """
    metric = curves_metric(runs)
    figure, (upper, lower) = figures.new(10, 7, n_rows=2, sharex=True)
    for number, run in enumerate(runs):
        style = {**figures.line(number), "marker": ""}
        _draw_run(upper, run, metric, style)
        _draw_run(lower, run, "train_loss", style)
    _label_axes(upper, lower, metric)
    _name_phases(upper, [run for run in runs if run.epochs is not None and metric in run.epochs])
    capped = any(run.status == EPOCH_CAP for run in runs)
    figures.legend_below(figure, upper, "† ended by its epoch cap" if capped else None)
    figures.save(figure, path)


def _draw_run(axes: Any, run: ModelResult, column: str, style: Mapping[str, Any]) -> None:
    epochs = run.epochs
    if epochs is None or column not in epochs:
        return
    x, y = np.arange(1, len(epochs) + 1), epochs[column].to_numpy(dtype=float)
    starts = list(_later_phases(run))
    label: str | None = figures.plain(marked_names([run])[0])
    # A phase has a loss of its own, so the line is broken between them.
    for whole in np.split(np.arange(len(x)), starts):
        part = whole[np.isfinite(y[whole])]  # not every epoch is validated
        axes.plot(x[part], y[part], label=label, **{**style, "marker": "." if len(part) == 1 else ""})
        label = None
    for start in starts:
        axes.axvline(start + 0.5, color=style["color"], linestyle=":", linewidth=1)
    if run.best_epoch is not None and 1 <= run.best_epoch <= len(x):
        best = run.best_epoch - 1
        axes.plot(x[best], y[best], "o", markersize=9, markerfacecolor="none", color=style["color"])


def _later_phases(run: ModelResult) -> dict[int, str]:
    """Name of each phase but the first, by its first row."""
    if run.epochs is None or "phase" not in run.epochs:
        return {}
    phase = run.epochs["phase"].astype(str).to_numpy()
    return {int(start): phase[start] for start in np.flatnonzero(phase[1:] != phase[:-1]) + 1}


def _name_phases(axes: Any, runs: Sequence[ModelResult]) -> None:
    """Names above the axes, where they hide no curve, one above the other; none if there are too many for that."""
    found = [(run.name, *phase) for run in runs for phase in _later_phases(run).items()]
    if len(found) > _MOST_PHASES:
        return
    middle = sum(axes.get_xlim()) / 2
    for place, (name, start, phase) in enumerate(found):
        short = name if len(name) <= 40 else name[:39] + "…"
        look: Any = {"va": "bottom", "ha": "left" if start + 0.5 < middle else "right", "fontsize": 8}
        where: Any = {"xycoords": ("data", "axes fraction"), "xytext": (0, 2 + 11 * place)}
        text = figures.plain(f"{short}: {phase}")
        axes.annotate(text, (start + 0.5, 1), textcoords="offset points", color="#333333", **where, **look)
    axes.set_title(axes.get_title(loc="left"), fontsize=11, loc="left", pad=6 + 11 * len(found))


def _label_axes(upper: Any, lower: Any, metric: str) -> None:
    marks = "a ring marks the epoch that was tested, a dotted line the start of a next phase"
    upper.set_title(f"Training; {marks}", fontsize=11, loc="left")
    upper.set_ylabel(f"validation {metric}")
    lower.set_ylabel("training loss (comparable\nwithin a model and phase)")
    lower.set_xlabel("epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)
    lowest, highest = lower.dataLim.intervaly
    if 0 < 5 * lowest < highest:  # losses of several kinds; the alignment loss may also be negative
        lower.set_yscale("log", subs=[2, 5])
        lower.yaxis.set_major_formatter("{x:g}")
        lower.yaxis.set_minor_formatter("{x:g}")
    lower.grid(which="minor")


def plot_results(results: Sequence[ModelResult], path: Path, metric: str = METRIC, seed: int = 42) -> None:
    """Bars of a metric by domain and model, each with its bootstrap 95 % interval over users."""
    name, k = significance.parse_metric(metric)
    rows = []
    for result in results:
        values = per_user(result.ranks["higher"], result.ranks["tied"], name, k)
        for domain in (*domains_of(result.ranks), OVERALL):
            part = values if domain == OVERALL else values[(result.ranks["domain"] == domain).to_numpy()]
            low, high = significance.bootstrap_interval(part, seed) if len(part) else (np.nan, np.nan)
            rows.append((domain, result.name, float(part.mean()) if len(part) else 0.0, low, high))
    columns = ["domain of the held-out item", "model", metric, "low", "high"]
    figure = figures.bars(pd.DataFrame(rows, columns=columns), columns[0], metric, "model", f"{metric} (0 to 1)")
    figures.save(figure, path)
