"""What stands in for the LLM: other users' behaviour proposes items, word weights describe groups of them.

Nothing here calls a network or knows the text of a prompt. Everything learns from training rows only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.text.clusters import top_neighbours

# Chosen on hidden training items of Amazon Food-Kitchen: recall@10 .028 (food to kitchen) and .050 (kitchen
# to food), where the most popular items reach .022 and .040, and the nearest texts .002 and .004.
N_NEIGHBOURS = 5
POPULARITY_EXPONENT = 0.2
POPULARITY_SHRINK = 5.0

ROWS_AT_A_TIME = 256  # rows sorted at a time, see best_entries
_MAX_BITS = 2**31 - 1
WORD = r"(?u)\b[^\W\d_]{3,}\b"  # three letters or more


@dataclass(frozen=True)
class Proposals:
    """Items proposed to users, by user and then best first.

    Attributes:
        user: ``[P]`` index into the users.
        item: ``[P]`` index into the items; no user has one twice.
        score: ``[P]`` float32, higher is better; comparable within a user only.
    """

    user: np.ndarray
    item: np.ndarray
    score: np.ndarray


class OfflineGenerator:
    """Proposes items of the other domain that go with a user's representatives (in the place of eq. 4's LLM).

    The score of item b for user u is

        sum over representatives a of u, and over a' = a and its text neighbours, of
        weight(a, a') * count(a', b) / (count(b) + shrink) ** exponent

    with count(a', b) the users who have both in training and count(b) the users who have b. The neighbours'
    weights are their cosines, scaled to sum to 1; a itself weighs 1. They lend evidence to rare items.

    A user's own rows never count for that user: they touch count(a', b) and count(b) for own items b only,
    and own items are not proposed.
    """

    def propose(
        self,
        train: TwoDomainData,
        representatives: np.ndarray,
        vectors: np.ndarray,
        source_domain: int,
        n: int,
    ) -> Proposals:
        """At most n real items of the other domain per user; fewer where behaviour gives no evidence.

        Args:
            train: training rows only.
            representatives: rows of ``train`` in the source domain (``similarity.representatives``).
            vectors: ``[N, D]`` item embeddings.
            source_domain: 0 or 1; the proposals come from the other one.
            n: proposals per user.
        """
        source = np.flatnonzero(train.item_domain == source_domain)
        target = np.flatnonzero((train.item_domain != source_domain) & ~train.virtual)
        history = user_item_matrix(train, np.arange(len(train.user)))
        users = np.unique(train.user[representatives])
        spoken = user_item_matrix(train, representatives)[users][:, source]
        wanted = spoken @ _with_neighbours(vectors[source])
        together = _together(history[:, source], history[:, target])
        owned = history[users][:, target]
        parts = [Proposals(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
        starts = range(0, len(users), ROWS_AT_A_TIME)
        for start in tqdm(starts, desc="proposing items", delay=1, leave=False, disable=None):
            block = slice(start, start + ROWS_AT_A_TIME)
            scores = wanted[block] @ together
            row, item, score = best_entries(scores - scores.multiply(owned[block]), n)
            parts.append(Proposals(users[block][row], target[item], score))
        columns = ([getattr(part, key) for part in parts] for key in ("user", "item", "score"))
        return Proposals(*map(np.concatenate, columns))


def user_item_matrix(train: TwoDomainData, rows: np.ndarray) -> sp.csr_matrix:
    """``[U, N]`` with 1 where the user has the item in one of these rows."""
    shape = (len(train.users), len(train.items))
    matrix = sp.csr_matrix((np.ones(len(rows), np.float32), (train.user[rows], train.item[rows])), shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _together(source: sp.csr_matrix, target: sp.csr_matrix) -> sp.csr_matrix:
    """``[source items, target items]``: users who have both, less for popular targets."""
    popularity = np.asarray(target.sum(axis=0)).ravel()
    weight = (popularity + POPULARITY_SHRINK) ** -POPULARITY_EXPONENT
    return (source.T.tocsr() @ target @ sp.diags(weight)).astype(np.float32)


def _with_neighbours(vectors: np.ndarray) -> sp.csr_matrix:
    """``[n, n]`` with 1 on the diagonal and, per row, its nearest texts with weights that sum to 1."""
    index, cosine = top_neighbours(vectors, N_NEIGHBOURS)
    weight = np.maximum(cosine, 0)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
    rows = np.repeat(np.arange(len(index)), index.shape[1])
    spread = sp.csr_matrix((weight.ravel(), (rows, index.ravel())), (len(index), len(index)))
    return sp.identity(len(index), np.float32, "csr") + spread


def best_entries(scores: sp.csr_matrix, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and score of the n best positive entries of each row, best first; ties by column.

    At most 256 rows and 2**24 columns. One integer per entry sorts by row, then score (high first), then
    column, several times faster than a sort by three keys.
    """
    entries = scores.tocoo()
    kept = entries.data > 0
    # The bits of a positive float32, read as a whole number, are in the order of its value.
    bits = entries.data[kept].astype(np.float32).view(np.int32)
    falling = _MAX_BITS - bits.astype(np.int64)
    keys = np.sort((entries.row[kept].astype(np.int64) << 55) | (falling << 24) | entries.col[kept])
    row = keys >> 55
    first = np.searchsorted(row, np.arange(scores.shape[0]))
    keys = keys[np.arange(len(keys)) - first[row] < n]
    score = (_MAX_BITS - ((keys >> 24) & _MAX_BITS)).astype(np.int32).view(np.float32)
    return keys >> 55, keys & (2**24 - 1), score
