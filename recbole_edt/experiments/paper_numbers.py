"""The paper's own numbers beside ours, and what keeps the two from being compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from recbole_edt.config.settings import Settings
from recbole_edt.files import read_file
from recbole_edt.render.tables import Column, ResultTable

FILE = Path(__file__).parent / "paper_numbers.yaml"
ALONE = " (paper alone)"
"""Ending of the name of a row that only the paper has."""


@dataclass(frozen=True)
class Printed:
    """One table of the paper for one pair of domains.

    Attributes:
        table: such as ``Table 2``.
        domains: the paper's names, in the order of our domains where they are the same.
        metrics: of each domain.
        rows: values by row: all metrics of the first domain, then of the second; one alone for both domains.
        same_domains: whether the pair is that of our data, by name.
    """

    table: str
    domains: tuple[str, str]
    metrics: tuple[str, ...]
    rows: dict[str, list[float]]
    same_domains: bool


@cache
def _content() -> dict[str, Any]:
    return read_file(FILE)


def printed(table: str, domains: Sequence[str]) -> Printed:
    """A table's numbers for the pair with our domains' names, else for the paper's first pair.

    Args:
        table: as in the file, such as ``table2``.
        domains: our two domains.
    """
    content = _content()[table]
    metrics, ours = tuple(content["metrics"]), [_plain(name) for name in domains]
    title = f"Table {table.removeprefix('table')}"
    for pair in content["pairs"]:
        theirs = [_plain(name) for name in pair["domains"]]
        if theirs == ours:
            return Printed(title, tuple(pair["domains"]), metrics, pair["rows"], True)
        if theirs[::-1] == ours:
            swapped = {name: [*row[len(row) // 2 :], *row[: len(row) // 2]] for name, row in pair["rows"].items()}
            return Printed(title, tuple(pair["domains"][::-1]), metrics, swapped, True)
    first = content["pairs"][0]
    return Printed(title, tuple(first["domains"]), metrics, first["rows"], False)


def _plain(name: str) -> str:
    """A domain's name for comparing: Cell Phones and cell_phone are one."""
    return "".join(filter(str.isalnum, name.lower())).rstrip("s")


def beside(table: ResultTable, numbers: Printed, difference: str) -> ResultTable:
    """Our table with the paper's columns at its right, rows by name; rows that only the paper has come last.

    Args:
        table: ours; names are in the first column.
        numbers: of the paper.
        difference: why the two cannot be compared, for the note.
    """
    both = len(next(iter(numbers.rows.values()))) == len(numbers.metrics)
    domains = (" and ".join(numbers.domains),) if both else numbers.domains
    added = [Column(metric, f"paper: {domain}", decimals=4) for domain in domains for metric in numbers.metrics]
    ours = [str(row[0]).removesuffix("†") for row in table.rows]
    nothing = [None] * len(added)
    rows = [(*row, *numbers.rows.get(name, nothing)) for name, row in zip(ours, table.rows, strict=True)]
    only = [name for name in numbers.rows if name not in ours]
    empty = [None] * (len(table.columns) - 1)
    rows += [(name + ALONE, *empty, *numbers.rows[name]) for name in only]
    note = f"Paper: {numbers.table} of {_content()['source']}, {' - '.join(numbers.domains)}. {difference}"
    return replace(table, columns=[*table.columns, *added], rows=rows, note=f"{table.note} {note}".strip())


def difference(settings: Settings, numbers: Printed, candidates: str, asked: bool) -> str:
    """Why our numbers are not comparable with the paper's, in one sentence.

    Args:
        settings: of our runs.
        numbers: of the paper.
        candidates: who competed with our targets.
        asked: whether a language model wrote our items and profiles.
    """
    reasons = ["other files of the same domains" if numbers.same_domains else "other data"]
    if candidates != "sampled-100":
        reasons.append("the target competes with 100 sampled items there")
    if not asked:
        reasons.append("no LLM was called here")
    reasons.append("its released code augments before it splits")
    return f"Not comparable: {', '.join(reasons)}."


def missing(numbers: Printed, names: Sequence[str]) -> list[str]:
    """Rows of the paper that are not among ``names``."""
    return [name for name in numbers.rows if name not in names]


def mean_lengths(domains: Sequence[str]) -> Mapping[str, Any]:
    """Mean lengths before and after augmentation of the pair that `printed` chooses for table 1."""
    chosen = printed("table1", domains).domains
    pairs = _content()["table1"]["pairs"]
    before, after = next(pair["mean_length"] for pair in pairs if set(pair["domains"]) == set(chosen))
    return {"before": before, "after": after}
