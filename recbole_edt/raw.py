"""Raw sources to atomic files of two domains: reviews and purchases in the formats they are published in."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from recbole_edt import movielens, spill
from recbole_edt.atomic import TwoDomainData, exact, keep_rows, sanitize
from recbole_edt.errors import ConfigError, DataError, choice_faults, whole_number_faults
from recbole_edt.evaluation import OVERALL
from recbole_edt.files import is_current, read_json, sha256_of, write_json, write_manifest, write_safely
from recbole_edt.readers import (
    PER_SECOND,
    Column,
    Tally,
    blocks,
    file_progress,
    is_no_time,
    plain_labels,
    plain_text,
    seconds,
)
from recbole_edt.split import domain_ratio, training_rows

RULES_VERSION = 4
"""Raised whenever a reader turns the same source into other files."""
MANIFEST = "prepare.json"
TEXTS = ("title", "brand", "category", "description")
_ROW_COLUMNS = ("user_id", "item_id", "timestamp", "domain")
_ITEM_COLUMNS = ("item_id", *TEXTS, "domain")
_FILE_KEYS = ({"interactions"}, {"interactions", "items"})
_LATEST = 1e11
"""Seconds before or after 1970; a later time (the year 5138) is one in a smaller unit."""


@dataclass(frozen=True)
class Format:
    """Where a source has what; a file has one of several alternatives."""

    columns: Mapping[str, Column]
    """Of interactions: ``user_id``, ``item_id``, ``timestamp``."""
    item_columns: Mapping[str, Column]
    """Of items: ``item_id`` and texts."""
    time_unit: str = "s"
    """Of times that are numbers."""


_REVIEWS = {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime"}
_PRODUCTS = {"item_id": "asin", "title": "title", "brand": "brand"}
FORMATS = {
    "amazon2014": Format(_REVIEWS, {**_PRODUCTS, "category": "categories", "description": "description"}),
    "amazon2018": Format(_REVIEWS, {**_PRODUCTS, "category": "category", "description": ("description", "feature")}),
    "amazon2023": Format(
        {"user_id": "user_id", "item_id": "parent_asin", "timestamp": "timestamp"},
        {
            "item_id": "parent_asin",
            "title": "title",
            "brand": "store",
            "category": "categories",
            "description": ("description", "features"),
        },
        "ms",
    ),
    # Books and music have no titles in these files. What reviewers wrote about an item is no text of the item: it was
    # written with interactions that are held out.
    "douban": Format(
        {"user_id": "user_id", "item_id": ("movie_id", "book_id", "music_id"), "timestamp": "time"},
        {"item_id": "UID", "title": "name", "brand": "director", "category": "tag", "description": "summary"},
    ),
    "table": Format({}, {}),
}
SOURCES = ("ml-100k", *FORMATS)


@dataclass(frozen=True)
class PrepareConfig:
    """How the two-domain atomic files come about."""

    source: str | None = None
    """One of ``SOURCES``; none means that the files are there already."""
    folder: str = "raw"
    """Where the raw files are."""
    files: Any = None
    """``{domain: {interactions: FILE, items: FILE}}``, domain A first; ``items`` may be left out."""
    columns: Any = field(default_factory=dict)
    """For ``table``: the file's names of ``user_id``, ``item_id``, ``timestamp``, where they differ, and ``domain``."""
    item_columns: Any = field(default_factory=dict)
    """For ``table``: the file's names of ``item_id``, where it differs, of texts, and ``domain``."""
    time_unit: str = "s"
    """For ``table``: of times that are numbers: ``s``, ``ms``, ``us``, ``ns``."""
    after: Any = None
    """First day that counts, as 2014-01-31 (UTC)."""
    before: Any = None
    """First day that counts no more."""
    repeats: str = "first"
    """``first``: a user's earliest interaction with an item stays; ``all`` stay that differ in time."""
    k_core: int = 0
    """Interactions that each item and each user's part of a domain must have, to a fixed point."""
    min_history: int = 0
    """Interactions that each user must have in both domains together."""
    sample_users: int | None = None
    """So many users, drawn from those whom the filters left."""
    seed: int = 42
    """Of the sample, and of the order of equal times in two files."""
    max_bad_share: float = 0.01
    """Share of a file's lines that may be unusable."""

    def faults(self) -> list[str]:
        if self.source is not None and self.source not in list(SOURCES):
            return [f"source: {self.source!r} is not one of {', '.join(SOURCES)}"]
        if self.source not in FORMATS:
            return self._useless()
        found = choice_faults(self, {"time_unit": tuple(PER_SECOND), "repeats": ("first", "all")})
        found += whole_number_faults(self, {"k_core": 0, "min_history": 0, "seed": 0})
        if self.sample_users is not None:
            found += whole_number_faults(self, {"sample_users": 1})
        if self.time_unit != "s" and self.source != "table":
            found.append(f"time_unit: the source {self.source} has a unit of its own; leave it out")
        share = self.max_bad_share
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            found.append(f"max_bad_share: {share!r} is not a number from 0 to 1")
        if not _is_folder(self.folder):
            found.append(f"folder: {self.folder!r} is not a folder")
        days = {key: value for key in ("after", "before") if (value := getattr(self, key)) is not None}
        found += [f"{key}: {one!r} is not a day such as 2014-01-31" for key, one in days.items() if not _is_day(one)]
        if not found and self.after and self.before and _day(self.after) >= _day(self.before):
            found.append(f"before: {self.before} is not later than after: {self.after}")
        return found + self._column_faults() + self._file_faults()

    def _useless(self) -> list[str]:
        """A fault for each key that only raw files know."""
        plain, which = PrepareConfig(), f"with the source {self.source}" if self.source else "without prepare.source"
        given = [f.name for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)]
        known = f"it is for raw files ({', '.join(FORMATS)})"
        return [f"{key}: has no meaning {which}; {known}" for key in given if key not in ("source", "folder")]

    def _column_faults(self) -> list[str]:
        found = []
        for key, known in (("columns", _ROW_COLUMNS), ("item_columns", _ITEM_COLUMNS)):
            value = getattr(self, key)
            if not isinstance(value, Mapping):
                found.append(f"{key}: expected {{our name: the file's}}, found {value!r}")
                continue
            if value and self.source != "table":
                found.append(f"{key}: the source {self.source} has columns of its own; use the source table")
            found += [f"{key}: {one!r} is not one of {', '.join(known)}" for one in value if one not in known]
            unnamed = {one: name for one, name in value.items() if not _is_name(name)}
            found += [f"{key}.{one}: {name!r} is not the name of a column" for one, name in unnamed.items()]
        if self._maps_domain("columns") and self._maps_domain("item_columns"):
            found.append("columns.domain: the domain of an item is named in one file only; leave one of the two out")
        return found

    def _file_faults(self) -> list[str]:
        example = "{food: {interactions: FILE, items: FILE}, kitchen: {interactions: FILE, items: FILE}}"
        if not isinstance(self.files, Mapping) or len(self.files) != 2:
            return [f"files: expected two domains as {example}, found {self.files!r}"]
        found: list[str] = []
        paths: list[str] = []
        for domain, files in self.files.items():
            if not _is_name(domain) or sanitize(domain) != domain:
                found.append(f"files: {domain!r} is not the name of a domain")
            if domain == OVERALL:
                found.append(f"files: a domain is called {OVERALL!r}, the name for all users in every table")
            if not isinstance(files, Mapping) or set(files) not in _FILE_KEYS:
                found.append(f"files.{domain}: expected {{interactions: FILE, items: FILE}}, found {files!r}")
                continue
            found += [f"files.{domain}.{key}: {one!r} is not a file" for key, one in files.items() if not _is_file(one)]
            own = list(map(str, files.values()))
            # A table of purchases may name the products, too; a title in published reviews is the reviewer's.
            paths += dict.fromkeys(own) if self.source == "table" else own
        if not self.shared:
            twice = [path for path, n in Counter(paths).items() if n > 1]
            found += [f"files: {path} is named twice; a file belongs to one domain" for path in twice]
        if found:
            return found
        if self._maps_domain("columns") and len({files["interactions"] for files in self.files.values()}) > 1:
            found.append("columns.domain: needs the same file of interactions under both domains")
        if self._maps_domain("item_columns") and not all("items" in files for files in self.files.values()):
            found.append("item_columns.domain: needs a file of items for each domain")
        return found

    @property
    def shared(self) -> bool:
        """Whether both domains are in the same files, told apart by a column."""
        return self._maps_domain("columns") or self._maps_domain("item_columns")

    def _maps_domain(self, key: str) -> bool:
        return isinstance(getattr(self, key), Mapping) and "domain" in getattr(self, key)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_file(value: Any) -> bool:
    return _is_name(value) and Path(value).name != ""


