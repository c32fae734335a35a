"""Interactions and items of two domains as plain arrays, and the ways to keep some rows or items of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # saved ranks can be read without torch

    pass

from recbole_edt.errors import DataError


@dataclass(frozen=True, eq=False)
class TwoDomainData:
    """Interactions of two domains, ordered by (user, time, position in the file).

    ``U`` users, ``N`` items, ``M`` interactions. The arrays are shared, not copied: do not write to them.
    """

    name: str
    """Name of the data set."""
    users: np.ndarray
    """``[U]`` tokens, in order of first appearance in ``.inter``."""
    items: np.ndarray
    """``[N]`` tokens, in the order of ``.item``."""
    domains: tuple[str, str]
    """Names of domain A and domain B."""
    item_domain: np.ndarray
    """``[N]`` int8, 0 for A and 1 for B."""
    item_fields: pd.DataFrame
    """``N`` rows: the other columns of ``.item`` as text, ``""`` where missing."""
    virtual: np.ndarray
    """``[N]`` bool, true for items that exist only as generated text."""
    user: np.ndarray
    """``[M]`` int64 index into ``users``, never decreasing."""
    item: np.ndarray
    """``[M]`` int64 index into ``items``."""
    time: np.ndarray
    """``[M]`` float64, in the unit of the file."""
    generated: np.ndarray
    """``[M]`` bool, true for rows that augmentation inserted."""
    offsets: np.ndarray
    """``[U+1]`` int64, rows of user ``u`` are ``offsets[u]:offsets[u+1]``."""
    item_field_types: Mapping[str, str] = field(default_factory=dict)
    """Atomic type of each column of ``item_fields``; ``token_seq`` where it is not named."""


def keep_rows(data: TwoDomainData, kept: np.ndarray) -> TwoDomainData:
    """The same users and items with only the rows where ``kept [M]`` is true."""
    user = data.user[kept]
    return replace(
        data,
        user=user,
        item=data.item[kept],
        time=data.time[kept],
        generated=data.generated[kept],
        offsets=offsets_of(user, len(data.users)),
    )


def drop_items(data: TwoDomainData, dropped: np.ndarray) -> TwoDomainData:
    """The data as if the items where ``dropped [N]`` is true had never existed.

    Their rows go, and so do users who have no row left.

    Raises: DataError if a domain has no interactions left.
    """
    return _subset(data, ~dropped, ~dropped[data.item], "after dropping items")


def offsets_of(user: np.ndarray, n_users: int) -> np.ndarray:
    """``[n_users + 1]`` int64 bounds of each user's rows, for ``user [M]`` in sorted order."""
    return np.append(0, np.cumsum(np.bincount(user, minlength=n_users))).astype(np.int64)


def frequent(rows: np.ndarray, *least: tuple[np.ndarray, int]) -> np.ndarray:
    """``[M]`` bool: those of ``rows`` that stay when the too rare are dropped until none is left.

    Args:
        rows: ``[M]`` bool: rows that count.
        least: pairs of ``[M]`` numbers from 0, such as the item of each row, and how many rows each must have.
    """
    kept, before = rows.copy(), -1
    while np.count_nonzero(kept) != before:
        before = np.count_nonzero(kept)
        for key, n in least:
            kept &= np.bincount(key[kept], minlength=key.max(initial=0) + 1)[key] >= n
    return kept


def check_both_domains_occur(data: TwoDomainData, before: str, after: str) -> None:
    raw_items = data.item[~data.generated]
    n_rows = np.bincount(data.item_domain[raw_items], minlength=2)
    for domain, n in zip(data.domains, n_rows, strict=True):
        if n == 0:
            raise DataError(f"{before}domain {quoted_value(domain)} has no interactions{after}")


def quoted_value(text: Any) -> str:
    """Text from a file as it may stand in a message: quoted, escaped, not too long."""
    shown = repr(str(text))
    return shown if len(shown) <= 60 else shown[:57] + "..."


# ---- selecting ---------------------------------------------------------------------------------------------


def k_core_of(data: TwoDomainData, k: int) -> TwoDomainData:
    """Raw rows whose item and whose user's part of the domain both have ``k`` of them, to a fixed point."""
    part = 2 * data.user + data.item_domain[data.item]  # one number per (user, domain)
    kept = frequent(~data.generated, (data.item, k), (part, k))
    item_kept = data.virtual | (np.bincount(data.item[kept], minlength=len(data.items)) > 0)
    user_kept = np.bincount(data.user[kept], minlength=len(data.users)) > 0
    kept |= data.generated & user_kept[data.user] & item_kept[data.item]
    return _subset(data, item_kept, kept, f"after the filter k_core={k}")


def _subset(data: TwoDomainData, item_kept: np.ndarray, row_kept: np.ndarray, when: str) -> TwoDomainData:
    """Some items and rows, and the users who still have a row, all numbered anew in the old order."""
    user_kept = np.bincount(data.user[row_kept], minlength=len(data.users)) > 0
    user = (np.cumsum(user_kept) - 1)[data.user[row_kept]]
    users = data.users[user_kept]
    subset = replace(
        data,
        users=users,
        items=data.items[item_kept],
        item_domain=data.item_domain[item_kept],
        item_fields=data.item_fields[item_kept].reset_index(drop=True),
        virtual=data.virtual[item_kept],
        user=user,
        item=(np.cumsum(item_kept) - 1)[data.item[row_kept]],
        time=data.time[row_kept],
        generated=data.generated[row_kept],
        offsets=offsets_of(user, len(users)),
    )
    check_both_domains_occur(subset, f"data set {quoted_value(data.name)}: ", f" {when}; keep more of the data")
    return subset
OVERALL = "overall"
