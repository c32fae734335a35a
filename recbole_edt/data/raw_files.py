"""Raw tables to blocks of rows: JSON lines, Python literals, CSV, TSV and Parquet, gzip or plain.

Nothing is ever whole in memory, nothing is evaluated, and a line that cannot be used is counted, not passed over.
"""

from __future__ import annotations

import ast
import csv
import gzip
import html
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain, compress, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pandas as pd
from tqdm import tqdm

from recbole_edt.cleaning import sanitize
from recbole_edt.errors import DataError

BLOCK_ROWS = 2**16
_CHUNK_BYTES = 2**22
MAX_LINE_BYTES = 2**26
"""A longer line means that the file has no lines at all."""
MAX_TEXT = 10_000
"""Characters of a text that are looked at."""
MANY = 10_000
"""Lines of which more than half are bad stop the reading before the end of the file."""
PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}

Column = str | Sequence[str]
"""Name of a column, or several of which the first that a file has counts."""
Block = tuple[list[int], list[tuple[Any, ...]]]
"""Numbers of lines (from 1) or rows, and the values of each in the order of the columns asked for."""


@dataclass
class Tally:
    """What was read of one file, and what could not be used."""

    path: Path
    max_bad_share: float = 0.0
    """Share of unusable lines above which reading stops with an error."""
    lines: int = 0
    rows: int = 0
    """Records on those lines, usable or not: a header and empty lines are none, one of a table may have many lines."""
    bad: int = 0
    first: str = ""
    """The first unusable line: its number, what is wrong, how it begins."""
    first_number: int = 0

    def fault(self, number: int, problem: str, content: Any, n_lines: int = 1) -> None:
        """Count a line that cannot be used, or several from this one on."""
        self.bad += n_lines
        if not self.first or number < self.first_number:  # a block is parsed whole before its values are looked at
            self.first_number = number
            self.first = f"line {number}: {problem}: {_excerpt(content)}"

    def check(self, done: bool = False) -> None:
        """Raises: DataError if too many lines were unusable; before the end of the file only if it is most of many."""
        limit = self.max_bad_share if done else max(self.max_bad_share, 0.5)
        if self.bad > limit * self.rows and (done or self.rows >= MANY):
            raise DataError(
                f"{self.path}: {self.bad:,} of the {self.rows:,} lines read are unusable, more than the share "
                f"{self.max_bad_share:g} of prepare.max_bad_share; {self.first}; is it the right file, whole?"
            )


def blocks(
    tally: Tally,
    columns: Sequence[Column],
    wanted: Callable[[bytes], bool] | None = None,
    optional: Collection[Column] = (),
) -> Iterator[Block]:
    """Rows of a file in blocks, each the values of ``columns``; None where a JSON line lacks one.

    The ending says what the file is: ``.json`` and ``.jsonl`` (JSON or a Python literal on each line), ``.csv``,
    ``.tsv`` and ``.txt`` (the header line shows the separator), ``.parquet``; all but the last also gzipped.

    Args:
        tally: of the file; counts its lines.
        columns: their names in the file.
        wanted: of a JSON line, whether it is worth parsing; others are counted and left out.
        optional: columns that a file may lack; their values are then None. JSON lacks a column that no line has.

    Raises: DataError if the file is missing, damaged, cut off, lacks a column, or has too many unusable lines.
    """
    kind = _kind(tally.path)
    if kind in (".json", ".jsonl"):
        yield from _json_blocks(tally, columns, wanted, optional)
    elif kind == ".parquet":
        yield from _parquet_blocks(tally, columns, optional)
    else:
        yield from _delimited_blocks(tally, columns, optional)
    tally.check(done=True)


def seconds(values: Sequence[Any], unit: str = "s") -> np.ndarray:
    """``[n]`` float64 seconds since 1970 (UTC), NaN for what is no time.

    Numbers, also as text, are in ``unit``; any other text is a date, or date and time, of ISO 8601, of the years 1678
    to 2261.
    """
    try:
        times = np.array(values, dtype=np.float64)
        if times.ndim != 1:
            raise ValueError("lists are no times")
        texts = np.empty(0, np.int64)
    except (TypeError, ValueError, OverflowError):
        times = np.array([as_number(value) for value in values])
        texts = np.flatnonzero(np.isnan(times))
    times[times == _NO_TIME] = np.nan
    times /= PER_SECOND[unit]
    if len(texts):
        times[texts] = _dates([values[row] for row in texts])
    times[~np.isfinite(times)] = np.nan
    return times


