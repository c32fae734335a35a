"""One text per user on what the user likes in each domain, and its vector (paper section 3.4).

Summarize each group of similar items, reform the imbalance of the domains into words, analyze both together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_edt.atomic import TwoDomainData, sanitize, write_table
from recbole_edt.embeddings import Embedder, EmbeddingTable, embed_texts, item_text
from recbole_edt.errors import ConfigError, DataError, choice_faults, whole_number_faults
from recbole_edt.offline import telling_words
from recbole_edt.similarity import NO_CLUSTER, group_items

BALANCE = (
    "Acts about as much in {major} as in {minor}.",
    "Acts somewhat more in {major} than in {minor}.",
    "Acts clearly more in {major} than in {minor}.",
    "Acts mostly in {major} and seldom in {minor}.",
    "Acts almost only in {major}, hardly ever in {minor}.",
)
"""Domain ratio r in words, for the bins [0, .2), [.2, .4), [.4, .6), [.6, .8) and [.8, 1]."""

_CHOICES = {"generator": ("offline",), "pipeline": ("sra", "plain")}


@dataclass(frozen=True)
class ProfileConfig:
    """How profiles are written (method, section 9)."""

    generator: str = "offline"
    """``offline``: telling words of the items, no LLM (the paper asks an LLM)."""
    n_clusters: int = 10
    """Item groups per domain, at least 1 (paper: C = 10)."""
    pipeline: str = "sra"
    """``sra``: summarize, reform, analyze (paper); ``plain``: one summary, the paper's ablation w/o S-R-A."""
    n_words: int = 5
    """Words per summary of a group, at least 1; ``plain`` has this many per cluster as well."""
    seed: int = 42
    """For k-means, 0 or more."""

    def faults(self) -> list[str]:
        """What is wrong with the values, one ``key: message`` each."""
        return choice_faults(self, _CHOICES) + whole_number_faults(self, {"n_clusters": 1, "n_words": 1, "seed": 0})

    def validate(self) -> None:
        """Raises: ConfigError listing every fault."""
        if found := self.faults():
            raise ConfigError("\n".join(f"profile.{fault}" for fault in found))


def profile_users(
    train: TwoDomainData, table: EmbeddingTable, config: ProfileConfig
) -> tuple[list[str], np.ndarray]:
    """Profiles from augmented training rows.

    Args:
        train: training rows only, inserted ones included (``split.training_rows`` of the augmented data).
        table: a vector for every item.
        config: see its fields.

    Returns:
        a text per user, ``""`` without a profile, and ``has_profile [U]``: users with at least one row.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the table lacks items.
    """
    config.validate()
    if not table.has(train.items).all():
        raise DataError("the embeddings lack items of this data set; embed its items again")
    texts = item_text(train.item_fields)
    if config.pipeline == "plain":
        likes = telling_words(texts, train.user, train.item, config.n_words * config.n_clusters)
        likes += [""] * (len(train.users) - len(likes))
        profiles = [f"Likes {words}." if words else "" for words in likes]
    else:
        profiles = _summarize_reform_analyze(train, table, texts, config)
    has_profile = (np.diff(train.offsets) > 0) & np.array([bool(text) for text in profiles])
    return profiles, has_profile


def _summarize_reform_analyze(
    train: TwoDomainData, table: EmbeddingTable, texts: Sequence[str], config: ProfileConfig
) -> list[str]:
    groups, _ = group_items(train, table.lookup(train.items), config.n_clusters, config.seed)
    likes = summarize(train, groups, texts, config.n_words)
    in_b = train.item_domain[train.item].astype(bool)
    n_a, n_b = (np.bincount(train.user[rows], minlength=len(train.users)).tolist() for rows in (~in_b, in_b))
    return [
        analyze(reform(a, b, train.domains), likes[0][user], likes[1][user], train.domains)
        for user, (a, b) in enumerate(zip(n_a, n_b, strict=True))
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


def reform(n_a: int, n_b: int, domains: tuple[str, str]) -> str:
    """A user's domain ratio ``|n_a - n_b| / (n_a + n_b)`` in words; ``""`` for a user without rows."""
    if n_a + n_b == 0:
        return ""
    major, minor = domains if n_a >= n_b else domains[::-1]
    place = min(
        5 * abs(n_a - n_b) // (n_a + n_b), 4
    )  # whole numbers: r = .6 belongs to the fourth bin exactly
    return BALANCE[place].format(major=major, minor=minor)


def analyze(balance: str, likes_a: Sequence[str], likes_b: Sequence[str], domains: tuple[str, str]) -> str:
    """The profile: the balance of the domains, then the summaries of each."""
    parts = [
        f"In {domain}: {'; '.join(likes)}."
        for domain, likes in zip(domains, (likes_a, likes_b), strict=True)
        if likes
    ]
    return " ".join([balance, *parts]).strip()


def write_user_file(users: np.ndarray, texts: Sequence[str], path: Path) -> None:
    """Write the atomic file ``.user`` with columns user_id and profile."""
    write_table(path, {"user_id:token": users, "profile:token_seq": [sanitize(text) for text in texts]})


def embed_profiles(
    users: np.ndarray, texts: Sequence[str], has_profile: np.ndarray, embedder: Embedder, path: Path
) -> EmbeddingTable:
    """Vectors of the users who have a profile; the others are not in the table."""
    known = np.flatnonzero(has_profile)
    return embed_texts(users[known], [texts[user] for user in known], embedder, path, "user")
