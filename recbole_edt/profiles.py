"""One text per user on what the user likes in each domain, and its vector (paper section 3.4).

Summarize each group of similar items, reform the imbalance of the domains into words, analyze both together. For
LLM4CDSR, whose profiles are hierarchical: summarize each group, then write one profile from the summaries.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recbole_edt import prompts
from recbole_edt.atomic import TwoDomainData, keep_rows, sanitize, write_table
from recbole_edt.embeddings import Embedder, EmbeddingTable, embed_texts, item_text
from recbole_edt.errors import ConfigError, DataError, choice_faults, whole_number_faults
from recbole_edt.llm import ChatAnswer, ChatRequest
from recbole_edt.offline import telling_words
from recbole_edt.prompts import Group, Writer
from recbole_edt.similarity import NO_CLUSTER, group_items

BALANCE = (
    "Acts about as much in {major} as in {minor}.",
    "Acts somewhat more in {major} than in {minor}.",
    "Acts clearly more in {major} than in {minor}.",
    "Acts mostly in {major} and seldom in {minor}.",
    "Acts almost only in {major}, hardly ever in {minor}.",
)
"""Domain ratio r in words, for the bins [0, .2), [.2, .4), [.4, .6), [.6, .8) and [.8, 1]."""

MAX_GROUP_ITEMS, MAX_PLAIN_ITEMS = 10, 100
"""Items told of one group, and of one user in the plain pipeline: the latest ones."""
MAX_GROUPS = 10
"""Groups of one user in one call; a user with more has several calls of about the same size."""
N_EXAMPLES = 5
"""Typical items of each domain that the reform is told."""
TRACE_COLUMNS = ("user", "step", "domain", "items", "text", "failure")

Spread = tuple[int, int]
"""Bin of the domain ratio and the stronger domain."""

SRA, HIERARCHICAL, PLAIN = "sra", "hierarchical", "plain"
PIPELINES = (SRA, HIERARCHICAL, PLAIN)
_CHOICES = {"generator": ("offline", "llm"), "pipeline": PIPELINES}


@dataclass(frozen=True)
class ProfileConfig:
    """How profiles are written (method, section 9)."""

    generator: str = "offline"
    """``offline``: telling words of the items, no LLM; ``llm``: a language model writes the profiles (paper)."""
    n_clusters: int = 10
    """Item groups per domain, at least 1 (paper: C = 10)."""
    pipeline: str = SRA
    """``sra``: summarize, reform, analyze (paper); ``hierarchical``: LLM4CDSR's, summaries of raw rows and one profile
    from them; ``plain``: one summary, the paper's ablation w/o S-R-A."""
    n_words: int = 5
    """Offline: words per summary of a group, at least 1; ``plain`` has this many per cluster as well."""
    seed: int = 42
    """For k-means, 0 or more."""

    def faults(self) -> list[str]:
        """What is wrong with the values, one ``key: message`` each."""
        return choice_faults(self, _CHOICES) + whole_number_faults(self, {"n_clusters": 1, "n_words": 1, "seed": 0})

    def validate(self) -> None:
        """Raises: ConfigError listing every fault."""
        if found := self.faults():
            raise ConfigError("\n".join(f"profile.{fault}" for fault in found))


def infix(pipeline: str) -> str:
    """What tells the files of this kind of profiles from those of the default kind, before the last dot or dots."""
    return "" if pipeline == SRA else f"{pipeline}."


class Profiles(NamedTuple):
    """What ``profile_users`` gives."""

    texts: list[str]
    """One per user, ``""`` without a profile."""
    has_profile: np.ndarray
    """``[U]`` bool."""
    counts: dict[str, Any]
    """What happened on the way."""
    trace: pd.DataFrame
    """``TRACE_COLUMNS``: what the language model wrote on each group, each spread over the domains and each user."""


