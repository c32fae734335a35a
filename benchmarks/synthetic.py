"""Two-domain atomic files of any size, with the history lengths and the popularity of real sequence data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

# Fitted on Amazon Food and Kitchen, users of both domains: median 19, mean 23 interactions; the item of rank r is
# met about ((r + 60) / 60) ** -0.84 times as often as the first.
LENGTH_MEDIAN, LENGTH_SPREAD = 19.0, 0.52
POPULARITY_SHIFT, POPULARITY_EXPONENT = 60.0, 0.84


def write(folder: Path, name: str, n_users: int, n_items: int, mean_length: float | None = None, seed: int = 0) -> int:
    """Write ``folder/name/name.inter`` and ``.item``.

    Args:
        n_users: of whom each has at least 3 interactions.
        n_items: half of them in each domain.
        mean_length: of a history; None keeps the real one, about 23.
        seed: same seed, same files.

    Returns: the number of interactions.
    """
    rng = np.random.default_rng(seed)
    length = lengths(rng, n_users, mean_length)
    user = np.repeat(np.arange(n_users), length)
    item = items(rng, len(user), n_items)
    time = 1_300_000_000 + 86_400 * rng.integers(0, 2000, len(user))  # days: ties, as in the real data
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    catalogue = pd.DataFrame({"item_id:token": np.arange(n_items), "domain:token": np.arange(n_items) % 2})
    catalogue["domain:token"] = np.array(["food", "kitchen"])[catalogue["domain:token"]]
    catalogue["title:token_seq"] = "item"
    catalogue.to_csv(place / f"{name}.item", sep="\t", index=False)
    rows = pd.DataFrame({"user_id:token": user, "item_id:token": item, "timestamp:float": time})
    rows.sample(frac=1, random_state=seed).to_csv(place / f"{name}.inter", sep="\t", index=False)
    return len(rows)


def lengths(rng: np.random.Generator, n_users: int, mean: float | None = None) -> np.ndarray:
    """``[n_users]`` history lengths: log-normal, at least 3."""
    length = rng.lognormal(np.log(LENGTH_MEDIAN), LENGTH_SPREAD, n_users)
    if mean is not None:
        length *= mean / (LENGTH_MEDIAN * np.exp(LENGTH_SPREAD**2 / 2))
    return np.maximum(length.round(), 3).astype(np.int64)


def items(rng: np.random.Generator, n: int, n_items: int) -> np.ndarray:
    """``[n]`` items drawn by popularity."""
    weight = (np.arange(n_items) + POPULARITY_SHIFT) ** -POPULARITY_EXPONENT
    drawn = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n))
    return rng.permutation(n_items)[np.minimum(drawn, n_items - 1)]
