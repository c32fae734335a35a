"""RecBole's atomic files of two domains, checked on the way in and written exactly on the way out.

An atomic file is tab-separated UTF-8 text whose header names each column as ``name:type``. Two domains share
one ``NAME.inter`` (user_id, item_id, timestamp) and one ``NAME.item`` (item_id, domain, texts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt.cleaning import UNWRITABLE, sanitize
from recbole_edt.data.two_domains import (
    OVERALL,
    TwoDomainData,
    check_both_domains_occur,
    k_core_of,
    offsets_of,
    quoted_value,
)
from recbole_edt.errors import DataError
from recbole_edt.files import read_bytes, write_text

_NOT_SEPARATORS = bytes(set(range(256)) - set(b"\t\n"))
FIELD_TYPES = ("token", "token_seq", "float", "float_seq")
_NOT_FIELDS = ("item_id", "domain", "virtual")


def read(folder: str | Path, name: str, domains: Sequence[str] | None = None, k_core: int = 0) -> TwoDomainData:
    """Read and check ``folder/name.inter`` and ``folder/name.item``.

    Rows are sorted by (user, time) in float64; equal times keep the order of the file. Other columns of
    ``.inter`` are ignored. Items without interactions stay in the catalogue.

    Args:
        folder: where the two files are.
        name: their common name.
        domains: names of A and B; by default in order of first appearance in ``.item``.
        k_core: above 0, items with fewer raw interactions and each user's part of a domain with fewer are
            dropped, again and again until none is left. Generated rows never count; one stays while its user
            still has a raw row and its item is virtual or still there.

    Raises: DataError with file, line, column and remedy for everything wrong with the files.
    """
    inter_path, item_path = Path(folder) / f"{name}.inter", Path(folder) / f"{name}.item"
    catalogue, types = read_table(item_path)
    _check_columns(item_path, types, ("item_id", "domain"))
    _check_filled(item_path, catalogue, ("item_id",))
    _check_no_item_twice(item_path, catalogue["item_id"])
    rows = _read_interactions(inter_path)
    _check_filled(inter_path, rows, ("user_id", "item_id"))

    names = _domain_names(item_path, catalogue["domain"], domains)
    fields = catalogue.drop(columns=[column for column in _NOT_FIELDS if column in catalogue])
    user, users = pd.factorize(rows["user_id"])
    item = _item_index(inter_path, rows["item_id"], catalogue["item_id"], item_path)
    time = _numbers(inter_path, rows, "timestamp")
    generated = _flags(inter_path, rows, "generated")
    virtual = _flags(item_path, catalogue, "virtual")
    _check_virtual_items_are_generated(inter_path, virtual[item] & ~generated)

    order = _order(user, time)
    data = TwoDomainData(
        name=name,
        users=np.asarray(users, dtype=object),
        items=catalogue["item_id"].to_numpy(),
        domains=names,
        item_domain=(catalogue["domain"] == names[1]).to_numpy().astype(np.int8),
        item_fields=fields,
        virtual=virtual,
        user=user[order].astype(np.int64),
        item=item[order],
        time=time[order],
        generated=generated[order],
        offsets=offsets_of(user, len(users)),
        item_field_types={column: types[column] for column in types if column in fields},
    )
    check_both_domains_occur(data, f"{inter_path}: ", "; check the column 'domain' of the .item file")
    return k_core_of(data, k_core) if k_core > 0 else data


def write(data: TwoDomainData, folder: str | Path, name: str) -> None:
    """Write ``folder/name.inter`` and ``folder/name.item``; ``read`` gives the same data back.

    Rows keep the order of the arrays, virtual items come last in ``.item``, numbers keep every digit. Texts
    pass through ``sanitize``. Users without a row leave no trace in the files.

    Raises: DataError if an id cannot be written or a file cannot.
    """
    for column, tokens in (("user_id", data.users), ("item_id", data.items), ("domain", data.domains)):
        _check_writable(column, tokens)
    write_table(Path(folder) / f"{name}.item", _item_columns(data))
    write_table(Path(folder) / f"{name}.inter", _interaction_columns(data))


def read_table(path: str | Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read any atomic file as text: a frame with plain column names, and the type of each column.

    Nothing is unquoted, trimmed or taken for a missing value: a title ``NA`` stays ``"NA"``. Windows line
    ends, a byte order mark and blank lines at the end are accepted. Row ``i`` of the frame is line ``i + 2``.

    Raises: DataError if the file is missing, empty, not UTF-8, or not a table with a ``name:type`` header.
    """
    content, types = _checked_content(Path(path))
    return _parsed(content, types, dict.fromkeys(types, object)), types