def _is_folder(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value and Path(value).expanduser())
    except RuntimeError:  # the home of a user who has none
        return False


def _is_day(value: Any) -> bool:
    try:
        _day(value)
    except ValueError:
        return False
    return True


def _day(value: Any) -> float:
    """Seconds at the beginning of a day, UTC; YAML reads a bare 2014-01-31 as a date already."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(value)):
        raise ValueError(value)
    return datetime.combine(date.fromisoformat(str(value)), datetime.min.time(), timezone.utc).timestamp()


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
            self.columns = {**{one: one for one in _ROW_COLUMNS[:3]}, **self.columns}
            self.item_columns = {**{one: one for one in _ITEM_COLUMNS[:-1]}, **self.item_columns}
        self.time_unit = config.time_unit if table else form.time_unit
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
        inputs = [self._read_of(one) for one in self.inputs]
        return {**_plain(self.config), "domains": self.domains, "inputs": inputs}  # a manifest's keys are sorted

    def account(self, rows: spill.Rows) -> dict[str, Any]:
        """What was read, dropped and kept, for the manifest."""
        return {**self.counts, "dropped": dict(self.dropped), "rows_kept": len(rows.user)}

    def _read_of(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """The record of an input with what was read of it; of a file of both, as interactions."""
        file = recorded["file"]
        tally = self.tallies.get((file, "interactions")) or self.tallies[file, "items"]
        read = {"lines": tally.rows, "unusable": tally.bad}
        return {**recorded, **read, **({"first_unusable": tally.first} if tally.first else {})}

    # -- interactions --

    def filtered(self, folder: Path) -> tuple[spill.Rows, np.ndarray]:
        """Rows that are kept, in their final order, and the domain of each item."""
        on_disk = spill.Spill(folder)
        try:
            for domain in (0, 1):
                self._read_rows(domain, on_disk)
            self.counts["rows_read"] = on_disk.n_rows + self.dropped.total()
            rows = on_disk.kept(self.config.k_core, self.config.min_history)
            self.dropped["too_rare"] = on_disk.n_rows - len(rows.user)
        finally:
            on_disk.close()
        return self._selected(rows)

    def _read_rows(self, domain: int, on_disk: spill.Spill) -> None:
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
            kept = timed & self._in_range(times)
            self.dropped["outside_dates"] += int((timed & ~kept).sum())
            chosen = np.flatnonzero(kept)
            on_disk.append(
                [users[row] for row in chosen],
                [items[row] for row in chosen],
                times[chosen],
                np.array(numbers, np.int64)[chosen],
                domain,
            )
        if not tally.rows:
            raise DataError(f"{tally.path} has no rows; is it the right file, whole?")
        self.dropped["unusable"] += 0 if again else tally.bad

    def _belongs(
        self, name: str, named: Sequence[Any] | None, items: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
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

    def _in_range(self, times: np.ndarray) -> np.ndarray:
        after = _day(self.config.after) if self.config.after is not None else -np.inf
        before = _day(self.config.before) if self.config.before is not None else np.inf
        return (times >= after) & (times < before)

    def _selected(self, rows: spill.Rows) -> tuple[spill.Rows, np.ndarray]:
        """Rows without duplicates, rare items and users, and users who were not drawn."""
        config = self.config
        rows = rows.take(spill.in_order(rows, config.seed, self.one_file))
        item_domain, n_in_both = spill.first_domain(rows)
        self.counts["items_in_both"] = n_in_both + sum(item in self.in_both for item in rows.items)
        for reason, same_time in (("duplicate", True), ("repeated", False)):
            if same_time or config.repeats == "first":
                again = spill.repeated(rows, same_time)
                self.dropped[reason] = int(again.sum())
                rows = rows.take(~again)
        kept = spill.frequent(rows, item_domain, config.k_core, config.min_history)
        self.dropped["too_rare"] += int((~kept).sum())
        rows = rows.take(kept)
        if config.sample_users is not None:
            drawn = self._drawn(rows)
            self.dropped["not_sampled"] = int((~drawn).sum())
            rows = rows.take(drawn)
        self._check_left(rows, item_domain)
        return rows, item_domain

    def _drawn(self, rows: spill.Rows) -> np.ndarray:
        """``[M]`` bool: rows of the users drawn by the seed, whatever order the files have."""
        users = np.unique(rows.user)
        users = users[np.argsort(rows.users[users])]
        rng = np.random.default_rng(self.config.seed)
        return np.isin(rows.user, rng.choice(users, min(self.config.sample_users or 0, len(users)), replace=False))

    def _check_left(self, rows: spill.Rows, item_domain: np.ndarray) -> None:
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

    def texts(self, rows: spill.Rows, item_domain: np.ndarray) -> dict[str, tuple[str, ...]]:
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
    ids = [value.strip() if isinstance(value, str) else _number_id(value) for value in values]
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


def _write_interactions(path: Path, rows: spill.Rows) -> None:
    """Rows as ``.inter``, a block at a time."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for start in range(0, len(rows.user), 2**16):
            block = rows.take(slice(start, start + 2**16))
            lines = zip(rows.users[block.user], rows.items[block.item], exact(block.time), strict=True)
            file.writelines(f"{user}\t{item}\t{time}\n" for user, item, time in lines)