_NO_TIME = -(2.0**63)  # pandas' NaT as a number


def is_no_time(value: Any) -> bool:
    """Whether a table says by this value that there is no time."""
    if isinstance(value, str) and value.strip().lower() in ("", "nan", "nat", "none", "null"):
        return True
    return value is None or value != value or as_number(value) == _NO_TIME


# What nanoseconds can count: 9999-12-31 is no date to pandas 2, and one that pandas 3 cannot subtract from.
_EARLIEST, _LATEST = pd.Timestamp.min.tz_localize("UTC"), pd.Timestamp.max.tz_localize("UTC")
_ZONE = re.compile(r"(?:Z|\d[T ]\d[^+-]*[+-][\d:]+)\s*$")


def _dates(values: Sequence[Any]) -> np.ndarray:
    """Seconds of ISO dates; one without a time zone is UTC."""
    # pandas takes a text without a zone to have that of a text before it, so the two kinds are parsed apart.
    texts = pd.Series(values, dtype=object)
    zoned = np.array([isinstance(value, str) and _ZONE.search(value) is not None for value in values], dtype=bool)
    found = np.empty(len(texts))
    for kind in (zoned, ~zoned):
        dates = pd.to_datetime(texts[kind], utc=True, errors="coerce", format="ISO8601")
        dates = dates.where(dates.between(_EARLIEST, _LATEST))
        found[kind] = ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta("1s")).to_numpy(np.float64)
    return found


_TAG = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL | re.IGNORECASE)


def plain_text(value: Any) -> str:
    """One line of text without HTML: entities resolved, tags out, white space single.

    Lists become their distinct texts, in order; what is neither text nor number becomes nothing.
    """
    texts = dict.fromkeys(filter(None, map(_plain, _flat(value))))
    return " ".join(texts)


def plain_labels(value: Any) -> str:
    """Distinct labels of a list, or of the first of several lists, separated by commas."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return ", ".join(dict.fromkeys(filter(None, map(_plain, _flat(value)))))


def _plain(text: str) -> str:
    text = html.unescape(html.unescape(text[:MAX_TEXT]))  # shops escape what is escaped already
    return " ".join(sanitize(_TAG.sub(" ", text)).split())


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:  # NaN is no text
        yield str(value)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _flat(one)


def as_number(value: Any) -> float:
    """A number, or a text that Python reads as one, as float; NaN for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _excerpt(content: Any) -> str:
    text = repr(content.decode("utf-8", "replace") if isinstance(content, bytes) else content)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- files -------------------------------------------------------------------------------------------------------