def write_table(path: str | Path, columns: Mapping[str, Iterable[str]]) -> None:
    """Write any atomic file from its columns, which stand under their ``name:type`` header.

    Raises: DataError if a text does not fit a field (pass it through ``sanitize`` first) or the file cannot
    be written.
    """
    lines = ["\t".join(columns), *map("\t".join, zip(*columns.values(), strict=True))]
    text = "\n".join(lines) + "\n"
    if text.count("\n") != len(lines) or text.count("\t") != len(lines) * (len(columns) - 1):
        raise DataError(f"{path}: a text has a tab or line end; pass it through sanitize() before writing")
    write_text(path, text)


def exact(values: np.ndarray) -> list[str]:
    """Numbers as text that reads back to the same float64; whole numbers without a decimal point."""
    return [str(int(value)) if value.is_integer() else repr(value) for value in values.tolist()]


# ---- reading -----------------------------------------------------------------------------------------------


def _fault(path: Path, problem: str, row: int | None = None, column: str | None = None) -> DataError:
    """A DataError that says where: file, line of the ``row``-th row below the header, column."""
    where = str(path)
    where += "" if row is None else f", line {row + 2}"
    where += "" if column is None else f", column '{column}'"
    return DataError(f"{where}: {problem}")


def _checked_content(path: Path) -> tuple[bytes, dict[str, str]]:
    """Contents of a file that is a table, and the names and types of its columns."""
    content = _clean_bytes(path)
    header, _, _ = content.partition(b"\n")
    types = _column_types(path, header.decode("utf-8"))
    _check_field_counts(path, content, list(types))
    return content, types


def _parsed(content: bytes, types: Mapping[str, str], kinds: Mapping[str, Any]) -> pd.DataFrame:
    """The columns named in ``kinds``, each as that dtype of pandas."""
    return pd.read_csv(
        BytesIO(content),
        sep="\t",
        header=None,
        names=list(types),
        usecols=list(kinds),
        skiprows=1,
        dtype=dict(kinds),
        na_filter=False,
        quoting=3,  # csv.QUOTE_NONE
        lineterminator="\n",
        skip_blank_lines=False,
        engine="c",
        encoding="utf-8",
        float_precision="round_trip",  # as Python reads numbers
        low_memory=False,  # else categories are merged chunk by chunk, which takes minutes
    )


# From pandas 3 on, categories that look like numbers become numbers: 02 and 2 would be one item.
_ID_TYPE = "category" if int(pd.__version__.partition(".")[0]) < 3 else "str"


def _read_interactions(path: Path) -> pd.DataFrame:
    """The columns of ``.inter`` that count: ids as categories, so that no text is held twice, and numbers."""
    content, types = _checked_content(path)
    _check_columns(path, types, ("user_id", "item_id", "timestamp"))
    ids = dict.fromkeys(("user_id", "item_id"), _ID_TYPE)
    as_categories = dict.fromkeys(ids, "category")
    numbers = [column for column in ("timestamp", "generated") if column in types]
    try:
        rows = _parsed(content, types, {**ids, **dict.fromkeys(numbers, np.float64)})
        if np.isfinite(rows[numbers].to_numpy()).all():
            return rows.astype(as_categories)
    except ValueError:
        pass
    rows = _parsed(content, types, {**ids, **dict.fromkeys(numbers, object)})  # as text, to name what is wrong
    return rows.astype(as_categories)


def _clean_bytes(path: Path) -> bytes:
    """Contents as UTF-8 without byte order mark, with ``\\n`` line ends and none at the end."""
    content = read_bytes(path)
    _check_encoding(path, content)
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").rstrip(b"\r\n")
    if not content:
        raise _fault(path, "the file is empty; expected a header such as 'item_id:token' and rows below it")
    return content


