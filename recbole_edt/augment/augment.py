"""Training sequences plus items of the other domain that a user might have met (paper section 3.2).

Representatives speak for a user, a generator proposes, a filter keeps what fits both domains, and the rest is
inserted after the item it resembles. All of it looks at training rows only, so that no held-out row matters.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recbole_edt.augment import proposals
from recbole_edt.augment.cooccurrence import OfflineGenerator
from recbole_edt.augment.filter import (
    best_match,
    dominant_in,
    injected,
    keep_relevant,
    likeness_to_catalogue,
    rank_within,
    resolve_tau,
)
from recbole_edt.augment.insert import Insertions, anchor_rows, insert_after_source, rows_in_data, without_unused_items
from recbole_edt.augment.proposals import Asked, Proposed, way_of
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.augment.trace import TRACE_COLUMNS, tell_places, trace_of
from recbole_edt.data.split import MIN_RAW_ROWS, domain_ratio, training_rows
from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.llm import templates
from recbole_edt.llm.templates import Writer
from recbole_edt.text.clusters import group_items, normalise, representatives
from recbole_edt.text.vectors import EmbeddingTable


class Augmented(NamedTuple):
    """What ``augment`` gives."""

    data: TwoDomainData
    """With the inserted rows, and with those virtual items that were inserted."""
    counts: dict[str, Any]
    """What happened on the way."""
    trace: pd.DataFrame
    """``TRACE_COLUMNS``: what became of each proposal, or why a request brought none."""


def augment(
    data: TwoDomainData, table: EmbeddingTable, config: AugmentConfig, writer: Writer | None = None
) -> Augmented:
    """The data with generated rows inserted, counts of what happened on the way, and the fate of each proposal.

    The last two raw rows of every user stay last, and taking the generated rows out gives the data back.
    Users with fewer than 3 raw rows receive nothing.

    Args:
        data: raw rows only.
        table: a vector for every item.
        config: see its fields.
        writer: the language model, for ``generator: llm``.

    Raises:
        ConfigError: a setting is out of range, or the language model is missing.
        DataError: the data are augmented already, the table lacks items, or new vectors do not fit it.
        LLMError: what the writer raises to stop a run.
    """
    config.validate()
    _check_input(data, table)
    train = training_rows(data)
    if config.insertion == "none":
        return Augmented(data, _summary(train, data), pd.DataFrame(columns=list(TRACE_COLUMNS)))
    vectors = normalise(table.lookup(data.items))
    speakers = _representatives(data, train, vectors, config)
    counts: dict[str, Any] = {}
    if config.generator == "llm":
        data, vectors, proposed, counts = _written(data, train, vectors, speakers, config, writer)
        train = training_rows(data)
    else:
        proposed = [_offline(train, vectors, speakers, source, config) for source in (0, 1)]
    parts = [_one_direction(train, vectors, speakers, source, config, proposed[source]) for source in (0, 1)]
    for part in parts:
        counts.update(part.counts)
    trace = pd.concat([part.trace for part in parts], ignore_index=True)
    item, row, score = (np.concatenate([getattr(part.kept, key) for part in parts]) for key in ("item", "row", "score"))
    row = rows_in_data(data, train)[anchor_rows(train, row, config)]
    tell_places(trace, data, row)
    augmented = without_unused_items(insert_after_source(data, Insertions(item, row, score)))
    return Augmented(augmented, counts | _summary(train, augmented), trace)


def generation_requests(data: TwoDomainData, table: EmbeddingTable, config: AugmentConfig, writer: Writer) -> Asked:
    """All that ``augment`` will ask, by direction and then user; nothing is sent.

    A user's requests depend on the catalogue and on the user's own training rows alone.
    """
    config.validate()
    _check_input(data, table)
    train = training_rows(data)
    if config.insertion == "none" or config.generator != "llm":
        return Asked(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    speakers = _representatives(data, train, normalise(table.lookup(data.items)), config)
    return _requests(train, speakers, config, writer)


def user_representatives(data: TwoDomainData, table: EmbeddingTable, config: AugmentConfig) -> list[np.ndarray]:
    """Rows of ``data`` that speak for their users in each domain, increasing."""
    train = training_rows(data)
    found = _representatives(data, train, normalise(table.lookup(data.items)), config)
    return [rows_in_data(data, train)[rows] for rows in found]


def _check_input(data: TwoDomainData, table: EmbeddingTable) -> None:
    if data.generated.any():
        raise DataError(f"data set '{data.name}' has generated rows already; augment the raw files")
    missing = ~table.has(data.items)
    if missing.any():
        raise DataError(
            f"the embeddings lack {missing.sum()} of {len(data.items)} items "
            f"(first: '{data.items[missing][0]}'); embed the items of this data set again"
        )


def _representatives(
    data: TwoDomainData, train: TwoDomainData, vectors: np.ndarray, config: AugmentConfig
) -> list[np.ndarray]:
    """Rows of ``train`` per domain: the representatives of the users who may receive items."""
    groups, distance = group_items(data, vectors, config.n_clusters, config.seed)
    found = [representatives(train, groups, distance, domain) for domain in (0, 1)]
    receives = np.diff(data.offsets) >= MIN_RAW_ROWS
    return [rows[receives[train.user[rows]]] for rows in found]


def _speaking(train: TwoDomainData, speakers: list[np.ndarray], source: int, config: AugmentConfig) -> np.ndarray:
    """Rows of the representatives from which items of the other domain are proposed."""
    own = speakers[source]
    return own[dominant_in(train, source)[train.user[own]]] if config.directions == "minority" else own


def _requests(train: TwoDomainData, speakers: list[np.ndarray], config: AugmentConfig, writer: Writer) -> Asked:
    speaking = [_speaking(train, speakers, source, config) for source in (0, 1)]
    return proposals.requests_for(train, speaking, config.n_generated, writer)


def _written(
    data: TwoDomainData,
    train: TwoDomainData,
    vectors: np.ndarray,
    speakers: list[np.ndarray],
    config: AugmentConfig,
    writer: Writer | None,
) -> tuple[TwoDomainData, np.ndarray, list[Proposed], dict[str, Any]]:
    """What the language model proposes in each direction, in a catalogue that has it; and counts."""
    if writer is None:
        raise ConfigError("augment.generator: 'llm' needs a language model; pass a writer or choose offline")
    asked = _requests(train, speakers, config, writer)
    answers = writer.ask(asked.requests, "writing items")
    from_catalogue, proposed = config.generated_items == "catalog", []
    for source in (0, 1):
        data, vectors, found = proposals.proposals(
            data, train, vectors, asked, answers, source, from_catalogue, writer
        )
        proposed.append(found)
    return data, vectors, proposed, proposals.outcomes(train, asked, answers)


class _Direction(NamedTuple):
    kept: Insertions
    counts: dict[str, Any]
    trace: pd.DataFrame


def _offline(
    train: TwoDomainData, vectors: np.ndarray, speakers: list[np.ndarray], source: int, config: AugmentConfig
) -> Proposed:
    own = _speaking(train, speakers, source, config)
    found = OfflineGenerator().propose(train, own, vectors, source, config.n_generated)
    nothing = np.full(len(found.item), "", object)
    return Proposed(found.user, found.item, nothing, pd.DataFrame(dict.fromkeys(templates.FIELDS, nothing)))


def _one_direction(
    train: TwoDomainData,
    vectors: np.ndarray,
    speakers: list[np.ndarray],
    source: int,
    config: AugmentConfig,
    proposed: Proposed,
) -> _Direction:
    """Score and filter what was proposed from domain ``source`` to the other (eq. 5, 6)."""
    own, other = _speaking(train, speakers, source, config), speakers[1 - source]
    live = np.flatnonzero(proposed.fate == "")
    user, item = proposed.user[live], proposed.item[live]
    nearest, source_score = best_match(vectors, item, user, train.item[own], train.user[own])
    _, target_score = best_match(vectors, item, user, train.item[other], train.user[other])
    unknown = np.isneginf(target_score)
    target_score[unknown] = likeness_to_catalogue(train, vectors, item[unknown], 1 - source)
    rank = rank_within(user, source_score)
    n_items = int((proposed.item >= 0).sum())  # a failed request and a record without text have none
    kept, counts = np.ones(len(item), bool), dict[str, Any](generated=n_items)
    if config.filter:
        tau = resolve_tau(config.tau, vectors[(train.item_domain != source) & ~train.virtual], config.seed)
        kept = keep_relevant(user, source_score, target_score, config.k, tau)
        above, share = int((target_score >= tau).sum()), float(kept.sum() / max(n_items, 1))
        counts |= {"tau": tau, "above_tau": above, "share_kept": share}
    counts["kept"] = int(kept.sum())
    fate = proposed.fate.copy()
    fate[live] = np.where(kept, "kept", np.where(rank > config.k, "rank", "tau"))
    kept[kept] = injected(counts["kept"], config.injection_ratio, config.seed)
    fate[live[(fate[live] == "kept") & ~kept]] = "not injected"
    scores = {"source_score": source_score, "target_score": target_score, "rank": rank}
    if config.generator == "llm":
        counts["fates"] = dict(sorted(Counter(fate.tolist()).items()))
    return _Direction(
        Insertions(item[kept], own[nearest[kept]], source_score[kept]),
        {f"{key}_{way_of(train, source)}": value for key, value in counts.items()},
        trace_of(train, source, proposed, fate, live, scores),
    )


def _summary(train: TwoDomainData, augmented: TwoDomainData) -> dict[str, Any]:
    inserted = augmented.user[augmented.generated]
    return {
        "inserted": len(inserted),
        "inserted_per_user": len(inserted) / max(len(train.users), 1),
        "users_with_inserted": len(np.unique(inserted)),
        "mean_ratio_before": _mean_ratio(train),
        "mean_ratio_after": _mean_ratio(training_rows(augmented)),
    }


def _mean_ratio(train: TwoDomainData) -> float:
    active = np.diff(train.offsets) > 0
    return float(domain_ratio(train)[active].mean()) if active.any() else 0.0
