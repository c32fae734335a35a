"""Who is asked what in each step of profiling: groups of items, requests, and profiles from the answers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from recbole_edt import cleaning
from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.llm import templates
from recbole_edt.llm.questions import ChatAnswer, ChatRequest
from recbole_edt.llm.templates import Writer
from recbole_edt.profile import prompts
from recbole_edt.profile.balance import Spread, spread_in_words, user_spreads
from recbole_edt.profile.prompts import Group
from recbole_edt.profile.settings import SRA, ProfileConfig
from recbole_edt.text.clusters import NO_CLUSTER, group_items
from recbole_edt.text.item_text import item_text
from recbole_edt.text.vectors import EmbeddingTable

MAX_GROUP_ITEMS, MAX_PLAIN_ITEMS = 10, 100
"""Items told of one group, and of one user in the plain pipeline: the latest ones."""
MAX_GROUPS = 10
"""Groups of one user in one call; a user with more has several calls of about the same size."""
N_EXAMPLES = 5
"""Typical items of each domain that the reform is told."""


# ---- with a language model ---------------------------------------------------------------------------------------

Call = tuple[int, list[Group]]


def told_texts(train: TwoDomainData) -> list[str]:
    """``[N]`` texts as they stand in a prompt."""
    return [cleaning.clean(text) for text in item_text(train.item_fields)]


class FirstWave(NamedTuple):
    calls: list[Call]
    spreads: list[Spread]
    requests: list[ChatRequest]


def first_wave(train: TwoDomainData, table: EmbeddingTable, config: ProfileConfig, writer: Writer) -> FirstWave:
    texts = told_texts(train)
    item_group, distance = group_items(train, table.lookup(train.items), config.n_clusters, config.seed)
    calls = calls_of(user_groups(train, item_group, texts))
    of_user = user_spreads(train)
    spreads = sorted({of_user[user] for user, _ in calls}) if config.pipeline == SRA else []
    examples = [typical_items(train, item_group, distance, texts, domain) for domain in (0, 1)]
    requests = [
        *summarize_requests(train, calls, writer),
        *reform_requests(train.domains, spreads, examples, writer),
    ]
    return FirstWave(calls, spreads, requests)


def outcomes_of(
    train: TwoDomainData, n_asked: int, profiles: Sequence[str], answers: Sequence[ChatAnswer]
) -> dict[str, Any]:
    """Requests and users by what came of them."""
    failed = Counter(templates.failure(answer) for answer in answers)
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
        requests.append(prompts.reform(writer, spread_in_words(spread, domains), domains[major], domains[minor], told))
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


def likes_of(
    train: TwoDomainData, calls: Sequence[Call], answers: Sequence[ChatAnswer]
) -> tuple[Likes, list[tuple[Any, ...]]]:
    """Summaries by user and domain, of users none of whose calls failed and who have one; and the trace."""
    likes: Likes = {user: ([], []) for user, _ in calls}
    trace: list[tuple[Any, ...]] = []
    for (user, groups), answer in zip(calls, answers, strict=True):
        name = train.users[user]
        failure = templates.failure(answer)
        if failure:
            likes.pop(user, None)
            trace.append((name, "summarize", "", 0, "", failure))
            continue
        for group, text in zip(groups, prompts.parse_summaries(answer.value), strict=True):
            trace.append((name, "summarize", train.domains[group.domain], group.size, text, ""))
            if user in likes and cleaning.says_something(text):
                likes[user][group.domain].append(text)
    return {user: own for user, own in likes.items() if any(own)}, trace


def texts_on_spreads(
    train: TwoDomainData, spreads: Sequence[Spread], answers: Sequence[ChatAnswer]
) -> tuple[dict[Spread, str], list[tuple[Any, ...]]]:
    """The text on each spread, the hand-written one where the request failed; and the trace."""
    balance, trace = {}, []
    for spread, answer in zip(spreads, answers, strict=True):
        failure = templates.failure(answer)
        text = "" if failure else prompts.parse_reformed(answer.value)
        failure = failure or ("" if cleaning.says_something(text) else "no text")
        balance[spread] = spread_in_words(spread, train.domains) if failure else text
        trace.append(("", "reform", train.domains[spread[1]], 0, balance[spread], failure))
    return balance, trace


def profiles_from(
    train: TwoDomainData, users: Iterable[int], answers: Sequence[ChatAnswer], step: str
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The profile of each user, ``""`` for one without; and the trace."""
    profiles, trace = [""] * len(train.users), []
    for user, answer in zip(users, answers, strict=True):
        failure = templates.failure(answer)
        text = "" if failure else prompts.parse_profile(answer.value)
        profiles[user] = text if cleaning.says_something(text) else ""
        trace.append((train.users[user], step, "", 0, text, failure or ("" if profiles[user] else "no text")))
    return profiles, trace
