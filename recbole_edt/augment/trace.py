"""The trace of augmentation: a row per proposal, with its scores, its fate and its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt.augment.proposals import Proposed
from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.errors import DataError
from recbole_edt.files import read_bytes, write_text
from recbole_edt.llm import templates

TRACE_COLUMNS = (
    *("user", "source", "target", *templates.FIELDS, "item"),
    *("source_score", "target_score", "rank", "fate", "after", "place"),
)


def trace_of(
    train: TwoDomainData,
    source: int,
    proposed: Proposed,
    fate: np.ndarray,
    live: np.ndarray,
    scores: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """A row per proposal; ``tell_places`` fills in where it stands."""
    frame = proposed.fields.assign(
        user=train.users[proposed.user],
        source=train.domains[source],
        target=train.domains[1 - source],
        item=np.where(proposed.item >= 0, train.items[proposed.item], ""),
        source_score=np.nan,
        target_score=np.nan,
        rank=0,
        fate=fate,
        after="",
        place=0,
    )
    for name, values in scores.items():
        column = frame[name].to_numpy().copy()
        column[live] = values
        frame[name] = column
    return frame[list(TRACE_COLUMNS)]


def tell_places(trace: pd.DataFrame, data: TwoDomainData, row: np.ndarray) -> None:
    """Write into ``trace`` after which item, and which raw row of the user's (from 1), each kept proposal stands."""
    kept = (trace["fate"] == "kept").to_numpy()
    trace.loc[kept, "after"] = data.items[data.item[row]]
    trace.loc[kept, "place"] = row - data.offsets[data.user[row]] + 1


def write_trace(trace: pd.DataFrame, path: Path) -> None:
    """Write one JSON object per row and line, with the values that say something; scores with six decimals."""
    names = list(trace)
    lines = []
    for row in trace.itertuples(index=False, name=None):
        told = {name: value for name, value in zip(names, row, strict=True) if _is_told(value)}
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in told.items()}
        lines.append(json.dumps(rounded, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _is_told(value: Any) -> bool:
    """Whether it is neither NaN nor ``""`` nor a whole number 0, which is no rank and no place."""
    return value == value and value != "" and not (isinstance(value, int) and value == 0)


def read_trace(path: Path, user: str | None = None) -> pd.DataFrame:
    """Rows that ``write_trace`` wrote, of one user if named.

    Raises: DataError with the line that is not a JSON object.
    """
    rows = []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number}: no row of a trace ({error}); run the stage again") from error
        if user is None or row.get("user") == user:
            rows.append(row)
    trace = pd.DataFrame(rows, columns=list(TRACE_COLUMNS))
    numbers = {"source_score": np.nan, "target_score": np.nan, "rank": 0, "place": 0}
    filled = trace.fillna({name: numbers.get(name, "") for name in TRACE_COLUMNS if numbers.get(name) is not np.nan})
    return filled.astype({"source_score": float, "target_score": float, "rank": int, "place": int})