def profile_users(
    train: TwoDomainData, table: EmbeddingTable, config: ProfileConfig, writer: Writer | None = None
) -> Profiles:
    """Profiles from augmented training rows; the hierarchical ones from raw rows alone, as LLM4CDSR has no others.

    Args:
        train: training rows only, inserted ones included (``split.training_rows`` of the augmented data).
        table: a vector for every item.
        config: see its fields.
        writer: the language model, for ``generator: llm``.

    Returns:
        a text per user, ``""`` without a profile, and ``has_profile [U]``: users with at least one row. With a
        language model a user has none either if one of the user's requests failed, or if no item has a text.

    Raises:
        ConfigError: a setting is out of range, or the language model is missing.
        DataError: the table lacks items.
        LLMError: what the writer raises to stop a run.
    """
    config.validate()
    if not table.has(train.items).all():
        raise DataError("the embeddings lack items of this data set; embed its items again")
    train = _rows_of(train, config)
    texts = item_text(train.item_fields)
    counts: dict[str, Any] = {}
    trace: list[tuple[Any, ...]] = []
    if config.generator == "llm":
        profiles, counts, trace = _written(train, table, config, writer)
    elif config.pipeline == PLAIN:
        likes = telling_words(texts, train.user, train.item, config.n_words * config.n_clusters)
        likes += [""] * (len(train.users) - len(likes))
        profiles = [f"Likes {words}." if words else "" for words in likes]
    else:
        profiles = _composed(train, table, texts, config)
    has_profile = (np.diff(train.offsets) > 0) & np.array([bool(text) for text in profiles])
    counts = {"users": len(profiles), "profiles": int(has_profile.sum())} | counts
    return Profiles(profiles, has_profile, counts, pd.DataFrame(trace, columns=list(TRACE_COLUMNS)))


def _rows_of(train: TwoDomainData, config: ProfileConfig) -> TwoDomainData:
    """The rows that this kind of profiles tells of."""
    return keep_rows(train, ~train.generated) if config.pipeline == HIERARCHICAL else train


def _composed(
    train: TwoDomainData, table: EmbeddingTable, texts: Sequence[str], config: ProfileConfig
) -> list[str]:
    groups, _ = group_items(train, table.lookup(train.items), config.n_clusters, config.seed)
    likes = summarize(train, groups, texts, config.n_words)
    balances = [reform(a, b, train.domains) if config.pipeline == SRA else "" for a, b in _counts(train)]
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


def reform(n_a: int, n_b: int, domains: tuple[str, str]) -> str:
    """A user's domain ratio ``|n_a - n_b| / (n_a + n_b)`` in words; ``""`` for a user without rows."""
    return _in_words(spread(n_a, n_b), domains) if n_a + n_b else ""


