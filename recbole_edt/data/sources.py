"""The formats that raw files are published in, and the settings of the stage ``prepare``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from recbole_edt.cleaning import sanitize
from recbole_edt.data.raw_files import PER_SECOND, Column
from recbole_edt.data.two_domains import OVERALL
from recbole_edt.errors import choice_faults, whole_number_faults

TEXTS = ("title", "brand", "category", "description")
ROW_COLUMNS = ("user_id", "item_id", "timestamp", "domain")
ITEM_COLUMNS = ("item_id", *TEXTS, "domain")
_FILE_KEYS = ({"interactions"}, {"interactions", "items"})


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
        if not found and self.after and self.before and start_of_day(self.after) >= start_of_day(self.before):
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
        for key, known in (("columns", ROW_COLUMNS), ("item_columns", ITEM_COLUMNS)):
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
        start_of_day(value)
    except ValueError:
        return False
    return True


def start_of_day(value: Any) -> float:
    """Seconds at the beginning of a day, UTC; YAML reads a bare 2014-01-31 as a date already."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(value)):
        raise ValueError(value)
    return datetime.combine(date.fromisoformat(str(value)), datetime.min.time(), timezone.utc).timestamp()
