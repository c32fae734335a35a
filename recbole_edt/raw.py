"""Raw sources to atomic files of two domains, one reader per source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt.atomic import TwoDomainData, keep_rows, read, read_table, sanitize, write_table
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.files import sha256_of, write_manifest
from recbole_edt.split import domain_ratio, training_rows

RULES_VERSION = 1
"""Raised whenever a reader turns the same source into other files."""
FILM_DOMAINS = ("action", "drama")
ACTION_GENRES = frozenset(
    ["Action", "Adventure", "Sci-Fi", "Thriller", "War", "Crime", "Horror", "Western"]
    + ["Film-Noir", "Mystery", "Fantasy"]
)
_INTER_TYPES = {"user_id": "token", "item_id": "token", "timestamp": "float"}
_ARTICLE_LAST = re.compile(r"(.+), (The|An|A)( \(.*\))?")


def prepare(source: str, folder: str | Path, name: str) -> TwoDomainData:
    """Write ``folder/name.inter`` and ``folder/name.item`` from a named source and return what they hold.

    The manifest ``folder/prepare.json`` says what was merged and dropped, under ``source_hash(source)``.

    Raises: ConfigError for an unknown source; DataError if it cannot be read or written.
    """
    _check_source(source)
    return READERS[source](Path(folder), name)


def source_hash(source: str) -> str:
    """Hash of all that the files of a source depend on: its own files and the rules of its reader.

    Raises: ConfigError for an unknown source; DataError if it cannot be read.
    """
    _check_source(source)
    return sha256_of(source, RULES_VERSION, *_INPUTS[source]())


def prepare_ml100k(folder: Path, name: str = "ml-100k-cross") -> TwoDomainData:
    """MovieLens 100k, as installed with RecBole, as the domains ``action`` and ``drama``; see ``prepare``.

    Every rating is an interaction. A film belongs to the domain that ``film_domain`` names; one without a
    known genre is dropped. Films of the same title and year are one: the lowest id stays, and a user who
    rated several of them keeps the earliest rating. Texts are a title such as ``Toy Story (1995)`` and the
    genres as the category. Never name it ``ml-100k``: RecBole has its own files under that name and reads
    them whatever the data path.

    Raises: DataError if recbole is not installed or its copy of the data is missing.
    """
    item_path, inter_path = _ml100k_files()
    films, ratings = _films(item_path), _ratings(inter_path)
    known = films[films["category"] != ""]
    distinct = known.drop_duplicates("title")
    merged = _merge_films(ratings, known)
    outputs = [folder / f"{name}.inter", folder / f"{name}.item"]
    write_table(outputs[0], {f"{column}:{kind}": merged[column] for column, kind in _INTER_TYPES.items()})
    write_table(outputs[1], _film_columns(distinct))
    counts = {
        "films_without_genre_dropped": len(films) - len(known),
        "films_merged": len(known) - len(distinct),
        "ratings_in_source": len(ratings),
        "ratings_kept": len(merged),
    }
    settings = {"source": "ml-100k"}
    write_manifest(folder / "prepare.json", "prepare", source_hash("ml-100k"), settings, counts, outputs)
    return read(folder, name, FILM_DOMAINS)


READERS: dict[str, Callable[..., TwoDomainData]] = {"ml-100k": prepare_ml100k}
"""One reader per source: ``READERS[source](folder, name)``."""


def film_domain(genres: Sequence[str]) -> str:
    """``action`` if at least half of the genres (one or more) are in ``ACTION_GENRES``, else ``drama``."""
    n_action = sum(genre in ACTION_GENRES for genre in genres)
    return FILM_DOMAINS[0] if 2 * n_action >= len(genres) else FILM_DOMAINS[1]


def article_first(title: str) -> str:
    """``Birdcage, The`` as ``The Birdcage``; a bracket at the end, with another title, stays at the end."""
    match = _ARTICLE_LAST.fullmatch(title)
    return f"{match[2]} {match[1]}{match[3] or ''}" if match else title


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


def listed(figures: Mapping[str, Any]) -> str:
    """Figures of a card in one line."""
    return ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in figures.items())


def number(value: Any) -> str:
    """Three decimals for what is not whole."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _check_source(source: str) -> None:
    if source not in READERS:
        raise ConfigError(f"unknown source {source!r}; choose one of: {', '.join(READERS)}")


def _ml100k_files() -> tuple[Path, Path]:
    """Films and ratings inside the installed recbole, found without importing it."""
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("recbole, which brings the MovieLens data, is missing; pip install recbole==1.2.1")
    folder = Path(spec.submodule_search_locations[0]) / "dataset_example" / "ml-100k"
    return folder / "ml-100k.item", folder / "ml-100k.inter"


_INPUTS: dict[str, Callable[[], tuple[Path, ...]]] = {"ml-100k": _ml100k_files}


def _films(path: Path) -> pd.DataFrame:
    """All films by ascending id: item_id, title with year, category (``""`` if no genre is known)."""
    table, _ = read_table(path)
    table = table.iloc[np.argsort(table["item_id"].astype(int))]
    names = zip(table["movie_title"], table["release_year"], strict=True)
    genres = [[genre for genre in text.split() if genre != "unknown"] for text in table["class"]]
    return pd.DataFrame(
        {
            "item_id": table["item_id"].to_numpy(),
            "title": [_title_with_year(title, year) for title, year in names],
            "category": [", ".join(names) for names in genres],
        },
        dtype=object,
    )


def _title_with_year(title: str, year: str) -> str:
    title = sanitize(article_first(title))
    return f"{title} ({year})" if year.isdigit() else title


def _ratings(path: Path) -> pd.DataFrame:
    """Ratings by user (first seen first), time, and position in the file."""
    table, _ = read_table(path)
    user, _ = pd.factorize(table["user_id"].to_numpy())
    order = np.lexsort((table["timestamp"].to_numpy().astype(np.float64), user))
    return table.iloc[order][list(_INTER_TYPES)]


def _merge_films(ratings: pd.DataFrame, films: pd.DataFrame) -> pd.DataFrame:
    """Ratings of these films under the lowest id of each title, a user's earliest rating of each."""
    lowest_id = films.groupby("title")["item_id"].transform("first").set_axis(films["item_id"])
    ratings = ratings.assign(item_id=ratings["item_id"].map(lowest_id)).dropna(subset=["item_id"])
    return ratings.drop_duplicates(["user_id", "item_id"])


def _film_columns(films: pd.DataFrame) -> Mapping[str, pd.Series]:
    """Columns of ``.item``, action films first so that ``read`` takes ``action`` for domain A."""
    domain = films["category"].str.split(", ").map(film_domain)
    films = films.assign(domain=domain).sort_values("domain", kind="stable")
    types = {"item_id": "token", "domain": "token", "title": "token_seq", "category": "token_seq"}
    return {f"{name}:{kind}": films[name] for name, kind in types.items()}