def _kind(path: Path) -> str:
    """The ending that says what a file is."""
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind not in (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet"):
        raise DataError(f"{path}: the ending says no format; known are .json, .jsonl, .csv, .tsv, .txt and .parquet")
    return kind


@contextmanager
def file_progress(path: Path, doing: str) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """The file as it is, and what moves a progress bar to where it has been read.

    Raises: DataError if it is missing or cannot be read.
    """
    try:
        with (
            path.open("rb") as file,
            tqdm(
                total=path.stat().st_size,
                desc=f"{doing} {path.name}",
                unit="B",
                unit_scale=True,
                delay=1,
                leave=False,
                disable=None,
            ) as bar,
        ):

            def advance() -> None:
                bar.update(file.tell() - bar.n)

            yield file, advance
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the folder and the name") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """The file's content, unzipped if it is gzip whatever its ending, and what moves the progress bar."""
    with file_progress(path, "reading") as (raw, advance):
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        content: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
        try:
            yield content, advance
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: the gzip file is cut off or damaged ({error}); fetch it again") from error


def _lines(path: Path) -> Iterator[list[bytes]]:
    """Lines without their ends, some megabytes at a time."""
    with _opened(path) as (file, advance):
        rest = b""
        while chunk := file.read(_CHUNK_BYTES):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if len(rest) > MAX_LINE_BYTES:
                raise _too_long(path)
            yield lines
            advance()
        if rest:
            yield [rest]


def _too_long(path: Path) -> DataError:
    return DataError(f"{path}: a line of more than {MAX_LINE_BYTES:,} bytes; expected one record a line")


# ---- JSON lines --------------------------------------------------------------------------------------------------


def _json_blocks(
    tally: Tally, columns: Sequence[Column], wanted: Callable[[bytes], bool] | None, optional: Collection[Column]
) -> Iterator[Block]:
    names = [name for column in columns for name in _names(column)]
    unmet = [_names(column) for column in columns if column not in optional]
    for chunk in _lines(tally.path):
        filled = [bool(line.strip()) for line in chunk]
        tally.rows += sum(filled)
        unmet = _unmet(unmet, compress(chunk, filled))
        if wanted is not None:
            filled = [there and wanted(line) for line, there in zip(chunk, filled, strict=True)]
        numbers = list(compress(range(tally.lines + 1, tally.lines + len(chunk) + 1), filled))
        tally.lines += len(chunk)
        numbers, rows = _json_rows(tally, numbers, list(compress(chunk, filled)), names)
        tally.check()
        yield numbers, rows if len(names) == len(columns) else [_chosen(row, columns) for row in rows]
    if unmet and tally.rows > tally.bad:
        raise DataError(
            f"{tally.path}: no line has {', '.join(map(_either, unmet))}; "
            "correct prepare.columns or prepare.item_columns"
        )


def _unmet(unmet: list[list[str]], lines: Iterable[bytes]) -> list[list[str]]:
    """Those columns, each with its alternatives, that none of the lines has."""
    for line in lines:
        if not unmet:
            break
        with suppress(ValueError):
            record = _record(line)
            unmet = [names for names in unmet if not any(name in record for name in names)]
    return unmet


def _json_rows(tally: Tally, numbers: list[int], lines: list[bytes], names: list[str]) -> Block:
    """The fields of the object on each line; a line without an object is counted as a fault."""
    try:
        rows = [tuple(map(orjson.loads(line).get, names)) for line in lines]
        floats = [abs(value) for value in chain.from_iterable(rows) if type(value) is float]
        if max(floats, default=0) < 2**63:  # else one may be a longer whole number, which orjson rounds
            return numbers, rows
    except (ValueError, AttributeError):  # no JSON, JSON that only Python reads, such as NaN, or no object
        pass
    good, rows = [], []
    for number, line in zip(numbers, lines, strict=True):
        try:
            rows.append(tuple(map(_record(line).get, names)))
            good.append(number)
        except ValueError as error:
            tally.fault(number, str(error), line)
    return good, rows


def _chosen(row: Sequence[Any], columns: Sequence[Column]) -> tuple[Any, ...]:
    """A value for each column; of alternatives the first that holds any text or number."""
    values = iter(row)
    found = []
    for column in columns:
        own = list(islice(values, len(_names(column))))
        found.append(own[0] if len(own) == 1 else next((one for one in own if any(map(_plain, _flat(one)))), None))
    return tuple(found)


def _names(column: Column) -> list[str]:
    return [column] if isinstance(column, str) else list(column)


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _record(line: bytes) -> dict[str, Any]:
    """A JSON object, or the Python literal of a dict that the older files have; nothing is evaluated.

    Raises: ValueError saying what is wrong.
    """
    try:
        text = line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ValueError(_NOT_UTF8) from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            record = ast.literal_eval(text.strip())
            str(record)  # a number in hexadecimal may be one that Python refuses to write
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise ValueError(f"neither JSON nor a Python literal ({reason})") from None
    if not isinstance(record, dict):
        raise ValueError("expected an object with named fields")
    return record


# ---- tables ------------------------------------------------------------------------------------------------------


def _positions(
    path: Path, header: Sequence[str], columns: Sequence[Column], optional: Collection[Column]
) -> list[int | None]:
    """Where the columns stand; of alternatives the first that is there, None for an optional one that is not.

    Raises: DataError naming every other column that is missing, or one that is there twice.
    """
    found: list[int | None] = []
    missing = []
    for column in columns:
        names = _names(column)
        name = next((name for name in names if name in header), None)
        if name is None and column not in optional:
            missing.append(_either(names))
        if name is not None and header.count(name) > 1:
            raise DataError(f"{path}: the header names {name!r} twice; rename or remove one")
        found.append(None if name is None else header.index(name))
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)} (found: {', '.join(map(repr, header))}); "
            "correct prepare.columns or prepare.item_columns"
        )
    return found


_OPEN_QUOTE = "is a quotation mark opened there and not closed?"
_NOT_UTF8 = "not UTF-8; save the file as UTF-8"
_DAMAGE = re.compile(r"[\udc80-\udcff]")
"""What Python makes of a byte that is not UTF-8: half of a surrogate pair."""


