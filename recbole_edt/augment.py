"""Training sequences plus items of the other domain that a user might have met (paper section 3.2).

Representatives speak for a user, a generator proposes, a filter keeps what fits both domains, and the rest is
inserted after the item it resembles. All of it looks at training rows only, so that no held-out row matters.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recbole_edt import generation, prompts
from recbole_edt.atomic import TwoDomainData, offsets_of
from recbole_edt.embeddings import EmbeddingTable
from recbole_edt.errors import ConfigError, DataError, choice_faults, whole_number_faults
from recbole_edt.files import read_bytes, write_text
from recbole_edt.generation import Asked, Proposed, items_with_vector, nearest_items, way_of
from recbole_edt.offline import OfflineGenerator
from recbole_edt.prompts import Writer
from recbole_edt.similarity import group_items, nearest_cosine_quantile, normalise, representatives
from recbole_edt.split import MIN_RAW_ROWS, domain_ratio, training_rows

_CHOICES = {
    "generator": ("offline", "llm"),
    "generated_items": ("virtual", "catalog"),
    "directions": ("both", "minority"),
    "insertion": ("after_source", "append", "random", "none"),
}
_QUANTILE = re.compile(r"q(\d+(\.\d*)?|\.\d+)")
_BLOCK = 16384  # proposals compared at a time

TRACE_COLUMNS = (
    *("user", "source", "target", *prompts.FIELDS, "item"),
    *("source_score", "target_score", "rank", "fate", "after", "place"),
)


@dataclass(frozen=True)
class AugmentConfig:
    """How sequences are augmented (method, section 3)."""

    generator: str = "offline"
    """``offline``: co-occurrence of training rows, no LLM; ``llm``: a language model writes items (paper, eq. 4)."""
    generated_items: str = "virtual"
    """What the LLM writes is a ``virtual`` item unless the catalogue has it (paper), or stands for the nearest item
    of the ``catalog`` that the user does not have in training."""
    n_clusters: int = 10
    """Item groups per domain, at least 1; a user has at most one representative in each (paper: K = 10)."""
    n_generated: int = 10
    """Items proposed per user and direction, at least 1 (the paper gives no number)."""
    k: int = 3
    """A proposal must be among the k most like the source representatives, at least 1 (paper: not given)."""
    tau: float | str = "q0.10"
    """Least cosine to the target representatives: a number in [-1, 1] (paper: 0.90, for DeepSeek's vectors),
    or ``q0.10``, the 10 % quantile of the target domain's cosines between nearest neighbours."""
    directions: str = "both"
    """``both`` domains receive items (paper), or only each user's ``minority`` domain."""
    insertion: str = "after_source"
    """``after_source``: after the item it resembles (paper); ablations ``append``, ``random``, ``none``."""
    filter: bool = True
    """Whether eq. 6 is applied; false is the paper's ablation without the noise filter."""
    injection_ratio: float = 1.0
    """Share of the kept items that are inserted, drawn at random, above 0 and at most 1 (paper's tables 6 and 7)."""
    seed: int = 42
    """For k-means, the quantile's sample, the injected share and random insertion; 0 or more."""

    def faults(self) -> list[str]:
        """What is wrong with the values, one ``key: message`` each."""
        found = choice_faults(self, _CHOICES)
        found += whole_number_faults(self, {"n_clusters": 1, "n_generated": 1, "k": 1, "seed": 0})
        if not isinstance(self.filter, bool):
            found.append(f"filter: {self.filter!r} is not true or false")
        return found + _tau_faults(self.tau) + _ratio_faults(self.injection_ratio)

    def validate(self) -> None:
        """Raises: ConfigError listing every fault."""
        if found := self.faults():
            raise ConfigError("\n".join(f"augment.{fault}" for fault in found))


def _tau_faults(tau: float | str) -> list[str]:
    if isinstance(tau, str):
        if _QUANTILE.fullmatch(tau) and float(tau[1:]) <= 1:
            return []
        return [f"tau: {tau!r} is neither a number in [-1, 1] nor a quantile such as q0.10"]
    if isinstance(tau, (int, float)) and not isinstance(tau, bool) and -1 <= tau <= 1:
        return []
    return [f"tau: {tau!r} is not in [-1, 1]; write a cosine such as 0.9 or a quantile such as q0.10"]


def _ratio_faults(ratio: float) -> list[str]:
    if isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and 0 < ratio <= 1:
        return []
    return [f"injection_ratio: {ratio!r} is not above 0 and at most 1; to insert nothing choose insertion: none"]


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
    row = _data_rows(data, train)[_anchor(train, row, config)]
    _tell_place(trace, data, row)
    augmented = _without_unused(insert_after_source(data, Insertions(item, row, score)))
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
    return [_data_rows(data, train)[rows] for rows in found]


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
    return own[_dominant(train, source)[train.user[own]]] if config.directions == "minority" else own


def _requests(train: TwoDomainData, speakers: list[np.ndarray], config: AugmentConfig, writer: Writer) -> Asked:
    speaking = [_speaking(train, speakers, source, config) for source in (0, 1)]
    return generation.requests_for(train, speaking, config.n_generated, writer)


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
        data, vectors, found = generation.proposals(
            data, train, vectors, asked, answers, source, from_catalogue, writer
        )
        proposed.append(found)
    return data, vectors, proposed, generation.outcomes(train, asked, answers)


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
    return Proposed(found.user, found.item, nothing, pd.DataFrame(dict.fromkeys(prompts.FIELDS, nothing)))


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
    target_score[unknown] = _likeness_to_catalogue(train, vectors, item[unknown], 1 - source)
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
        _trace(train, source, proposed, fate, live, scores),
    )


