"""Leave-one-out, decided once on the raw interactions before anything looks at behaviour."""

from __future__ import annotations

import numpy as np

from recbole_edt.data.two_domains import TwoDomainData, keep_rows
from recbole_edt.files import sha256_of

TRAIN, VALID, TEST = 0, 1, 2
MIN_RAW_ROWS = 3
"""Users with fewer raw interactions than this only train."""


def leave_one_out(data: TwoDomainData) -> np.ndarray:
    """``[M]`` int8: last raw row of a user TEST, last but one VALID, all others TRAIN.

    Generated rows are always TRAIN, and so are all rows of users with fewer than 3 raw ones.
    """
    return leave_one_out_marks(data.offsets, data.generated)


def leave_one_out_marks(offsets: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """The marks of ``leave_one_out`` from plain arrays.

    Args:
        offsets: ``[U+1]``, rows of user ``u`` are ``offsets[u]:offsets[u+1]``, in time order.
        generated: ``[M]`` bool.

    Returns: ``[M]`` int8 of TRAIN, VALID, TEST.
    """
    raw_before = np.append(0, np.cumsum(~generated))  # [M+1] raw rows before each row, of all users
    raw_until_end = raw_before[offsets[1:]]  # [U]
    n_raw = raw_until_end - raw_before[offsets[:-1]]  # [U]
    n_rows = np.diff(offsets)
    still_to_come = np.repeat(raw_until_end, n_rows) - raw_before[1:]  # [M] later raw rows of the user
    may_hold_out = ~generated & np.repeat(n_raw >= MIN_RAW_ROWS, n_rows)
    marks = np.full(len(generated), TRAIN, dtype=np.int8)
    marks[may_hold_out & (still_to_come == 1)] = VALID
    marks[may_hold_out & (still_to_come == 0)] = TEST
    return marks


def training_rows(data: TwoDomainData) -> TwoDomainData:
    """Only the TRAIN rows, users and items unchanged: all that augmentation and profiles may see."""
    return keep_rows(data, leave_one_out(data) == TRAIN)


def domain_ratio(data: TwoDomainData) -> np.ndarray:
    """``[U]`` float64 ``|nA - nB| / (nA + nB)`` over the rows given, 0 for a user without rows.

    0 is balanced, 1 is one domain only (section 1 of the paper). Pass ``training_rows(data)`` so that no
    held-out row is looked at.
    """
    in_b = data.item_domain[data.item]
    n = np.diff(data.offsets)
    n_b = np.bincount(data.user, weights=in_b, minlength=len(data.users))
    return np.abs(n - 2 * n_b) / np.maximum(n, 1)


def split_hash(data: TwoDomainData, marks: np.ndarray) -> str:
    """Hex SHA-256 of user, item, time and mark of every raw row, in order.

    Raw and augmented files of the same data have the same hash; another order, filter or split has another.
    """
    raw = ~data.generated
    users, items = data.users[data.user[raw]], data.items[data.item[raw]]
    return sha256_of(users, items, data.time[raw].astype(np.float64), marks[raw].astype(np.int8))


def catalogue_hash(data: TwoDomainData) -> str:
    """Hex SHA-256 of the real items and their domains: what can be a candidate."""
    real = ~data.virtual
    return sha256_of(data.items[real], data.item_domain[real])