def _is_damaged(text: str) -> bool:
    return not text.isascii() and _DAMAGE.search(text) is not None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def separator_of(header: str) -> str:
    """What stands between the names of a header line: tab, comma, semicolon or bar, whichever is there most."""
    return max("\t,;|", key=header.count)


def _delimited_blocks(tally: Tally, columns: Sequence[Column], optional: Collection[Column]) -> Iterator[Block]:
    with _opened(tally.path) as (file, advance):
        text = TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        lines = _text_lines(tally.path, text)
        first = next(lines, "")
        separator = separator_of(first)
        if _is_damaged(first):
            raise DataError(f"{tally.path}, line 1: {_NOT_UTF8}: {_excerpt(_bytes(first))}")
        if not first.strip():
            what = "the first line is empty; expected the names of columns" if first else "the file is empty"
            raise DataError(f"{tally.path}: {what}")
        if separator not in first and len(columns) > 1 + len(optional):
            raise DataError(
                f"{tally.path}: the first line has no tab, comma, semicolon or bar between the names of columns: "
                f"{_excerpt(first.strip())}"
            )
        header = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        places = _positions(tally.path, header, columns, optional)
        tally.lines = 1
        rows = _csv_rows(tally, csv.reader(lines, delimiter=separator, strict=True), len(header))
        while block := list(islice(rows, BLOCK_ROWS)):
            values = [tuple(None if place is None else row[place] for place in places) for _, row in block]
            yield [number for number, _ in block], values
            tally.check()
            advance()


def _text_lines(path: Path, text: TextIOWrapper) -> Iterator[str]:
    """Lines with their ends."""
    while line := text.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES:
            raise _too_long(path)
        yield line


def _csv_rows(tally: Tally, reader: Any, width: int) -> Iterator[tuple[int, list[str]]]:
    """Rows of UTF-8 with as many fields as the header, and where they begin; a stray quote costs all it took in."""
    while True:
        first = 2 + reader.line_num  # the header is line 1
        fault: tuple[str, Any] | None = None
        row: list[str] = []
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"{error}; {_OPEN_QUOTE}", ""
        tally.lines = 1 + reader.line_num
        n_lines = max(tally.lines - first + 1, 1)
        if row:
            fault = _row_fault(row, n_lines, reader.dialect.delimiter, width)
        if fault:
            tally.rows += n_lines
            tally.fault(first, *fault, n_lines)
        elif row:
            tally.rows += 1
            yield first, row


def _row_fault(row: list[str], n_lines: int, separator: str, width: int) -> tuple[str, Any] | None:
    """What is wrong with a row, and what to show of it."""
    if _is_damaged(text := " ".join(row)):
        return _NOT_UTF8, _bytes(text)
    if len(row) != width:
        return f"{len(row)} fields where the header has {width}" + f"; {_OPEN_QUOTE}" * (n_lines > 1), row
    if n_lines > 2 and _holds_rows(row, separator):
        return f"a field of {n_lines:,} lines that look like rows; {_OPEN_QUOTE}", row
    return None


def _holds_rows(row: list[str], separator: str) -> bool:
    """Whether nearly all lines of a row would be rows by themselves; in a text of several lines they would not."""
    lines = separator.join(row).splitlines()
    # In a sentence a blank follows the comma; in a table in which a quotation mark opens a field it does not.
    whole = sum(line.count(separator) == len(row) - 1 and f"{separator} " not in line for line in lines)
    return len(row) > 1 and whole >= 0.9 * len(lines)


def _parquet_blocks(tally: Tally, columns: Sequence[Column], optional: Collection[Column]) -> Iterator[Block]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f'{tally.path}: Parquet needs pyarrow; pip install "recbole_edt[parquet]"') from None
    try:
        with file_progress(tally.path, "reading") as (content, advance), pq.ParquetFile(content) as file:
            header = file.schema_arrow.names
            places = _positions(tally.path, header, columns, optional)
            names = [None if place is None else header[place] for place in places]
            there = list(dict.fromkeys(name for name in names if name is not None))
            for batch in file.iter_batches(BLOCK_ROWS, columns=there):
                empty = [None] * batch.num_rows
                values = [empty if name is None else batch.column(name).to_pylist() for name in names]
                numbers = list(range(tally.lines + 1, tally.lines + batch.num_rows + 1))
                tally.lines += batch.num_rows
                tally.rows += batch.num_rows
                yield numbers, list(zip(*values, strict=True))
                advance()
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{tally.path}: no readable Parquet file ({error}); fetch or write it again") from error