def _likeness_to_catalogue(train: TwoDomainData, vectors: np.ndarray, item: np.ndarray, domain: int) -> np.ndarray:
    """``[P]`` cosine to the nearest real item of the domain, for users who have none of it to compare with.

    They need only be like something that exists; what exists itself has 1.
    """
    found, place = np.unique(item, return_inverse=True)
    score = np.ones(len(found), np.float32)
    real = items_with_vector(train, vectors, domain)
    score[train.virtual[found]] = nearest_items(vectors[found[train.virtual[found]]], vectors[real])[1]
    return score[place]


def _trace(
    train: TwoDomainData,
    source: int,
    proposed: Proposed,
    fate: np.ndarray,
    live: np.ndarray,
    scores: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """A row per proposal; ``_tell_place`` fills in where it stands."""
    frame = proposed.fields.assign(
        user=train.users[proposed.user],
        source=train.domains[source],
        target=train.domains[1 - source],
        item=np.where(proposed.item >= 0, train.items[proposed.item], ""),
        source_score=np.nan,
        target_score=np.nan,
        rank=0,
        fate=fate,
        after="",
        place=0,
    )
    for name, values in scores.items():
        column = frame[name].to_numpy().copy()
        column[live] = values
        frame[name] = column
    return frame[list(TRACE_COLUMNS)]


def _tell_place(trace: pd.DataFrame, data: TwoDomainData, row: np.ndarray) -> None:
    """Write into ``trace`` after which item, and which raw row of the user's (from 1), each kept proposal stands."""
    kept = (trace["fate"] == "kept").to_numpy()
    trace.loc[kept, "after"] = data.items[data.item[row]]
    trace.loc[kept, "place"] = row - data.offsets[data.user[row]] + 1


def write_trace(trace: pd.DataFrame, path: Path) -> None:
    """Write one JSON object per row and line, with the values that say something; scores with six decimals."""
    names = list(trace)
    lines = []
    for row in trace.itertuples(index=False, name=None):
        told = {name: value for name, value in zip(names, row, strict=True) if _is_told(value)}
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in told.items()}
        lines.append(json.dumps(rounded, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _is_told(value: Any) -> bool:
    """Whether it is neither NaN nor ``""`` nor a whole number 0, which is no rank and no place."""
    return value == value and value != "" and not (isinstance(value, int) and value == 0)


def read_trace(path: Path, user: str | None = None) -> pd.DataFrame:
    """Rows that ``write_trace`` wrote, of one user if named.

    Raises: DataError with the line that is not a JSON object.
    """
    rows = []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number}: no row of a trace ({error}); run the stage again") from error
        if user is None or row.get("user") == user:
            rows.append(row)
    trace = pd.DataFrame(rows, columns=list(TRACE_COLUMNS))
    numbers = {"source_score": np.nan, "target_score": np.nan, "rank": 0, "place": 0}
    filled = trace.fillna({name: numbers.get(name, "") for name in TRACE_COLUMNS if numbers.get(name) is not np.nan})
    return filled.astype({"source_score": float, "target_score": float, "rank": int, "place": int})


# ---- the filter --------------------------------------------------------------------------------------------------


def _dominant(train: TwoDomainData, domain: int) -> np.ndarray:
    """``[U]``: whether the user has more rows in ``domain`` than in the other."""
    n_in = np.bincount(train.user[train.item_domain[train.item] == domain], minlength=len(train.users))
    return 2 * n_in > np.diff(train.offsets)


def resolve_tau(tau: float | str, target_vectors: np.ndarray, seed: int) -> float:
    """A cosine from ``tau``: itself, or that quantile of the target domain's nearest-neighbour cosines."""
    if isinstance(tau, str):
        return nearest_cosine_quantile(target_vectors, float(tau[1:]), seed)
    return float(tau)


def best_match(
    vectors: np.ndarray, item: np.ndarray, user: np.ndarray, spoken: np.ndarray, speaker: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each generated item the most similar representative of its user (eq. 5).

    Args:
        vectors: ``[N, D]`` normalised.
        item: ``[P]`` generated items.
        user: ``[P]`` whom each is for.
        spoken: ``[R]`` items that represent users in one domain.
        speaker: ``[R]`` whom each represents, never decreasing; a user's in time order.

    Returns:
        index ``[P]`` into the representatives, ties to the most recent, and the cosine ``[P]``;
        index -1 and cosine ``-inf`` where the user has none.
    """
    best = np.full(len(item), -1, np.int64)
    score = np.full(len(item), -np.inf, np.float32)
    first, end = np.searchsorted(speaker, user, "left"), np.searchsorted(speaker, user, "right")
    for start in range(0, len(item), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(item)))
        for place in range((end - first)[block].max()):
            here = block[first[block] + place < end[block]]
            other = first[here] + place
            cosine = np.einsum("pd,pd->p", vectors[item[here]], vectors[spoken[other]])
            better = cosine >= score[here]
            best[here[better]], score[here[better]] = other[better], cosine[better]
    return best, score


def keep_relevant(
    user: np.ndarray, source_score: np.ndarray, target_score: np.ndarray, k: int, tau: float
) -> np.ndarray:
    """Which generated items pass the noise filter of one direction (eq. 6).

    Args:
        user: ``[P]`` whom each item is for.
        source_score: ``[P]`` cosine to the source representatives; its rank within the user must be at most
            k. Equal scores rank in the order given.
        target_score: ``[P]`` cosine to the target representatives; must be at least tau.
        k: items that may pass by rank.
        tau: least cosine.

    Returns: ``[P]`` bool.
    """
    return (rank_within(user, source_score) <= k) & (target_score >= tau)


def rank_within(user: np.ndarray, score: np.ndarray) -> np.ndarray:
    """``[P]`` place of each score among its user's, from 1 for the highest; equal ones in the order given."""
    order = np.lexsort((-score, user))
    sorted_user = user[order]
    rank = np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - np.searchsorted(sorted_user, sorted_user) + 1
    return rank


# ---- insertion ---------------------------------------------------------------------------------------------------


def injected(n: int, ratio: float, seed: int) -> np.ndarray:
    """``[n]`` bool: which of ``n`` kept items go in, a share ``ratio`` at random; a higher ratio only adds."""
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(seed).permutation(n)[: round(ratio * n)]] = True
    return chosen


def _anchor(train: TwoDomainData, source_row: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Row of ``train`` after which each item goes."""
    user = train.user[source_row]
    if config.insertion == "append":
        return train.offsets[user + 1] - 1
    if config.insertion == "random":
        return np.random.default_rng(config.seed).integers(train.offsets[user], train.offsets[user + 1])
    return source_row


def _data_rows(data: TwoDomainData, train: TwoDomainData) -> np.ndarray:
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


def _without_unused(data: TwoDomainData) -> TwoDomainData:
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
