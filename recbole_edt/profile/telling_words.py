"""Profiles without a language model: the words that tell a user's groups of items from others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from recbole_edt.augment.cooccurrence import ROWS_AT_A_TIME, WORD, best_entries
from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.profile.balance import domain_counts, reform
from recbole_edt.profile.settings import SRA, ProfileConfig
from recbole_edt.text.clusters import NO_CLUSTER, group_items
from recbole_edt.text.vectors import EmbeddingTable


def telling_words(item_texts: Sequence[str], group: np.ndarray, item: np.ndarray, n_words: int) -> list[str]:
    """What sets each group of items apart: its words of highest tf-idf, in place of an LLM's summary.

    Args:
        item_texts: ``[N]`` texts of the catalogue, the corpus of the document frequencies.
        group: ``[P]`` group of each member, 0 to G - 1.
        item: ``[P]`` the member.
        n_words: words per group at most.

    Returns:
        ``[G]`` words joined by ", ", heaviest first, ties by alphabet; ``""`` for a group without any word.
    """
    n_groups = int(group.max()) + 1 if len(group) else 0
    words: list[list[str]] = [[] for _ in range(n_groups)]
    vectorizer = TfidfVectorizer(
        stop_words="english", token_pattern=WORD, sublinear_tf=True, dtype=np.float32
    )
    try:
        weights = vectorizer.fit_transform(item_texts)
    except ValueError:  # not one word in the whole catalogue
        return [""] * n_groups
    vocabulary = vectorizer.get_feature_names_out()
    members = sp.csr_matrix((np.ones(len(item), np.float32), (group, item)), (n_groups, len(item_texts)))
    for start in tqdm(range(0, n_groups, ROWS_AT_A_TIME), desc="telling words", delay=1, leave=False, disable=None):
        row, column, _ = best_entries(members[start : start + ROWS_AT_A_TIME] @ weights, n_words)
        for place, word in zip((start + row).tolist(), vocabulary[column], strict=True):
            words[place].append(word)
    return [", ".join(found) for found in words]


def composed(
    train: TwoDomainData, table: EmbeddingTable, texts: Sequence[str], config: ProfileConfig
) -> list[str]:
    groups, _ = group_items(train, table.lookup(train.items), config.n_clusters, config.seed)
    likes = summarize(train, groups, texts, config.n_words)
    balances = [reform(a, b, train.domains) if config.pipeline == SRA else "" for a, b in domain_counts(train)]
    return [
        analyze(balance, likes[0][user], likes[1][user], train.domains) for user, balance in enumerate(balances)
    ]


def summarize(
    train: TwoDomainData, item_group: np.ndarray, texts: Sequence[str], n_words: int
) -> tuple[list[list[str]], list[list[str]]]:
    """What each user likes in domain A and in domain B: a text per group of items, largest group first.

    Args:
        train: augmented training rows.
        item_group: ``[N]`` cluster of each item within its domain; items of ``NO_CLUSTER`` say nothing.
        texts: ``[N]``.
        n_words: words per text.
    """
    rows = np.flatnonzero(item_group[train.item] != NO_CLUSTER)
    item, user = train.item[rows], train.user[rows]
    n_groups = item_group.max(initial=0) + 1
    key = (user * 2 + train.item_domain[item]) * n_groups + item_group[item]
    found, group, size = np.unique(key, return_inverse=True, return_counts=True)
    words = telling_words(texts, group, item, n_words)
    owner, domain = (found // n_groups // 2).tolist(), (found // n_groups % 2).tolist()
    likes: tuple[list[list[str]], list[list[str]]] = [[] for _ in train.users], [[] for _ in train.users]
    for place in np.argsort(-size, kind="stable").tolist():
        if words[place]:
            likes[domain[place]][owner[place]].append(words[place])
    return likes


def analyze(balance: str, likes_a: Sequence[str], likes_b: Sequence[str], domains: tuple[str, str]) -> str:
    """The profile: the balance of the domains, then the summaries of each."""
    parts = [
        f"In {domain}: {'; '.join(likes)}." for domain, likes in zip(domains, (likes_a, likes_b), strict=True) if likes
    ]
    return " ".join([balance, *parts]).strip()
