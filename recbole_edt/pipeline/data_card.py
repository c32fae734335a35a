"""The data card: what a data set holds, how lopsided its users are, where it came from and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_edt.data import prepare
from recbole_edt.data.statistics import N_BINS, bin_names, ratio_histogram, share_of, statistics, time_span
from recbole_edt.data.two_domains import TwoDomainData, keep_rows
from recbole_edt.errors import DataError
from recbole_edt.files import read_json, write_json, write_safely, write_text
from recbole_edt.text.item_text import item_text

NAMES = {"json": "card.json", "text": "card.md", "figure": "card.png"}
REASONS = {
    "unusable": "lines that could not be read, or without user or item",
    "of_other_domains": "of neither domain, or in the file of the other",
    "without_time": "without a time",
    "outside_dates": "outside prepare.after and prepare.before",
    "duplicate": "the same user, item and time again",
    "repeated": "a later interaction of a user with the same item",
    "too_rare": "of rare items or users (prepare.k_core, prepare.min_history)",
    "not_sampled": "of users who were not drawn (prepare.sample_users)",
}
"""Why rows were dropped, in the order in which that happens."""
_BEFORE, _AFTER = "#0072B2", "#D55E00"


def figures(data: TwoDomainData, augmented: TwoDomainData | None = None) -> dict[str, Any]:
    """Everything that the card says of the data themselves, before and, where it has happened, after augmentation."""
    texts = item_text(data.item_fields[~data.virtual])
    titles: Any = data.item_fields["title"][~data.virtual] if "title" in data.item_fields else []
    parts = {"before": keep_rows(data, ~data.generated), **({"after": augmented} if augmented is not None else {})}
    return {
        "name": data.name,
        "domains": list(data.domains),
        "statistics": {when: statistics(part) for when, part in parts.items()},
        "domain_ratio": {when: ratio_histogram(part) for when, part in parts.items()},
        "items_with_title": share_of(np.array([title != "" for title in titles]), len(texts)),
        "items_with_text": share_of(np.array([text != "" for text in texts]), len(texts)),
        "time": time_span(parts["before"]),
    }


def write(folder: Path, data: TwoDomainData, augmented: TwoDomainData | None = None) -> None:
    """Write ``card.json``, ``card.md`` and ``card.png`` into ``folder``, with what ``prepare.json`` there says.

    Raises: DataError if a file cannot be written.
    """
    found = figures(data, augmented)
    made = prepare.manifest(folder)
    if "counts" in made:  # else prepare was interrupted
        found["prepare"] = {"counts": made["counts"], "settings": made["config"], "versions": made["versions"]}
    write_json(folder / NAMES["json"], found)
    write_text(folder / NAMES["text"], markdown(found))
    plot_ratio(found, folder / NAMES["figure"])


def recorded(folder: Path) -> dict[str, Any]:
    """The statistics on the card in ``folder``, before and after augmentation; empty if the card is not whole."""
    try:
        found = dict(read_json(folder / NAMES["json"])["statistics"])
    except (DataError, KeyError, TypeError, ValueError):
        return {}
    return found if all((folder / name).is_file() for name in NAMES.values()) else {}


def markdown(found: Mapping[str, Any]) -> str:
    """The card as a page; ``found`` is what ``card.json`` holds."""
    sections = [
        [f"# Data card: {_escaped(found['name'])}"],
        _statistics_section(found),
        _ratio_section(found),
        _content_section(found),
        *([_dropped_section(found), _inputs_section(found)] if "prepare" in found else []),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def plot_ratio(found: Mapping[str, Any], path: Path) -> None:
    """Users by domain ratio as bars, before and after augmentation side by side (figure 1 of the paper)."""
    from matplotlib.figure import Figure

    parts = found["domain_ratio"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(parts)
    places = np.arange(N_BINS)
    styles = {"before": (_BEFORE, ""), "after": (_AFTER, "///")}
    for number, (when, one) in enumerate(parts.items()):
        colour, hatch = styles[when]
        where = places + (number - (len(parts) - 1) / 2) * width
        axes.bar(where, one["users_by_tenth"], width, color=colour, hatch=hatch, edgecolor="white", label=when)
    axes.set_xticks(places, bin_names())
    axes.set_xlabel("domain ratio r of a user's training interactions (%)")
    axes.set_ylabel("users")
    axes.set_title(found["name"].replace("$", r"\$"))
    axes.spines[["top", "right"]].set_visible(False)
    if len(parts) > 1:
        axes.legend(title="augmentation", frameon=False)
    with write_safely(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


# ---- sections ----------------------------------------------------------------------------------------------------


def _statistics_section(found: Mapping[str, Any]) -> list[str]:
    parts = found["statistics"]
    head = ["domain"] + [f"{what}, {when}" for when in parts for what in ("users", "items", "interactions")]
    rows = [
        [_escaped(name), *(f"{part['by_domain'][name][what]:,}" for part in parts.values() for what in _COUNTED)]
        for name in found["domains"]
    ]
    lines = [
        f"- {when} augmentation: {part['users']:,} users, {part['users_in_both_domains']:,} of them in both domains; "
        f"{part['interactions']:,} interactions, {part['mean_length']:.2f} per user"
        for when, part in parts.items()
    ]
    return ["## Users, items, interactions", "", *_table(head, rows), "", *lines]


_COUNTED = ("users", "items", "interactions")


def _ratio_section(found: Mapping[str, Any]) -> list[str]:
    parts = found["domain_ratio"]
    rows = [
        [name, *(f"{part['users_by_tenth'][place]:,}" for part in parts.values())]
        for place, name in enumerate(bin_names())
    ]
    means = [f"{when} {part['mean']:.3f}" for when, part in parts.items() if part["mean"] is not None]
    return [
        "## Domain ratio",
        "",
        "r = abs(nA - nB) / (nA + nB) of a user's training interactions: 0 balanced, 100 % one domain only.",
        "",
        *_table(["r (%)", *(f"users, {when}" for when in parts)], rows),
        "",
        f"Mean: {', '.join(means)}. ![users by domain ratio]({NAMES['figure']})",
    ]


def _content_section(found: Mapping[str, Any]) -> list[str]:
    time = found["time"]
    return [
        "## Content",
        "",
        f"- items with a title: {found['items_with_title']:.1%}; with any text: {found['items_with_text']:.1%}",
        f"- time: {time['first']} to {time['last']}",
        f"- interactions whose user has another one at the same time: {time['share_tied']:.1%}",
    ]


def _dropped_section(found: Mapping[str, Any]) -> list[str]:
    counts = found["prepare"]["counts"]
    dropped = counts.get("dropped")
    if dropped is None:
        lines = [f"- {key.replace('_', ' ')}: {n:,}" for key, n in counts.items()]
        return ["## What was dropped", "", *lines]
    rows = [[why, f"{dropped[reason]:,}"] for reason, why in REASONS.items() if reason in dropped]
    rows = [["lines read", f"{counts['rows_read']:,}"], *rows, ["**kept**", f"{counts['rows_kept']:,}"]]
    lines = [
        f"- items met in both domains, which count as {_escaped(found['domains'][0])}: {counts['items_in_both']:,}",
        f"- items without a line in the files of items: {counts['items_without_metadata']:,}",
    ]
    return ["## What was dropped", "", *_table(["interactions", "number"], rows), "", *lines]


def _inputs_section(found: Mapping[str, Any]) -> list[str]:
    inputs = found["prepare"]["settings"].get("inputs")
    if not inputs:
        return []
    rows = [
        [_escaped(one["file"]), f"{one['bytes']:,}", f"{one['lines']:,}", f"{one['unusable']:,}", f"`{one['sha256']}`"]
        for one in inputs
    ]
    first = [
        f"- {_escaped(one['file'])}, first unusable: {_escaped(one['first_unusable'])}"
        for one in inputs
        if one["unusable"]
    ]
    head = ["file", "bytes", "lines", "unusable", "SHA-256"]
    return ["## Raw files", "", *_table(head, rows), *(["", *first] if first else [])]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _escaped(text: str) -> str:
    """Text of data or files as it may stand in Markdown."""
    for sign in "\\`*_{}[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text
