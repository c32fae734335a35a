"""Histories of users whom a model has never seen, from a CSV or JSON Lines file; bad rows are named.

CSV has a row per interaction: ``user``, ``item``, and if the rows are not in order of time a ``timestamp``, which is a
number in all rows or an ISO 8601 date in all; the header shows the separator (``readers.separator_of``).
JSON Lines has an object per user: ``{"user": "anna", "history": ["b7", "b2"]}``, oldest item first.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt.cleaning import sanitize
from recbole_edt.data.raw_files import as_number, seconds, separator_of
from recbole_edt.errors import DataError
from recbole_edt.files import read_bytes

_NAMED = 10


@dataclass(frozen=True)
class Histories:
    """``U`` users in the order in which the file names them.

    Attributes:
        users: ``[U]`` names, without outer blanks.
        item: ``[M]`` item ids, oldest first within a user.
        offsets: ``[U + 1]`` where each user begins in ``item``.
    """

    users: np.ndarray
    item: np.ndarray
    offsets: np.ndarray


def read(path: Path, item_id: Mapping[str, int]) -> Histories:
    """Read and check a whole file.

    Args:
        path: ending in one of `ENDINGS`.
        item_id: ids of the catalogue by token.

    Raises: DataError naming the file, and line and fault of the first bad rows, if there are any.
    """
    rows, faults = (_read_csv if path.suffix == ".csv" else _read_jsonl)(path, item_id)
    if faults:
        lines = [f"{path}, line {line}: {fault}" for line, fault in faults[:_NAMED]]
        more = [f"... and {len(faults) - _NAMED:,} more bad rows"] if len(faults) > _NAMED else []
        raise DataError("\n".join([*lines, *more, "correct or remove these rows"]))
    if not len(rows):
        raise DataError(f"{path}: no history in it")
    user, names = pd.factorize(rows["user"])
    order = np.lexsort((rows["timestamp"], user))  # stable: rows of one time stay in the file's order
    offsets = np.concatenate([[0], np.bincount(user).cumsum()])
    return Histories(np.asarray(names, dtype=object), rows["item"].to_numpy(np.int64)[order], offsets)


def read_users(path: Path) -> list[str]:
    """The user ids in a text file, one a line.

    Raises: DataError if there is none.
    """
    users = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not users:
        raise DataError(f"{path}: no user in it; write one id a line")
    return users


def _text(path: Path) -> str:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start:,}); save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    return text


def _read_csv(path: Path, item_id: Mapping[str, int]) -> tuple[pd.DataFrame, list[tuple[int, str]]]:
    lines, frame, faults = _table(path)
    item, user = frame["item"].map(item_id), frame["user"].str.strip()
    empty = user == ""
    unfit = np.array([not _is_writable(one) for one in user], dtype=bool)
    given = frame["timestamp"] if "timestamp" in frame else pd.Series("0", frame.index)
    time = seconds(given.to_list())
    number = ~np.isnan(np.array([as_number(one) for one in given], dtype=np.float64))
    timed = np.isfinite(time) & ~empty
    other = number != number[timed.idxmax()] if timed.any() else timed  # no order between dates and plain numbers
    tests = (
        (empty, lambda row: "no user"),
        (unfit, lambda row: f"user {user.iat[row]!r} is no id"),
        (item.isna() & ~empty, lambda row: f"unknown item {frame['item'].iat[row]!r}"),
        (~np.isfinite(time) & ~empty, lambda row: f"timestamp {given.iat[row]!r} is no number and no ISO 8601 date"),
        (timed & other, lambda row: f"timestamp {given.iat[row]!r}: all must be numbers, or all dates"),
    )
    faults += [(lines[row], say(row)) for wrong, say in tests for row in np.flatnonzero(wrong).tolist()]
    return pd.DataFrame({"user": user, "item": item, "timestamp": time}), sorted(faults)


def _table(path: Path) -> tuple[list[int], pd.DataFrame, list[tuple[int, str]]]:
    """Lines and texts of the rows that fit the header, and a fault for each other row; empty lines are none."""
    (_, header), *rows = _csv_rows(path, _text(path))
    if missing := [name for name in ("user", "item") if name not in header]:
        found = ", ".join(map(repr, header))
        raise DataError(f"{path}, line 1: no column {missing[0]!r}, only {found}; needed are user and item")
    width = len(header)
    fit = [(line, row) for line, row in rows if len(row) == width]
    places = {name: header.index(name) for name in ("user", "item", "timestamp") if name in header}
    if twice := [name for name in places if header.count(name) > 1]:
        raise DataError(f"{path}, line 1: the header names {twice[0]!r} twice; rename or remove one")
    frame = pd.DataFrame({name: [row[place] for _, row in fit] for name, place in places.items()}, dtype=object)
    others = [(line, len(row)) for line, row in rows if len(row) not in (0, width)]
    faults = [(line, f"{n} fields where the header has {width}") for line, n in others]
    return [line for line, _ in fit], frame, faults


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows, each with the line on which it begins."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator_of(text.partition("\n")[0]), strict=True)
    line = 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        hint = "is a quotation mark opened there and not closed?"
        raise DataError(f"{path}, line {line}: no readable CSV ({error}); {hint}") from None


def _read_jsonl(path: Path, item_id: Mapping[str, int]) -> tuple[pd.DataFrame, list[tuple[int, str]]]:
    user: list[str] = []
    item: list[int] = []
    faults, met = [], set()
    for line, text in enumerate(_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            name, tokens = _parsed(text)
            if name in met:
                raise ValueError(f"user {name!r} was there before")
            if unknown := [token for token in tokens if token not in item_id]:
                raise ValueError(f"unknown item {unknown[0]!r}")
        except (ValueError, RecursionError) as error:
            faults.append((line, str(error)))
            continue
        met.add(name)
        user += [name] * len(tokens)
        item += [item_id[token] for token in tokens]
    return pd.DataFrame({"user": pd.Series(user, dtype=object), "item": item, "timestamp": 0.0}), faults


def _parsed(text: str) -> tuple[str, list[str]]:
    """Raises: ValueError saying what is wrong."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(value, dict) or not {"user", "history"} <= set(value):
        raise ValueError('not an object with "user" and "history"')
    user, tokens = value["user"], value["history"]
    name = str(user).strip()
    if not _is_id(user) or name == "" or not _is_writable(name):
        raise ValueError(f"user {user!r} is no id")
    if not isinstance(tokens, list) or not tokens or not all(map(_is_id, tokens)):
        raise ValueError("history is no list of item ids, or an empty one")
    return name, [str(token) for token in tokens]


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_writable(name: str) -> bool:
    """Whether a name has no control characters and no halves of surrogate pairs."""
    return sanitize(name) == name.strip()


def batches(histories: Histories, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Names, items and offsets of ``size`` users at a time."""
    for start in range(0, len(histories.users), size):
        offsets = histories.offsets[start : start + size + 1]
        yield histories.users[start : start + size], histories.item[offsets[0] : offsets[-1]], offsets - offsets[0]