def _check_encoding(path: Path, content: bytes) -> None:
    position = content.find(b"\0")
    problem = "a NUL byte; the file is damaged or not text, write it again"
    try:
        if not content.isascii():
            content.decode("utf-8")
    except UnicodeDecodeError as error:
        position = error.start
        problem = f"byte 0x{content[position]:02x} is not UTF-8; convert the file to UTF-8"
    if position >= 0:
        raise _fault(path, problem, row=content.count(b"\n", 0, position) - 1)


def _column_types(path: Path, header: str) -> dict[str, str]:
    """Names and types of a header line."""
    types: dict[str, str] = {}
    for column in header.split("\t"):
        name, _, kind = column.partition(":")
        if not name or kind not in FIELD_TYPES:
            expected = "expected tab-separated columns as 'name:type', type one of " + ", ".join(FIELD_TYPES)
            raise _fault(path, f"the header has {quoted_value(column)}; {expected}", row=-1)
        if name in types:
            raise _fault(path, "the header names this column twice; rename or remove one", -1, name)
        types[name] = kind
    return types


def _check_field_counts(path: Path, content: bytes, columns: list[str]) -> None:
    """Every line has as many tabs as the header, and there is at least one row."""
    separators = content.translate(None, _NOT_SEPARATORS) + b"\n"
    line = b"\t" * (len(columns) - 1) + b"\n"
    if len(separators) > len(line) and separators == line * (len(separators) // len(line)):
        return
    characters = np.frombuffer(content, dtype=np.uint8)
    line_ends = np.append(np.flatnonzero(characters == ord("\n")), len(characters))
    if len(line_ends) == 1:
        raise _fault(path, "there is a header but no row below it; write the data again")
    tabs_before = np.searchsorted(np.flatnonzero(characters == ord("\t")), line_ends)
    n_fields = np.diff(tabs_before, prepend=0) + 1
    wrong = np.flatnonzero(n_fields != len(columns))
    if len(wrong):
        expected = f"expected {len(columns)} ({', '.join(columns)})"
        problem = f"{n_fields[wrong[0]]} tab-separated field(s), {expected}{_others(len(wrong), 'line')}"
        remedy = "separate fields by one tab and keep each row on one line"
        raise _fault(path, f"{problem}; {remedy}", wrong[0] - 1)


def _check_columns(path: Path, found: Mapping[str, str], needed: Sequence[str]) -> None:
    for column in needed:
        if column not in found:
            listed = ", ".join(found)
            raise _fault(path, f"no column '{column}' (found: {listed}); add it or rename one in the header")


def _check_filled(path: Path, table: pd.DataFrame, ids: Sequence[str]) -> None:
    """No id is empty."""
    for column in ids:
        empty = (table[column] == "").to_numpy()
        _check_rows(path, empty, column, "the id is empty", "fill it in or remove the row")


def _check_rows(path: Path, wrong: np.ndarray, column: str, problem: str, remedy: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise _fault(path, f"{problem}{_others(len(rows), 'row')}; {remedy}", rows[0], column)


def _check_no_item_twice(path: Path, tokens: pd.Series) -> None:
    repeated = np.flatnonzero(tokens.duplicated())
    if len(repeated):
        token = tokens[repeated[0]]
        first = np.flatnonzero(tokens == token)[0]
        problem = f"item {quoted_value(token)} is already on line {first + 2}{_others(len(repeated), 'row')}"
        raise _fault(path, f"{problem}; keep one row per item", repeated[0], "item_id")


def _domain_names(path: Path, domain: pd.Series, wanted: Sequence[str] | None) -> tuple[str, str]:
    empty = (domain == "").to_numpy()
    _check_rows(path, empty, "domain", "the domain is empty", "name one of the two domains")
    found = list(pd.unique(domain))
    if len(found) != 2:
        listed = ", ".join(map(quoted_value, found[:10])) + (", ..." if len(found) > 10 else "")
        problem = f"{len(found)} domain(s) found ({listed}), exactly two are needed"
        raise _fault(path, f"{problem}; correct the names or keep the items of two domains", column="domain")
    if OVERALL in found:
        problem = f"a domain is called {quoted_value(OVERALL)}, which is the name for all users in every table"
        raise _fault(path, f"{problem}; give it another name", column="domain")
    if wanted is not None and sorted(wanted) != sorted(found):
        asked = ", ".join(map(quoted_value, wanted))
        problem = f"the domains are {quoted_value(found[0])} and {quoted_value(found[1])}, asked for: {asked}"
        raise _fault(path, f"{problem}; correct the setting 'domains'", column="domain")
    first, second = found if wanted is None else wanted
    return first, second


def _item_index(path: Path, tokens: pd.Series, catalogue: pd.Series, item_path: Path) -> np.ndarray:
    """``[M]`` int64 position of each interaction's item in the catalogue."""
    position = pd.Index(catalogue, dtype=object).get_indexer(np.asarray(tokens.cat.categories, dtype=object))
    item = position.astype(np.int64)[tokens.cat.codes]
    unknown = np.flatnonzero(item < 0)
    if len(unknown):
        n_items = tokens[unknown].nunique()
        problem = f"item {quoted_value(tokens[unknown[0]])} is not in {item_path.name}"
        extent = f"{len(unknown)} row(s) with {n_items} such item(s)"
        raise _fault(path, f"{problem} ({extent}); add the items or remove the rows", unknown[0], "item_id")
    return item


def _numbers(path: Path, table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64, every digit kept; each must be finite."""
    texts = table[column].to_numpy()
    if texts.dtype == np.float64:
        return texts  # parsed and found finite
    try:
        values = texts.astype(np.float64)
    except ValueError:
        values = np.array([_float_or_nan(text) for text in texts])
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        problem = f"{quoted_value(texts[wrong[0]])} is not a finite number{_others(len(wrong), 'row')}"
        raise _fault(path, f"{problem}; correct it or remove the row", wrong[0], column)
    return values


def _float_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _flags(path: Path, table: pd.DataFrame, column: str) -> np.ndarray:
    """A column of 0 and 1 as bool, all false where the file has none."""
    if column not in table:
        return np.zeros(len(table), dtype=bool)
    values = _numbers(path, table, column)
    neither = (values != 0) & (values != 1)
    _check_rows(path, neither, column, "neither 0 nor 1", "write 1 for a marked row, else 0")
    return values == 1


def _order(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Rows by (user, time); stable, so that ties keep the order of the file."""
    rank, times = pd.factorize(time, sort=True)
    return np.argsort(user * len(times) + rank, kind="stable")  # one key sorts in half the time of two


def _check_virtual_items_are_generated(path: Path, wrong: np.ndarray) -> None:
    remedy = "mark the row 1 in 'generated' or the item 0 in 'virtual'"
    _check_rows(path, wrong, "item_id", "a raw interaction with a virtual item", remedy)


def _others(n: int, what: str) -> str:
    return f" ({n} such {what}s)" if n > 1 else ""


# ---- writing -----------------------------------------------------------------------------------------------


def _item_columns(data: TwoDomainData) -> dict[str, Iterable[str]]:
    """Columns of ``.item``, real items first."""
    order = np.argsort(data.virtual, kind="stable")
    columns: dict[str, Iterable[str]] = {
        "item_id:token": data.items[order],
        "domain:token": np.array(data.domains, dtype=object)[data.item_domain[order]],
    }
    for name in data.item_fields:
        texts = data.item_fields[name].to_numpy()[order]
        columns[f"{name}:{data.item_field_types.get(str(name), 'token_seq')}"] = map(sanitize, texts)
    if data.virtual.any():
        columns["virtual:float"] = np.where(data.virtual[order], "1", "0")
    return columns


def _interaction_columns(data: TwoDomainData) -> dict[str, Iterable[str]]:
    columns: dict[str, Iterable[str]] = {
        "user_id:token": data.users[data.user],
        "item_id:token": data.items[data.item],
        "timestamp:float": exact(data.time),
    }
    if data.generated.any():
        columns["generated:float"] = np.where(data.generated, "1", "0")
    return columns


def _check_writable(column: str, tokens: Iterable[str]) -> None:
    for token in tokens:
        if not token or UNWRITABLE.search(token):
            problem = "is empty or has control characters"
            raise DataError(f"{column} {quoted_value(token)} {problem} and cannot be written; rename it")