def spread(n_a: int, n_b: int) -> Spread:
    """Bin of the domain ratio, 0 to 4, and the stronger domain; A if there is none."""
    # Whole numbers: r = .6 belongs to the fourth bin exactly.
    return min(5 * abs(n_a - n_b) // max(n_a + n_b, 1), 4), int(n_b > n_a)


def user_spreads(train: TwoDomainData) -> list[Spread]:
    """The spread of each user's rows over the domains."""
    return [spread(a, b) for a, b in _counts(train)]


def _in_words(spread: Spread, domains: tuple[str, str]) -> str:
    place, major = spread
    return BALANCE[place].format(major=domains[major], minor=domains[1 - major])


def _counts(train: TwoDomainData) -> list[tuple[int, int]]:
    """Rows of each user in domain A and in domain B; inserted ones do not make an imbalance less (method: S_train)."""
    in_b = train.item_domain[train.item].astype(bool)
    raw = ~train.generated
    n_a, n_b = (np.bincount(train.user[rows & raw], minlength=len(train.users)).tolist() for rows in (~in_b, in_b))
    return list(zip(n_a, n_b, strict=True))


def analyze(balance: str, likes_a: Sequence[str], likes_b: Sequence[str], domains: tuple[str, str]) -> str:
    """The profile: the balance of the domains, then the summaries of each."""
    parts = [
        f"In {domain}: {'; '.join(likes)}." for domain, likes in zip(domains, (likes_a, likes_b), strict=True) if likes
    ]
    return " ".join([balance, *parts]).strip()


# ---- with a language model ---------------------------------------------------------------------------------------

Call = tuple[int, list[Group]]


def _told_texts(train: TwoDomainData) -> list[str]:
    """``[N]`` texts as they stand in a prompt."""
    return [prompts.clean(text) for text in item_text(train.item_fields)]


class _FirstWave(NamedTuple):
    calls: list[Call]
    spreads: list[Spread]
    requests: list[ChatRequest]


def _first_wave(train: TwoDomainData, table: EmbeddingTable, config: ProfileConfig, writer: Writer) -> _FirstWave:
    texts = _told_texts(train)
    item_group, distance = group_items(train, table.lookup(train.items), config.n_clusters, config.seed)
    calls = calls_of(user_groups(train, item_group, texts))
    of_user = user_spreads(train)
    spreads = sorted({of_user[user] for user, _ in calls}) if config.pipeline == SRA else []
    examples = [typical_items(train, item_group, distance, texts, domain) for domain in (0, 1)]
    requests = [
        *summarize_requests(train, calls, writer),
        *reform_requests(train.domains, spreads, examples, writer),
    ]
    return _FirstWave(calls, spreads, requests)


def _written(
    train: TwoDomainData, table: EmbeddingTable, config: ProfileConfig, writer: Writer | None
) -> tuple[list[str], dict[str, Any], list[tuple[Any, ...]]]:
    """Profiles, counts and trace of a language model."""
    if writer is None:
        raise ConfigError("profile.generator: 'llm' needs a language model; pass a writer or choose offline")
    if config.pipeline == PLAIN:
        items = latest_items(train, _told_texts(train))
        requests = plain_requests(train, items, writer)
        answers = writer.ask(requests, "writing profiles")
        profiles, trace = _profiles(train, items, answers, "plain")
        return profiles, _outcomes(train, len(items), profiles, answers), trace
    first = _first_wave(train, table, config, writer)
    answers = writer.ask(first.requests, "summarizing preferences")
    told, reformed = answers[: len(first.calls)], answers[len(first.calls) :]
    likes, trace = _likes(train, first.calls, told)
    balance, reform_trace = _reformed(train, first.spreads, reformed)
    if config.pipeline == SRA:
        step, requests = "analyze", analyze_requests(train, likes, balance, writer)
    else:
        step, requests = "compose", compose_requests(train, likes, writer)
    later = writer.ask(requests, "writing profiles")
    profiles, profile_trace = _profiles(train, likes, later, step)
    n_asked = len({user for user, _ in first.calls})
    counts = _outcomes(train, n_asked, profiles, [*answers, *later])
    if config.pipeline == SRA:
        counts["reform_fallbacks"] = sum(bool(row[-1]) for row in reform_trace)
    return profiles, counts, trace + reform_trace + profile_trace


def _outcomes(
    train: TwoDomainData, n_asked: int, profiles: Sequence[str], answers: Sequence[ChatAnswer]
) -> dict[str, Any]:
    """Requests and users by what came of them."""
    failed = Counter(prompts.failure(answer) for answer in answers)
    return {
        "asked": len(answers),
        "failed": {kind: n for kind, n in sorted(failed.items()) if kind},
        "users_not_asked": len(train.users) - n_asked,
        "users_failed": n_asked - sum(bool(text) for text in profiles),
    }


def user_groups(train: TwoDomainData, item_group: np.ndarray, texts: Sequence[str]) -> dict[int, list[Group]]:
    """Each user's groups of similar items, domain A first, in each the largest first, ties by cluster.

    An item met several times stands where it was met last, and the latest ``MAX_GROUP_ITEMS`` are told; items without
    a group or without text are left out.

    Args:
        train: augmented training rows.
        item_group: ``[N]`` cluster of each item within its domain.
        texts: ``[N]``.
    """
    rows = _told_rows(train, texts)
    rows = rows[item_group[train.item[rows]] != NO_CLUSTER]
    n_groups = item_group.max(initial=0) + 1
    key = (train.user[rows] * 2 + train.item_domain[train.item[rows]]) * n_groups + item_group[train.item[rows]]
    order = np.argsort(key, kind="stable")
    found, first, size = np.unique(key[order], return_index=True, return_counts=True)
    owner = found // n_groups  # two per user, one for each domain
    items = train.item[rows[order]].tolist()
    groups: dict[int, list[Group]] = {}
    for place in np.lexsort((-size, owner)).tolist():
        part = items[first[place] : first[place] + size[place]][-MAX_GROUP_ITEMS:]
        user, domain = divmod(int(owner[place]), 2)
        groups.setdefault(user, []).append(Group(domain, int(size[place]), [texts[item] for item in part]))
    return groups


def latest_items(train: TwoDomainData, texts: Sequence[str]) -> dict[int, list[tuple[int, str]]]:
    """Domain and text of each user's latest ``MAX_PLAIN_ITEMS`` items, oldest first; each item where met last."""
    found: dict[int, list[tuple[int, str]]] = {}
    for row in _told_rows(train, texts).tolist():
        item = train.item[row]
        found.setdefault(int(train.user[row]), []).append((int(train.item_domain[item]), texts[item]))
    return {user: items[-MAX_PLAIN_ITEMS:] for user, items in found.items()}


def _told_rows(train: TwoDomainData, texts: Sequence[str]) -> np.ndarray:
    """Increasing rows whose item has a text; of a user's several rows of one item the last."""
    n = len(train.user)
    _, last = np.unique((train.user * len(train.items) + train.item)[::-1], return_index=True)
    rows = np.sort(n - 1 - last)
    return rows[np.array([bool(text) for text in texts], bool)[train.item[rows]]]


def calls_of(groups: dict[int, list[Group]]) -> list[Call]:
    """User and groups of each call: all of a user's in one, or in several of about the same size."""
    calls = []
    for user, own in groups.items():
        n = -(-len(own) // MAX_GROUPS)
        bounds = [len(own) * place // n for place in range(n + 1)]
        calls += [(user, own[a:b]) for a, b in itertools.pairwise(bounds)]
    return calls


def typical_items(
    train: TwoDomainData, item_group: np.ndarray, distance: np.ndarray, texts: Sequence[str], domain: int
) -> list[str]:
    """Texts of at most ``N_EXAMPLES`` real items: the one nearest its centroid in each of the largest clusters."""
    own = np.flatnonzero((train.item_domain == domain) & ~train.virtual & (item_group != NO_CLUSTER))
    own = own[[bool(texts[item]) for item in own.tolist()]] if len(own) else own
    order = own[np.lexsort((distance[own], item_group[own]))]
    cluster, first, size = np.unique(item_group[order], return_index=True, return_counts=True)
    return [texts[order[first[place]]] for place in np.argsort(-size, kind="stable")[:N_EXAMPLES].tolist()]


def summarize_requests(train: TwoDomainData, calls: Sequence[Call], writer: Writer) -> list[ChatRequest]:
    """The first step: what is behind each group; one request per call."""
    return [
        prompts.summarize(writer, groups, train.domains, f"{train.users[user]}: summary of {len(groups)} groups")
        for user, groups in calls
    ]


def reform_requests(
    domains: tuple[str, str], spreads: Sequence[Spread], examples: Sequence[Sequence[str]], writer: Writer
) -> list[ChatRequest]:
    """The second step: one request per spread over the domains, of which there are ten at most.

    Args:
        domains: names.
        spreads: bin and stronger domain.
        examples: texts of typical items of each domain.
        writer: whose template is used.
    """
    requests = []
    for spread in spreads:
        major, minor = spread[1], 1 - spread[1]
        told = [examples[major], examples[minor]]
        requests.append(prompts.reform(writer, _in_words(spread, domains), domains[major], domains[minor], told))
    return requests


Likes = dict[int, tuple[list[str], list[str]]]


def analyze_requests(
    train: TwoDomainData, likes: Likes, balance: Mapping[Spread, str], writer: Writer
) -> list[ChatRequest]:
    """The third step: a profile from the summaries of both domains and the text on the user's spread over them."""
    spreads = user_spreads(train)
    return [
        prompts.analyze(writer, own, balance[spreads[user]], train.domains, f"{train.users[user]}: profile")
        for user, own in likes.items()
    ]


def compose_requests(train: TwoDomainData, likes: Likes, writer: Writer) -> list[ChatRequest]:
    """LLM4CDSR's second step: a profile from the summaries of both domains."""
    return [
        prompts.compose(writer, own, train.domains, f"{train.users[user]}: profile") for user, own in likes.items()
    ]


def plain_requests(
    train: TwoDomainData, items: Mapping[int, Sequence[tuple[int, str]]], writer: Writer
) -> list[ChatRequest]:
    """The ablation: a profile straight from the items."""
    return [prompts.plain(writer, own, train.domains, f"{train.users[user]}: profile") for user, own in items.items()]


def _likes(
    train: TwoDomainData, calls: Sequence[Call], answers: Sequence[ChatAnswer]
) -> tuple[Likes, list[tuple[Any, ...]]]:
    """Summaries by user and domain, of users none of whose calls failed and who have one; and the trace."""
    likes: Likes = {user: ([], []) for user, _ in calls}
    trace: list[tuple[Any, ...]] = []
    for (user, groups), answer in zip(calls, answers, strict=True):
        name = train.users[user]
        failure = prompts.failure(answer)
        if failure:
            likes.pop(user, None)
            trace.append((name, "summarize", "", 0, "", failure))
            continue
        for group, text in zip(groups, prompts.parse_summaries(answer.value), strict=True):
            trace.append((name, "summarize", train.domains[group.domain], group.size, text, ""))
            if user in likes and prompts.says_something(text):
                likes[user][group.domain].append(text)
    return {user: own for user, own in likes.items() if any(own)}, trace


def _reformed(
    train: TwoDomainData, spreads: Sequence[Spread], answers: Sequence[ChatAnswer]
) -> tuple[dict[Spread, str], list[tuple[Any, ...]]]:
    """The text on each spread, the hand-written one where the request failed; and the trace."""
    balance, trace = {}, []
    for spread, answer in zip(spreads, answers, strict=True):
        failure = prompts.failure(answer)
        text = "" if failure else prompts.parse_reformed(answer.value)
        failure = failure or ("" if prompts.says_something(text) else "no text")
        balance[spread] = _in_words(spread, train.domains) if failure else text
        trace.append(("", "reform", train.domains[spread[1]], 0, balance[spread], failure))
    return balance, trace


def _profiles(
    train: TwoDomainData, users: Iterable[int], answers: Sequence[ChatAnswer], step: str
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The profile of each user, ``""`` for one without; and the trace."""
    profiles, trace = [""] * len(train.users), []
    for user, answer in zip(users, answers, strict=True):
        failure = prompts.failure(answer)
        text = "" if failure else prompts.parse_profile(answer.value)
        profiles[user] = text if prompts.says_something(text) else ""
        trace.append((train.users[user], step, "", 0, text, failure or ("" if profiles[user] else "no text")))
    return profiles, trace


# ---- files -------------------------------------------------------------------------------------------------------


def write_user_file(users: np.ndarray, texts: Sequence[str], path: Path) -> None:
    """Write the atomic file ``.user`` with columns user_id and profile."""
    write_table(path, {"user_id:token": users, "profile:token_seq": [sanitize(text) for text in texts]})


def embed_profiles(
    users: np.ndarray, texts: Sequence[str], has_profile: np.ndarray, embedder: Embedder, path: Path
) -> EmbeddingTable:
    """Vectors of the users who have a profile; the others are not in the table."""
    known = np.flatnonzero(has_profile)
    return embed_texts(users[known], [texts[user] for user in known], embedder, path, "user")
