"""One text per user on what the user likes in each domain, and its vector (paper section 3.4).

Summarize each group of similar items, reform the imbalance of the domains into words, analyze both together. For
LLM4CDSR, whose profiles are hierarchical: summarize each group, then write one profile from the summaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recbole_edt.cleaning import sanitize
from recbole_edt.data.atomic import write_table
from recbole_edt.data.two_domains import TwoDomainData, keep_rows
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.llm.templates import Writer
from recbole_edt.profile.settings import HIERARCHICAL, PLAIN, SRA, ProfileConfig
from recbole_edt.profile.steps import (
    analyze_requests,
    compose_requests,
    first_wave,
    latest_items,
    likes_of,
    outcomes_of,
    plain_requests,
    profiles_from,
    texts_on_spreads,
    told_texts,
)
from recbole_edt.profile.telling_words import composed, telling_words
from recbole_edt.text.embedders import Embedder, embed_texts
from recbole_edt.text.item_text import item_text
from recbole_edt.text.vectors import EmbeddingTable

TRACE_COLUMNS = ("user", "step", "domain", "items", "text", "failure")


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
        profiles = composed(train, table, texts, config)
    has_profile = (np.diff(train.offsets) > 0) & np.array([bool(text) for text in profiles])
    counts = {"users": len(profiles), "profiles": int(has_profile.sum())} | counts
    return Profiles(profiles, has_profile, counts, pd.DataFrame(trace, columns=list(TRACE_COLUMNS)))


def _rows_of(train: TwoDomainData, config: ProfileConfig) -> TwoDomainData:
    """The rows that this kind of profiles tells of."""
    return keep_rows(train, ~train.generated) if config.pipeline == HIERARCHICAL else train


def _written(
    train: TwoDomainData, table: EmbeddingTable, config: ProfileConfig, writer: Writer | None
) -> tuple[list[str], dict[str, Any], list[tuple[Any, ...]]]:
    """Profiles, counts and trace of a language model."""
    if writer is None:
        raise ConfigError("profile.generator: 'llm' needs a language model; pass a writer or choose offline")
    if config.pipeline == PLAIN:
        items = latest_items(train, told_texts(train))
        requests = plain_requests(train, items, writer)
        answers = writer.ask(requests, "writing profiles")
        profiles, trace = profiles_from(train, items, answers, "plain")
        return profiles, outcomes_of(train, len(items), profiles, answers), trace
    first = first_wave(train, table, config, writer)
    answers = writer.ask(first.requests, "summarizing preferences")
    told, reformed = answers[: len(first.calls)], answers[len(first.calls) :]
    likes, trace = likes_of(train, first.calls, told)
    balance, reform_trace = texts_on_spreads(train, first.spreads, reformed)
    if config.pipeline == SRA:
        step, requests = "analyze", analyze_requests(train, likes, balance, writer)
    else:
        step, requests = "compose", compose_requests(train, likes, writer)
    later = writer.ask(requests, "writing profiles")
    profiles, profile_trace = profiles_from(train, likes, later, step)
    n_asked = len({user for user, _ in first.calls})
    counts = outcomes_of(train, n_asked, profiles, [*answers, *later])
    if config.pipeline == SRA:
        counts["reform_fallbacks"] = sum(bool(row[-1]) for row in reform_trace)
    return profiles, counts, trace + reform_trace + profile_trace


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
