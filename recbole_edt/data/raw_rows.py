"""Interactions of any number: on disk as they are read, in memory once the filters have left few enough.

Memory holds one block of rows, fixed tables of counts, and what is kept; never all rows, users or items read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from recbole_edt.data import two_domains
from recbole_edt.errors import DataError

IN_MEMORY_ROWS = 4_000_000
"""Up to so many rows are filtered exactly from the start; more go through a coarse filter first."""
# A byte per bucket; together 144 MiB, more users and items than any public data set has.
USER_BUCKETS, ITEM_BUCKETS = 2**27, 2**24
_FULL = 255
_ROW = np.dtype([("user", "<u4"), ("item", "<u4"), ("time", "<f8"), ("line", "<i8"), ("domain", "i1")])


@dataclass(frozen=True, eq=False)
class Rows:
    """``M`` interactions of ``U`` users with ``N`` items, numbered in order of first appearance."""

    users: np.ndarray
    """``[U]`` ids."""
    items: np.ndarray
    """``[N]`` ids."""
    user: np.ndarray
    """``[M]`` index into ``users``."""
    item: np.ndarray
    """``[M]`` index into ``items``."""
    time: np.ndarray
    """``[M]`` float64 seconds."""
    line: np.ndarray
    """``[M]`` int64 place in its file."""
    domain: np.ndarray
    """``[M]`` int8: 0 if it was read for domain A, 1 for B."""
    in_a: np.ndarray
    """``[N]`` bool: whether any row of the item, kept or not, was read for domain A."""

    def take(self, kept: np.ndarray | slice) -> Rows:
        """Rows by mask, index or slice; users and items as they are."""
        names = ("user", "item", "time", "line", "domain")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


class Spill:
    """Rows in files without a name, which vanish with the process however that ends."""

    def __init__(self, folder: Path) -> None:
        """Raises: DataError naming the folder if nothing can be written there."""
        self._folder = folder
        self._sizes: list[int] = []
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            self._rows, self._ids = (tempfile.TemporaryFile(dir=folder) for _ in range(2))

    def append(
        self, users: Sequence[str], items: Sequence[str], times: np.ndarray, lines: np.ndarray, domain: int
    ) -> None:
        """Add a block of rows; ids must be free of line ends.

        Raises: DataError if the disk is full.
        """
        if not len(users):
            return  # no id at all reads back like one that is empty
        rows = np.empty(len(users), _ROW)
        rows["user"], rows["item"] = _buckets(users, USER_BUCKETS), _buckets(items, ITEM_BUCKETS)
        rows["time"], rows["line"], rows["domain"] = times, lines, domain
        with self._writing():
            self._rows.write(rows.tobytes())
            for ids in (users, items):
                np.save(self._ids, np.frombuffer("\n".join(ids).encode("utf-8"), np.uint8))
        self._sizes.append(len(rows))

    def close(self) -> None:
        """Give the disk space back."""
        for file in (self._rows, self._ids):
            with suppress(OSError):  # its last bytes do not fit on the disk either
                file.close()

    @property
    def n_rows(self) -> int:
        return sum(self._sizes)

    def kept(self, k_core: int, min_history: int) -> Rows:
        """The rows in memory, without those that a coarse filter drops if there are many.

        The coarse filter counts in buckets, which hold the rows of one user or item or of several: it drops nothing
        that an exact filter would keep, whatever domain an item turns out to be of.
        """
        per_user = max(k_core, min_history)
        tables = self._coarse(per_user, k_core) if per_user > 1 else None
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, _ROW))]
        for rows, user_ids, item_ids in self._with_ids():
            kept = slice(None) if tables is None else tables.keep(rows)
            parts.append((_numbered(user_ids[kept], users), _numbered(item_ids[kept], items), rows[kept]))
        user, item, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
        columns = {name: np.ascontiguousarray(rows[name]) for name in ("time", "line", "domain")}
        in_a = np.zeros(len(items), bool)
        in_a[item[rows["domain"] == 0]] = True
        if tables is not None:
            self._mark(in_a, items)
        return Rows(
            np.array(list(users), dtype=object), np.array(list(items), dtype=object), user, item, **columns, in_a=in_a
        )

    def _mark(self, in_a: np.ndarray, items: dict[str, int]) -> None:
        """Set ``in_a [N]`` for items of which domain A had rows that the coarse filter dropped."""
        open_items = {one: number for one, number in items.items() if not in_a[number]}
        for rows, _, item_ids in self._with_ids():
            if len(rows) and rows["domain"][0] == 0:
                in_a[[number for one in pd.unique(item_ids) if (number := open_items.get(one)) is not None]] = True

    def _coarse(self, per_user: int, per_item: int) -> _Counts | None:
        """Counts of what is left when another pass over the disk would drop less than a tenth; None for few rows."""
        counts: _Counts | None = None
        before, left = np.inf, self.n_rows
        while IN_MEMORY_ROWS < left <= 0.9 * before:
            before = left if counts else np.inf
            fewer, left = _Counts(per_user, per_item), 0
            for rows in self._blocks():
                rows = rows[counts.keep(rows)] if counts else rows
                fewer.add(rows)
                left += len(rows)
            counts = fewer
        return counts

    def _blocks(self) -> Iterator[np.ndarray]:
        with self._writing():
            self._rows.seek(0)
            for size in self._sizes:
                yield np.frombuffer(self._rows.read(size * _ROW.itemsize), _ROW)

    def _with_ids(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        with self._writing():
            self._ids.seek(0)
        for rows in self._blocks():
            yield rows, _text(self._ids), _text(self._ids)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self._folder}: no place for the rows while they are read ({error.strerror or error}); "
                "free space or choose another data_path"
            ) from error


class _Counts:
    """How many rows fell into each bucket, up to 255; a bucket counts a user or item at least as often as it is."""

    def __init__(self, per_user: int, per_item: int) -> None:
        self._least = {"user": min(per_user, _FULL), "item": min(per_item, _FULL)}
        self._table = {"user": np.zeros(USER_BUCKETS, np.uint8), "item": np.zeros(ITEM_BUCKETS, np.uint8)}

    def add(self, rows: np.ndarray) -> None:
        for name, table in self._table.items():
            buckets, n = np.unique(rows[name], return_counts=True)
            table[buckets] = np.minimum(table[buckets] + n, _FULL)

    def keep(self, rows: np.ndarray) -> np.ndarray:
        """``[n]`` bool: both buckets have enough rows. What one pass dropped, a later one drops too."""
        user, item = (table[rows[name]] >= self._least[name] for name, table in self._table.items())
        return user & item


def _buckets(ids: Sequence[str], n_buckets: int) -> np.ndarray:
    return pd.util.hash_array(np.array(ids, dtype=object), categorize=False) % np.uint64(n_buckets)


def _text(file: IO[bytes]) -> np.ndarray:
    """The next block of ids."""
    return np.array(np.load(file, allow_pickle=False).tobytes().decode("utf-8").split("\n"), dtype=object)


def _numbered(ids: np.ndarray, numbers: dict[str, int]) -> np.ndarray:
    """The number of each id, new ones numbered on."""
    codes, distinct = pd.factorize(ids)
    return np.array([numbers.setdefault(one, len(numbers)) for one in distinct], dtype=np.int64)[codes]


# ---- exact filters -----------------------------------------------------------------------------------------------


def in_order(rows: Rows, seed: int, one_file: bool) -> np.ndarray:
    """``[M]`` rows by (user, time); ties keep the order of their file, and two files are shuffled into each other.

    Were the file of A always first, the last of several interactions on one day, which is the one tested, would be of
    B whenever it can.

    Args:
        rows: as they were read: those of A, then those of B.
        seed: of the shuffle.
        one_file: both domains come from one file, whose order then counts.
    """
    if one_file:
        return np.lexsort((rows.line, rows.time, rows.user))
    order = np.lexsort((rows.time, rows.user))
    user, time, domain = rows.user[order], rows.time[order], rows.domain[order]
    group = np.cumsum(np.append(False, (user[1:] != user[:-1]) | (time[1:] != time[:-1])))[: len(order)]
    n, n_b = np.bincount(group), np.bincount(group, weights=domain)
    mixed = np.flatnonzero(((n_b > 0) & (n_b < n))[group])
    drawn = np.random.default_rng(seed).random(len(mixed))
    rising = drawn[np.lexsort((drawn, domain[mixed], group[mixed]))]  # within the rows of a group from one file
    order[mixed] = order[mixed][np.lexsort((rising, group[mixed]))]
    return order


def repeated(rows: Rows, same_time: bool) -> np.ndarray:
    """``[M]`` bool: an earlier row, or one before it in the order given, has the same user and item.

    Args:
        rows: in their final order.
        same_time: whether the time must be the same too.
    """
    pair = rows.user * len(rows.items) + rows.item
    table = {"pair": pair, "time": rows.time} if same_time else {"pair": pair}
    return pd.DataFrame(table).duplicated().to_numpy()


def first_domain(rows: Rows) -> tuple[np.ndarray, int]:
    """``[N]`` int8 domain of each item, A if it was read for both, and how many were."""
    in_b = np.zeros(len(rows.items), bool)
    in_b[rows.item[rows.domain == 1]] = True
    return np.where(rows.in_a, 0, 1).astype(np.int8), int((rows.in_a & in_b).sum())


def frequent(rows: Rows, item_domain: np.ndarray, k_core: int, min_history: int) -> np.ndarray:
    """``[M]`` bool: what stays when too rare items and users are dropped until none is left.

    Args:
        rows: in any order.
        item_domain: ``[N]`` 0 or 1.
        k_core: interactions that each item and each user's part of a domain must have.
        min_history: interactions that each user must have in both domains together.
    """
    part = 2 * rows.user + item_domain[rows.item]
    every = np.ones(len(rows.user), bool)
    return two_domains.frequent(every, (rows.item, k_core), (part, k_core), (rows.user, min_history))
