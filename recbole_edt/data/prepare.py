"""Raw sources to atomic files of two domains: reviews and purchases in the formats they are published in."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np

from recbole_edt.cleaning import sanitize
from recbole_edt.data import movielens, raw_rows
from recbole_edt.data.atomic import exact
from recbole_edt.data.raw_files import (
    Column,
    Tally,
    blocks,
    file_progress,
    is_no_time,
    plain_labels,
    plain_text,
    seconds,
)
from recbole_edt.data.sources import FORMATS, ITEM_COLUMNS, ROW_COLUMNS, TEXTS, PrepareConfig, start_of_day
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.files import is_current, read_json, sha256_of, write_json, write_manifest, write_safely

RULES_VERSION = 4
"""Raised whenever a reader turns the same source into other files."""
MANIFEST = "prepare.json"
_NO_TEXTS = ("",) * len(TEXTS)
_LATEST = 1e11
"""Seconds before or after 1970; a later time (the year 5138) is one in a smaller unit."""


# ---- the stage ---------------------------------------------------------------------------------------------------


def prepare(config: PrepareConfig, folder: Path, name: str, domains: Sequence[str] | None = None) -> None:
    """Write ``folder/name.inter`` and ``folder/name.item`` from the source that ``config`` names.

    Both files are written, or neither. The manifest ``folder/prepare.json`` holds the checksums of what was read and
    says what was dropped and why.

    Args:
        config: without faults.
        folder: of the data set; rows too many for memory wait there while they are read.
        name: of the data set.
        domains: their names as the configuration has them, to be checked before any work.

    Raises: ConfigError if the domains differ; DataError if files of that name are there that are not ours, if a file
        cannot be read, is damaged, does not fit, or nothing is left, or if there is no room to write.
    """
    outputs = [folder / f"{name}.inter", folder / f"{name}.item"]
    _check_ours(folder, name, outputs)
    if config.source != "ml-100k" and domains is not None and sorted(domains) != sorted(config.files):
        named = ", ".join(config.files)
        raise ConfigError(f"domains: {', '.join(domains)}, but prepare.files has {named}; name the same two")
    was_there = folder.exists()
    try:
        _make(config, folder, outputs)
    except BaseException:  # an interrupt, too
        with suppress(OSError):  # not made yet, or not empty
            if not any(path.exists() for path in outputs):
                (folder / MANIFEST).unlink(missing_ok=True)
            if not was_there:
                folder.rmdir()
        raise


def _make(config: PrepareConfig, folder: Path, outputs: Sequence[Path]) -> None:
    """Write both files and the manifest."""
    if config.source == "ml-100k":
        with write_safely(outputs[0]) as inter, write_safely(outputs[1]) as item:
            counts = movielens.write_films(inter, item)
            _claim(folder)
        settings: dict[str, Any] = {"source": config.source}
        write_manifest(folder / MANIFEST, "prepare", source_hash(config), settings, counts, outputs)
        return
    run = _Preparation(config)
    rows, item_domain = run.filtered(folder)
    texts = run.texts(rows, item_domain)
    with write_safely(outputs[0]) as inter, write_safely(outputs[1]) as item:
        _write_interactions(inter, rows)
        _write_items(item, rows, item_domain, texts, run.domains)
        _claim(folder)
    write_manifest(folder / MANIFEST, "prepare", source_hash(config), run.settings(), run.account(rows), outputs)


def _claim(folder: Path) -> None:
    """Say that the files are ours before they are there: what an interrupt leaves may then be made again."""
    if not (folder / MANIFEST).exists():
        write_json(folder / MANIFEST, {"stage": "prepare"})


def _check_ours(folder: Path, name: str, outputs: Sequence[Path]) -> None:
    """Raises: DataError if files are in the place of the outputs and no manifest says that ``prepare`` made them."""
    there = [str(path) for path in outputs if path.exists()]
    if there and not (folder / MANIFEST).exists():
        raise DataError(
            f"{', '.join(there)}: there already, and not made by prepare (no {MANIFEST} beside), which would overwrite "
            f"them; to use them as they are remove `prepare:` from dataset_configs/{name}.yaml, else choose another "
            "name for the data set or move them away"
        )


def is_made(config: PrepareConfig, folder: Path, name: str) -> bool:
    """Whether the files are those that ``prepare`` makes of these settings.

    Raw files that are no longer there do not count against it; one of another size or time is compared by checksum.

    Raises: DataError if the installed recbole lacks its data.
    """
    outputs = [folder / f"{name}.inter", folder / f"{name}.item"]
    if not is_current(folder / MANIFEST, source_hash(config), outputs):
        return False
    made = read_json(folder / MANIFEST)
    recorded = made["config"].get("inputs", [])
    now = [_renewed(_find(config, one["file"]), one) for one in recorded]
    if None in now:
        return False
    if now != recorded:  # not hashed again next time
        made["config"]["inputs"] = now
        with suppress(DataError):  # not ours to write
            write_json(folder / MANIFEST, made)
    return True


def manifest(folder: Path) -> dict[str, Any]:
    """What ``prepare`` wrote of itself into ``folder``; empty if it made no files there."""
    path = folder / MANIFEST
    return read_json(path) if path.is_file() else {}


def source_hash(config: PrepareConfig) -> str:
    """Hash of what the files of a source depend on, but for the content of raw files that are named.

    Raises: DataError if the installed recbole lacks its data.
    """
    if config.source == "ml-100k":
        return sha256_of(config.source, RULES_VERSION, *movielens.files())
    return sha256_of(RULES_VERSION, _plain(config), list(config.files))  # which domain is A counts


class _Preparation:
    """One run of ``prepare`` over raw files: what is read where, and what was dropped."""

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config
        form = FORMATS[config.source or ""]
        table = config.source == "table"
        self.columns = {**form.columns, **dict(config.columns)}
        self.item_columns = {**form.item_columns, **dict(config.item_columns)}
        if table:
            self.columns = {**{one: one for one in ROW_COLUMNS[:3]}, **self.columns}
            self.item_columns = {**{one: one for one in ITEM_COLUMNS[:-1]}, **self.item_columns}
        self.time_unit = config.time_unit if table else form.time_unit
        self.after = start_of_day(config.after) if config.after is not None else -np.inf
        self.before = start_of_day(config.before) if config.before is not None else np.inf
        self.domains: tuple[str, str] = tuple(config.files)
        self.one_file = len({files["interactions"] for files in config.files.values()}) == 1
        self.inputs = _inputs(config)
        self.tallies: dict[tuple[str, str], Tally] = {}  # by file, and what it was read for
        self.dropped: Counter[str] = Counter()
        self.counts: dict[str, Any] = {}
        self.stranger = ""  # the first name in a column of domains that is not a domain's
        self.in_both: set[str] = set()  # items listed under both domains, where one file has all interactions
        self.mine = self._items_of_domains() if "domain" in self.item_columns else None

    def settings(self) -> dict[str, Any]:
        """The configuration, and the raw files with what was read of them, for the manifest."""
        inputs = []
        for one in self.inputs:  # a file of interactions and items is told as the former
            tally = self.tallies.get((one["file"], "interactions")) or self.tallies[one["file"], "items"]
            first = {"first_unusable": tally.first} if tally.first else {}
            inputs.append({**one, "lines": tally.rows, "unusable": tally.bad, **first})
        return {**_plain(self.config), "domains": self.domains, "inputs": inputs}  # a manifest's keys are sorted

    def account(self, rows: raw_rows.Rows) -> dict[str, Any]:
        """What was read, dropped and kept, for the manifest."""
        return {**self.counts, "dropped": dict(self.dropped), "rows_kept": len(rows.user)}

    # -- interactions --

    def filtered(self, folder: Path) -> tuple[raw_rows.Rows, np.ndarray]:
        """Rows that are kept, in their final order, and the domain of each item."""
        on_disk = raw_rows.Spill(folder)
        try:
            for domain in (0, 1):
                self._read_rows(domain, on_disk)
            self.counts["rows_read"] = on_disk.n_rows + self.dropped.total()
            rows = on_disk.kept(self.config.k_core, self.config.min_history)
            self.dropped["too_rare"] = on_disk.n_rows - len(rows.user)
        finally:
            on_disk.close()
        return self._selected(rows)

    def _read_rows(self, domain: int, on_disk: raw_rows.Spill) -> None:
        """All usable rows of a domain.

        Raises: DataError if the file has none at all, usable or not.
        """
        name = self.domains[domain]
        tally = self._tally(name, "interactions")
        again = self.one_file and domain == 1  # what is of neither domain or of no use was counted for A
        for numbers, rows in blocks(tally, list(self.columns.values())):
            if not rows:
                continue
            values = dict(zip(self.columns, zip(*rows, strict=True), strict=True))
            users, items = _ids(values["user_id"]), _ids(values["item_id"])
            times = seconds(values["timestamp"], self.time_unit)
            usable = np.array([bool(user and item) for user, item in zip(users, items, strict=True)])
            for row in np.flatnonzero(~usable):
                which = self.columns["item_id" if users[row] else "user_id"]
                tally.fault(numbers[row], f"no {which if isinstance(which, str) else ' or '.join(which)}", rows[row])
            for row in np.flatnonzero(usable & ~(np.abs(times) <= _LATEST)):
                if not is_no_time(time := values["timestamp"][row]):
                    usable[row] = False
                    tally.fault(numbers[row], self._time_fault(times[row]), time)
            own, foreign = self._belongs(name, values.get("domain"), items)
            self.dropped["of_other_domains"] += 0 if again else int((usable & foreign).sum())
            usable &= own
            timed = usable & ~np.isnan(times)
            self.dropped["without_time"] += int((usable & ~timed).sum())
            kept = timed & (times >= self.after) & (times < self.before)
            self.dropped["outside_dates"] += int((timed & ~kept).sum())
            of_users, of_items = (list(compress(ids, kept)) for ids in (users, items))
            on_disk.append(of_users, of_items, times[kept], np.array(numbers, np.int64)[kept], domain)
        if not tally.rows:
            raise DataError(f"{tally.path} has no rows; is it the right file, whole?")
        self.dropped["unusable"] += 0 if again else tally.bad

    def _belongs(self, name: str, named: Sequence[Any] | None, items: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """``[n]`` bool: rows of the domain, and rows of neither of the two, or of the other in this one's own file."""
        if self.mine is not None:
            own = [item in self.mine[name] for item in items]
            known = [any(item in of for of in self.mine.values()) for item in items] if self.one_file else own
        elif named is not None:
            texts = [str(one).strip() for one in named]
            own, known = [text == name for text in texts], [text in self.domains for text in texts]
            self._note_stranger(texts)
        else:
            return np.ones(len(items), bool), np.zeros(len(items), bool)
        return np.array(own), ~np.array(known)

    def _items_of_domains(self) -> dict[str, set[str]]:
        """Items of each domain, where the files of items say of which they are."""
        found: dict[str, set[str]] = {domain: set() for domain in self.domains}
        columns = [self.item_columns["item_id"], self.item_columns["domain"]]
        names = {files["items"]: name for name, files in self.config.files.items()}
        for name in names.values():  # a file that both share is read once
            for _, rows in blocks(self._tally(name, "items"), columns):
                texts = [str(domain).strip() for _, domain in rows]
                self._note_stranger(texts)
                for item, text in zip(_ids([row[0] for row in rows]), texts, strict=True):
                    found.get(text, set()).add(item)
        if self.one_file:  # a row of an item of both would be read for each of the two
            first, second = found.values()
            self.in_both = first & second
            second -= self.in_both
        return found

    def _note_stranger(self, texts: Sequence[str]) -> None:
        self.stranger = self.stranger or next((text for text in texts if text not in self.domains), "")

    def _time_fault(self, time: float) -> str:
        """What is wrong with a value that is read as ``time``, which is NaN or beyond ``_LATEST``."""
        if np.isnan(time):
            years = "of the years 1678 to 2261, such as 2014-01-31,"
            return f"neither a number nor an ISO 8601 date {years} in {self.columns['timestamp']}"
        remedy = "; is prepare.time_unit right?" if self.config.source == "table" else ""
        return f"too far from 1970 for a time in {self.time_unit}{remedy}"

    def _selected(self, rows: raw_rows.Rows) -> tuple[raw_rows.Rows, np.ndarray]:
        """Rows without duplicates, rare items and users, and users who were not drawn."""
        config = self.config
        rows = rows.take(raw_rows.in_order(rows, config.seed, self.one_file))
        item_domain, n_in_both = raw_rows.first_domain(rows)
        self.counts["items_in_both"] = n_in_both + sum(item in self.in_both for item in rows.items)
        for reason, same_time in (("duplicate", True), ("repeated", False)):
            if same_time or config.repeats == "first":
                again = raw_rows.repeated(rows, same_time)
                self.dropped[reason] = int(again.sum())
                rows = rows.take(~again)
        kept = raw_rows.frequent(rows, item_domain, config.k_core, config.min_history)
        self.dropped["too_rare"] += int((~kept).sum())
        rows = rows.take(kept)
        if config.sample_users is not None:
            drawn = self._drawn(rows)
            self.dropped["not_sampled"] = int((~drawn).sum())
            rows = rows.take(drawn)
        self._check_left(rows, item_domain)
        return rows, item_domain

    def _drawn(self, rows: raw_rows.Rows) -> np.ndarray:
        """``[M]`` bool: rows of the users drawn by the seed, whatever order the files have."""
        users = np.unique(rows.user)
        users = users[np.argsort(rows.users[users])]
        rng = np.random.default_rng(self.config.seed)
        return np.isin(rows.user, rng.choice(users, min(self.config.sample_users or 0, len(users)), replace=False))

    def _check_left(self, rows: raw_rows.Rows, item_domain: np.ndarray) -> None:
        n = np.bincount(item_domain[rows.item], minlength=2)
        empty = [name for name, left in zip(self.domains, n, strict=True) if not left]
        if empty:
            names = f"; the column of domains also has {self.stranger[:60]!r}" if self.stranger else ""
            reasons = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in self.dropped.items() if n)
            raise DataError(
                f"no interaction of {' and '.join(empty)} is left of {self.counts['rows_read']:,} lines "
                f"(dropped: {reasons or 'none'}); check prepare.files and loosen the filters under prepare{names}"
            )

    # -- items --

    def texts(self, rows: raw_rows.Rows, item_domain: np.ndarray) -> dict[str, tuple[str, ...]]:
        """Title, brand, category and description of each kept item that has any, from the file of its own domain."""
        kept = np.unique(rows.item)
        domain_of = dict(zip(rows.items[kept], item_domain[kept].tolist(), strict=True))
        found = [self._read_items(domain, domain_of) for domain in (0, 1)]
        self._check_not_swapped(found, domain_of)
        own = {item: of for domain in (0, 1) for item, of in found[domain].items() if domain_of[item] == domain}
        self.counts["items_without_metadata"] = len(domain_of) - len(own)
        self.counts["items_without_title"] = len(domain_of) - sum(bool(texts[0]) for texts in own.values())
        return own

    def _read_items(self, domain: int, wanted: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
        """Texts of those wanted items that a file has; of several lines for one the first with a title."""
        name = self.domains[domain]
        if "items" not in self.config.files[name]:
            return {}
        names = {key: column for key, column in self.item_columns.items() if key != "domain"}
        column = names["item_id"]
        mapped = self.config.item_columns.values()
        optional = [names[key] for key in TEXTS if self.config.source != "douban" and names[key] not in mapped]
        found: dict[str, tuple[str, ...]] = {}
        tally = self._tally(name, "items")
        for _, rows in blocks(tally, list(names.values()), _mentions(column, wanted), optional):
            for row, item in zip(rows, _ids([row[0] for row in rows]), strict=True):
                if item in wanted and not (item in found and found[item][0]):
                    texts = self._cleaned(dict(zip(names, row, strict=True)))
                    if item not in found or texts[0]:
                        found[item] = texts
        return found

    def _cleaned(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        title, brand, description = (plain_text(record.get(key)) for key in ("title", "brand", "description"))
        if self.config.source != "table" and "getTime" in title:
            title = ""  # a script of the shop's page that some lines of Amazon's files have in place of a title
        return title, brand, plain_labels(record.get("category")), description

    def _check_not_swapped(self, found: Sequence[Mapping[str, Any]], domain_of: Mapping[str, int]) -> None:
        """Raises: DataError if a domain's items are described in the other domain's file rather than in its own."""
        for domain, name in enumerate(self.domains):
            own, other = (sum(domain_of[item] == domain for item in found[one]) for one in (domain, 1 - domain))
            if other > own:
                raise DataError(
                    f"{other:,} items of {name} are described in the items file of {self.domains[1 - domain]}, and "
                    f"{own:,} in its own: are the files of the two domains swapped? Correct prepare.files"
                )

    def _tally(self, name: str, key: str) -> Tally:
        file = self.config.files[name][key]
        self.tallies[file, key] = Tally(_find(self.config, file), self.config.max_bad_share)
        return self.tallies[file, key]


def _ids(values: Sequence[Any]) -> list[str]:
    """Ids as text without outer blanks, ``""`` for what cannot be one."""
    ids = [value.strip() if type(value) is str else _number_id(value) for value in values]
    if sanitize("".join(ids)) != "".join(ids):
        ids = [one if sanitize(one) == one else "" for one in ids]
    return ids


def _number_id(value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else ""


def _mentions(column: Column, wanted: Mapping[str, int]) -> Callable[[bytes], bool]:
    """Whether a line of items may describe a wanted one: parsing the others would take most of the time."""
    names = "|".join(map(re.escape, [column] if isinstance(column, str) else column))
    # No value is found where one has escapes or is a number: such a line is parsed.
    pattern = re.compile(rf"""["'](?:{names})["']\s*:\s*(?:"([^"\\]*)"|'([^'\\]*)')?""".encode())

    def mentions(line: bytes) -> bool:
        found = [(double or single).decode("utf-8", "replace").strip() for double, single in pattern.findall(line)]
        return not found or any(not item or item in wanted for item in found)

    return mentions


# ---- files -------------------------------------------------------------------------------------------------------


def _find(config: PrepareConfig, file: str) -> Path:
    """Path of a raw file; gzipped or not, whichever is there."""
    path = Path(config.folder).expanduser() / file
    other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    return other if other.is_file() and not path.is_file() else path


def _inputs(config: PrepareConfig) -> list[dict[str, Any]]:
    """Name, size, time and checksum of each raw file.

    Raises: DataError naming all that are missing, or two with the same content.
    """
    files = list(dict.fromkeys(str(file) for of in config.files.values() for file in of.values()))
    paths = [_find(config, file) for file in files]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"no such file: {', '.join(missing)}; fetch them (the head of the configuration says where) and name "
            "their folder with --prepare.folder=FOLDER"
        )
    found: list[dict[str, Any]] = []
    for file, path in zip(files, paths, strict=True):
        found.append({"file": file, **_stamp(path), "sha256": _checksum(path)})
    same: dict[str, list[str]] = {}
    for one in found:
        same.setdefault(one["sha256"], []).append(one["file"])
    copies = [" and ".join(names) for names in same.values() if len(names) > 1]
    if copies:
        raise DataError(f"{'; '.join(copies)} have the same content; fetch each domain's own file")
    return found


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _renewed(path: Path, recorded: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a raw file with its present time; None if its content is another."""
    if not path.is_file():
        return recorded
    now = {**recorded, **_stamp(path)}
    return now if now == recorded or _checksum(path) == recorded["sha256"] else None


def _checksum(path: Path) -> str:
    """SHA-256 of the file as it is, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with file_progress(path, "checksum") as (file, advance):
        while block := file.read(2**22):
            digest.update(block)
            advance()
    return digest.hexdigest()


def _plain(config: PrepareConfig) -> dict[str, Any]:
    """All that shapes the files, so not where the raw ones lie, in a form that JSON has."""
    values = {key: str(value) if isinstance(value, date) else value for key, value in asdict(config).items()}
    return {key: value for key, value in values.items() if key != "folder"}


def _write_interactions(path: Path, rows: raw_rows.Rows) -> None:
    """Rows as ``.inter``, a block at a time."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for start in range(0, len(rows.user), 2**16):
            block = rows.take(slice(start, start + 2**16))
            lines = zip(rows.users[block.user], rows.items[block.item], exact(block.time), strict=True)
            file.writelines(f"{user}\t{item}\t{time}\n" for user, item, time in lines)


def _write_items(
    path: Path,
    rows: raw_rows.Rows,
    item_domain: np.ndarray,
    texts: Mapping[str, tuple[str, ...]],
    domains: tuple[str, str],
) -> None:
    """Items with interactions as ``.item``, those of domain A first; a text that no item has gets no column."""
    kept = np.unique(rows.item)
    kept = kept[np.argsort(item_domain[kept], kind="stable")]
    items = rows.items[kept]
    columns = {"item_id:token": items, "domain:token": np.array(domains, object)[item_domain[kept]]}
    for name, texts_of in zip(TEXTS, zip(*(texts.get(item, _NO_TEXTS) for item in items), strict=True), strict=True):
        if name == "title" or any(texts_of):
            columns[f"{name}:token_seq"] = texts_of
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines("\t".join(row) + "\n" for row in chain([columns], zip(*columns.values(), strict=True)))


def losses(folder: Path) -> str:
    """What ``prepare`` could not use of the interactions of the data set in ``folder``, or ``""``."""
    made = read_json(folder / MANIFEST)
    dropped = made["counts"].get("dropped", {})
    parts = [f"{n:,} without a time"] if (n := dropped.get("without_time")) else []
    if n := dropped.get("unusable"):
        read = {of["interactions"] for of in made["config"]["files"].values()}
        bad = next((one for one in made["config"]["inputs"] if one["file"] in read and one["unusable"]), None)
        parts.append(f"{n:,} unusable" + (f" (first: {bad['file']}, {bad['first_unusable']})" if bad else ""))
    return f"dropped of {made['counts']['rows_read']:,} interactions read: {', '.join(parts)}" if parts else ""
