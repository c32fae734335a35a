"""What a data set holds: counts, lengths, spans, and how lopsided its users are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from recbole_edt.data.split import domain_ratio, training_rows
from recbole_edt.data.two_domains import TwoDomainData, keep_rows

N_BINS = 10
"""Tenths of the domain ratio, as in figure 1 of the paper; each has its lower bound, the last also the upper."""
_FIRST_YEAR, _LAST_YEAR = 1990, 2100


def statistics(data: TwoDomainData) -> dict[str, Any]:
    """The columns of the paper's table 1, and the overlap.

    Users of a domain have an interaction in it; the mean length is of whole histories, both domains together.
    Inserted rows count where there are any, and so do virtual items.
    """
    domain = data.item_domain[data.item]
    of = [np.unique(data.user[domain == d]) for d in (0, 1)]
    n_items = np.bincount(data.item_domain, minlength=2)
    return {
        "users": len(data.users),
        "interactions": len(data.user),
        "mean_length": len(data.user) / len(data.users),
        "users_in_both_domains": len(np.intersect1d(*of)),
        "by_domain": {
            name: {
                "users": len(of[d]),
                "items": int(n_items[d]),
                "interactions": int((domain == d).sum()),
            }
            for d, name in enumerate(data.domains)
        },
    }


def card(data: TwoDomainData) -> dict[str, int | float]:
    """The figures by which a data set is known; generated rows and virtual items do not count.

    The mean domain ratio is over users, each on the training rows.
    """
    raw = keep_rows(data, ~data.generated)
    found = statistics(raw)
    n_items = np.bincount(data.item_domain[~data.virtual], minlength=2)
    return {
        "users": found["users"],
        **{f"items_{name}": int(n) for name, n in zip(data.domains, n_items, strict=True)},
        **{key: found[key] for key in ("interactions", "mean_length", "users_in_both_domains")},
        "mean_domain_ratio": float(domain_ratio(training_rows(raw)).mean()),
    }


def oddities(found: Mapping[str, int | float], domains: Sequence[str]) -> list[str]:
    """Notes on what keeps a data set, by its `card`, from telling anything of two domains."""
    notes = [
        f"note: {name} has {n} items, so that every target is among the first 10 of its domain, whatever the model"
        for name in domains
        if (n := found[f"items_{name}"]) <= 10
    ]
    if not found["users_in_both_domains"]:
        notes.append("note: no user acts in both domains, so that nothing is learnt of one from the other")
    return notes


def titled(data: TwoDomainData) -> np.ndarray:
    """Whether each real item has a title; empty if no column holds titles."""
    titles: Iterable[str] = data.item_fields["title"][~data.virtual] if "title" in data.item_fields else []
    return np.array([title != "" for title in titles], bool)


def untitled(data: TwoDomainData) -> str:
    """How many real items lack a title; empty if none does, or no column holds titles."""
    flags = titled(data)
    n = int((~flags).sum())
    return f"{n:,} of {len(flags):,} items without a title" if n else ""


def listed(figures: Mapping[str, Any]) -> str:
    """Figures of a card in one line."""
    return ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in figures.items())


def number(value: Any) -> str:
    """Three decimals for what is not whole."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def ratio_histogram(data: TwoDomainData) -> dict[str, Any]:
    """Users by domain ratio (figure 1 of the paper), on training rows; users without any are left out."""
    rows = training_rows(data)
    ratio = domain_ratio(rows)[np.diff(rows.offsets) > 0]
    tenth = np.minimum(np.floor(N_BINS * ratio + 1e-9), N_BINS - 1).astype(np.int64)  # 0.3 is a little less than 3/10
    counts = np.bincount(tenth, minlength=N_BINS)
    return {"users_by_tenth": counts.tolist(), "mean": float(ratio.mean()) if len(ratio) else None}


def bin_names() -> list[str]:
    """The bins of `ratio_histogram` in percent, such as ``90-100``."""
    return [f"{100 * place // N_BINS}-{100 * (place + 1) // N_BINS}" for place in range(N_BINS)]


def share_of(flags: Sequence[bool] | np.ndarray, n: int) -> float:
    return float(np.sum(flags) / n) if n else 0.0


def tied(data: TwoDomainData) -> tuple[np.ndarray, np.ndarray]:
    """``[rows - 1]`` each: whether a row and the next are of one user, and whether they have one time, too."""
    same_user = data.user[1:] == data.user[:-1]
    return same_user, same_user & (data.time[1:] == data.time[:-1])


def time_span(data: TwoDomainData) -> dict[str, Any]:
    """First and last time, as days where they can be seconds since 1970, and how many share theirs."""
    same = tied(data)[1]
    share = float((np.append(same, False) | np.append(False, same)).mean())
    first, last = (float(of(data.time)) for of in (np.min, np.max))
    return {"first": _as_day(first, last), "last": _as_day(last, last), "share_tied": share}


def _as_day(time: float, last: float) -> str:
    bounds = [datetime(year, 1, 1, tzinfo=timezone.utc).timestamp() for year in (_FIRST_YEAR, _LAST_YEAR)]
    if not bounds[0] <= last < bounds[1]:
        return f"{time:g}"
    return str(np.datetime64(int(time // 1), "s").astype("datetime64[D]"))  # a date of Python has no year 0 or before