def _write_items(
    path: Path,
    rows: spill.Rows,
    item_domain: np.ndarray,
    texts: Mapping[str, tuple[str, ...]],
    domains: tuple[str, str],
) -> None:
    """Items with interactions as ``.item``, those of domain A first; a text that no item has gets no column."""
    kept = np.unique(rows.item)
    kept = kept[np.argsort(item_domain[kept], kind="stable")]
    table = [texts.get(item, ("",) * len(TEXTS)) for item in rows.items[kept]]
    filled = [place for place in range(len(TEXTS)) if place == 0 or any(row[place] for row in table)]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        header = ["item_id:token", "domain:token", *(f"{TEXTS[place]}:token_seq" for place in filled)]
        file.write("\t".join(header) + "\n")
        for item, domain, row in zip(rows.items[kept], item_domain[kept].tolist(), table, strict=True):
            file.write("\t".join([item, domains[domain], *(row[place] for place in filled)]) + "\n")


# ---- figures ----------------------------------------------------------------------------------------------------


def card(data: TwoDomainData) -> dict[str, int | float]:
    """The figures by which a data set is known; generated rows and virtual items do not count.

    The mean domain ratio is over users, each on the training rows.
    """
    raw = keep_rows(data, ~data.generated)
    in_b = raw.item_domain[raw.item] == 1
    in_both = np.intersect1d(raw.user[in_b], raw.user[~in_b])
    n_items = np.bincount(data.item_domain[~data.virtual], minlength=2)
    return {
        "users": len(data.users),
        **{f"items_{name}": int(n) for name, n in zip(data.domains, n_items, strict=True)},
        "interactions": len(raw.user),
        "mean_length": len(raw.user) / len(data.users),
        "users_in_both_domains": len(in_both),
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


def untitled(data: TwoDomainData) -> str:
    """How many real items lack a title; empty if none does, or no column holds titles."""
    if "title" not in data.item_fields:
        return ""
    titles = data.item_fields["title"][~data.virtual]
    n = int((titles == "").sum())
    return f"{n:,} of {len(titles):,} items without a title" if n else ""


def listed(figures: Mapping[str, Any]) -> str:
    """Figures of a card in one line."""
    return ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in figures.items())


def number(value: Any) -> str:
    """Three decimals for what is not whole."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
