"""The data card: what a data set holds, how lopsided its users are, where it came from and what was dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_edt.data import prepare
from recbole_edt.data.statistics import bin_names, ratio_histogram, share_of, statistics, time_span, titled
from recbole_edt.data.two_domains import TwoDomainData, keep_rows
from recbole_edt.errors import DataError
from recbole_edt.files import read_json, write_json, write_text
from recbole_edt.render import figures as draw
from recbole_edt.render.sections import Page, Part, Picture, Section
from recbole_edt.render.tables import Column, ResultTable
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


def figures(data: TwoDomainData, augmented: TwoDomainData | None = None) -> dict[str, Any]:
    """Everything that the card says of the data themselves, before and, where it has happened, after augmentation."""
    texts = item_text(data.item_fields[~data.virtual])
    parts = {"before": keep_rows(data, ~data.generated), **({"after": augmented} if augmented is not None else {})}
    return {
        "name": data.name,
        "domains": list(data.domains),
        "statistics": {when: statistics(part) for when, part in parts.items()},
        "domain_ratio": {when: ratio_histogram(part) for when, part in parts.items()},
        "items_with_title": share_of(titled(data), len(texts)),
        "items_with_text": share_of([text != "" for text in texts], len(texts)),
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
    write_text(folder / NAMES["text"], page(found, folder).markdown(folder))
    ratios = {when: part["users_by_tenth"] for when, part in found["domain_ratio"].items()}
    label = "domain ratio r of a user's training interactions (%)"
    figure = draw.histogram(pd.DataFrame({label: bin_names(), **ratios}), label, label, "users")
    figure.axes[0].set_title(draw.plain(found["name"]))
    draw.save(figure, folder / NAMES["figure"], ("png",))


def recorded(folder: Path) -> dict[str, Any]:
    """The statistics on the card in ``folder``, before and after augmentation; empty if the card is not whole."""
    try:
        found = dict(read_json(folder / NAMES["json"])["statistics"])
    except (DataError, KeyError, TypeError, ValueError):
        return {}
    return found if all((folder / name).is_file() for name in NAMES.values()) else {}


def page(found: Mapping[str, Any], folder: Path = Path()) -> Page:
    """The card; ``found`` is what ``card.json`` holds, ``folder`` where the figure is."""
    ratios, time = found["domain_ratio"], found["time"]
    means = [f"{when} {part['mean']:.3f}" for when, part in ratios.items() if part["mean"] is not None]
    tenths = zip(bin_names(), *(part["users_by_tenth"] for part in ratios.values()), strict=True)
    users = ["r (%)", *(Column("users", when) for when in ratios)]
    told = "r = abs(nA - nB) / (nA + nB) of a user's training interactions: 0 balanced, 100 % one domain only."
    content = [
        ("items with a title", f"{found['items_with_title']:.1%}"),
        ("items with any text", f"{found['items_with_text']:.1%}"),
        ("time", f"{time['first']} to {time['last']}"),
        ("interactions whose user has another one at the same time", f"{time['share_tied']:.1%}"),
    ]
    picture = Picture(folder / Path(NAMES["figure"]).stem, "users by domain ratio")
    sections = [
        Section("Users, items, interactions", list(_counts(found))),
        Section("Domain ratio", [told, ResultTable("ratio", "Domain ratio", users, list(tenths)), picture]),
        Section("Content", [ResultTable("content", "Content", ["what", "value"], content)]),
    ]
    if means:
        sections[1] = Section("Domain ratio", [*sections[1].parts, f"Mean: {', '.join(means)}."])
    if "prepare" in found:
        sections.append(Section("What was dropped", [_dropped(found)]))
        sections.append(Section("Raw files", list(_inputs(found["prepare"]["settings"].get("inputs") or []))))
    return Page(f"Data card: {found['name']}", [], sections)


def _counts(found: Mapping[str, Any]) -> Iterator[Part]:
    parts = found["statistics"]
    counted = ("users", "items", "interactions")
    columns = ["domain", *(Column(what, when) for when in parts for what in counted)]
    rows = [
        (name, *(part["by_domain"][name][what] for part in parts.values() for what in counted))
        for name in found["domains"]
    ]
    yield ResultTable("counts", "Users, items, interactions", columns, rows)
    for when, part in parts.items():
        yield (
            f"{when} augmentation: {part['users']:,} users, {part['users_in_both_domains']:,} of them in both domains; "
            f"{part['interactions']:,} interactions, {part['mean_length']:.2f} per user"
        )


def _dropped(found: Mapping[str, Any]) -> ResultTable:
    counts = found["prepare"]["counts"]
    if (dropped := counts.get("dropped")) is None:
        rows = [(key.replace("_", " "), n) for key, n in counts.items()]
    else:
        rows = [("lines read", counts["rows_read"])]
        rows += [(why, dropped[reason]) for reason, why in REASONS.items() if reason in dropped]
        rows += [
            ("kept", counts["rows_kept"]),
            (f"items met in both domains, which count as {found['domains'][0]}", counts["items_in_both"]),
            ("items without a line in the files of items", counts["items_without_metadata"]),
        ]
    return ResultTable("dropped", "What was dropped", ["interactions", "number"], rows)


def _inputs(inputs: list[dict[str, Any]]) -> Iterator[Part]:
    if inputs:
        keys = {"file": "file", "bytes": "bytes", "lines": "lines", "unusable": "unusable", "sha256": "SHA-256"}
        rows = [[one[key] for key in keys] for one in inputs]
        yield ResultTable("inputs", "Raw files", list(keys.values()), rows)
    for one in inputs:
        if one["unusable"]:
            yield f"{one['file']}, first unusable: {one['first_unusable']}"
