"""Kept items as rows of the history, each right after the item that it resembles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.data.two_domains import TwoDomainData, offsets_of


@dataclass(frozen=True)
class Insertions:
    """Items to insert: ``[P]`` each.

    Attributes:
        item: index into the items.
        row: row of the data after which the item goes.
        score: cosine to the item it resembles; the higher, the nearer to that item it stands.
    """

    item: np.ndarray
    row: np.ndarray
    score: np.ndarray


def anchor_rows(train: TwoDomainData, source_row: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Row of ``train`` after which each item goes."""
    user = train.user[source_row]
    if config.insertion == "append":
        return train.offsets[user + 1] - 1
    if config.insertion == "random":
        return np.random.default_rng(config.seed).integers(train.offsets[user], train.offsets[user + 1])
    return source_row


def rows_in_data(data: TwoDomainData, train: TwoDomainData) -> np.ndarray:
    """Where the rows of ``train`` are in ``data``: training rows come first in every user's history."""
    return np.arange(len(train.user)) + (data.offsets[:-1] - train.offsets[:-1])[train.user]


def insert_after_source(data: TwoDomainData, insertions: Insertions) -> TwoDomainData:
    """The data with each item right after its row, marked as generated and with that row's time.

    Several after the same row: best score first, ties by item.
    """
    row, n_raw, n_new = insertions.row, len(data.user), len(insertions.row)
    place = np.concatenate([np.arange(n_raw), row])
    new = np.repeat([False, True], [n_raw, n_new])
    score = np.concatenate([np.zeros(n_raw), insertions.score])
    item = np.concatenate([data.item, insertions.item])
    order = np.lexsort((item, -score, new, place))
    user = data.user[place[order]]
    return replace(
        data,
        user=user,
        item=item[order],
        time=data.time[place[order]],
        generated=np.where(new, True, data.generated[place])[order],
        offsets=offsets_of(user, len(data.users)),
    )


def without_unused_items(data: TwoDomainData) -> TwoDomainData:
    """Without the virtual items that nobody was given."""
    kept = ~data.virtual | (np.bincount(data.item, minlength=len(data.items)) > 0)
    return replace(
        data,
        items=data.items[kept],
        item_domain=data.item_domain[kept],
        item_fields=data.item_fields[kept].reset_index(drop=True),
        virtual=data.virtual[kept],
        item=(np.cumsum(kept) - 1)[data.item],
    )
