"""Training sequences plus items of the other domain that a user might have met (paper section 3.2).

Representatives speak for a user, a generator proposes, a filter keeps what fits both domains, and the rest is
inserted after the item it resembles. All of it looks at training rows only, so that no held-out row matters.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt.atomic import TwoDomainData, offsets_of
from recbole_edt.embeddings import EmbeddingTable, item_text
from recbole_edt.errors import ConfigError, DataError, choice_faults, whole_number_faults
from recbole_edt.offline import OfflineGenerator
from recbole_edt.similarity import group_items, nearest_cosine_quantile, normalise, representatives
from recbole_edt.split import MIN_RAW_ROWS, domain_ratio, training_rows

GENERATORS = {"offline": OfflineGenerator}

_CHOICES = {
    "generator": tuple(GENERATORS),
    "directions": ("both", "minority"),
    "insertion": ("after_source", "append", "random", "none"),
}
_QUANTILE = re.compile(r"q(\d+(\.\d*)?|\.\d+)")
_BLOCK = 16384  # proposals compared at a time


@dataclass(frozen=True)
class AugmentConfig:
    """How sequences are augmented (method, section 3)."""

    generator: str = "offline"
    """``offline``: co-occurrence of training rows, no LLM (the paper asks an LLM)."""
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


def augment(
    data: TwoDomainData, table: EmbeddingTable, config: AugmentConfig
) -> tuple[TwoDomainData, dict[str, Any]]:
    """The data with generated rows inserted, and counts of what happened on the way.

    The last two raw rows of every user stay last, and taking the generated rows out gives the data back.
    Users with fewer than 3 raw rows receive nothing.

    Args:
        data: raw rows only.
        table: a vector for every item.
        config: see its fields.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the data are augmented already, or the table lacks items.
    """
    config.validate()
    _check_input(data, table)
    train = training_rows(data)
    if config.insertion == "none":
        return data, _summary(train, data)
    vectors = normalise(table.lookup(data.items))
    speakers = _representatives(data, train, vectors, config)
    counts: dict[str, Any] = {}
    parts = []
    for source in (0, 1):
        kept, found = _one_direction(train, vectors, speakers, source, config)
        name = f"{data.domains[source]}_to_{data.domains[1 - source]}"
        counts.update({f"{key}_{name}": value for key, value in found.items()})
        parts.append(kept)
    item, row, score = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("item", "row", "score")
    )
    row = _data_rows(data, train)[_anchor(train, row, config)]
    augmented = insert_after_source(data, Insertions(item, row, score))
    return augmented, counts | _summary(train, augmented)


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


def _one_direction(
    train: TwoDomainData, vectors: np.ndarray, speakers: list[np.ndarray], source: int, config: AugmentConfig
) -> tuple[Insertions, dict[str, Any]]:
    """Generate and filter from domain ``source`` to the other (eq. 4-6); rows are those of ``train``."""
    own, other = speakers[source], speakers[1 - source]
    if config.directions == "minority":
        own = own[_dominant(train, source)[train.user[own]]]
    proposals = GENERATORS[config.generator]().propose(train, own, vectors, source, config.n_generated)
    user, item = proposals.user, proposals.item
    nearest, source_score = best_match(vectors, item, user, train.item[own], train.user[own])
    kept, counts = np.ones(len(item), bool), {"generated": len(item)}
    if config.filter:
        _, target_score = best_match(vectors, item, user, train.item[other], train.user[other])
        # Without a history in the target domain an item need only be like something that exists: these exist.
        target_score[np.isneginf(target_score)] = 1
        tau = resolve_tau(config.tau, vectors[(train.item_domain != source) & ~train.virtual], config.seed)
        kept, counts = _filtered(user, source_score, target_score, config.k, tau)
    counts["kept"] = int(kept.sum())
    kept[kept] = injected(counts["kept"], config.injection_ratio, config.seed)
    return Insertions(item[kept], own[nearest[kept]], source_score[kept]), counts


def _filtered(
    user: np.ndarray, source_score: np.ndarray, target_score: np.ndarray, k: int, tau: float
) -> tuple[np.ndarray, dict[str, Any]]:
    kept = keep_relevant(user, source_score, target_score, k, tau)
    n, above = len(kept), int((target_score >= tau).sum())
    return kept, {"generated": n, "tau": tau, "above_tau": above, "share_kept": float(kept.sum() / max(n, 1))}


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
    order = np.lexsort((-source_score, user))
    sorted_user = user[order]
    ranked = np.zeros(len(user), bool)
    ranked[order] = np.arange(len(user)) - np.searchsorted(sorted_user, sorted_user) < k
    return ranked & (target_score >= tau)


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


def normalised_text(text: str) -> str:
    """The form in which two texts are the same item: compatibility characters, case and spaces evened out."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def add_virtual_items(
    data: TwoDomainData, fields: pd.DataFrame, domain: int
) -> tuple[TwoDomainData, np.ndarray]:
    """Give every generated record an item: the catalogue's if the text is there, else a virtual one.

    Args:
        data: the catalogue.
        fields: ``P`` generated records with text columns such as title and brand; missing values are allowed.
        domain: of the generated items; catalogue items of the other domain are never matched.

    Returns:
        the data with virtual items added at the end (token: a hash of domain and text, so that the same text
        is the same item in every run), and ``item [P]``, -1 for a record without text.
    """
    fields = fields.where(fields.notna(), "").astype(str)
    texts = [normalised_text(text) for text in item_text(fields)]
    own = np.flatnonzero(data.item_domain == domain)
    known = {"": -1}
    for item, text in zip(own, item_text(data.item_fields.iloc[own]), strict=True):
        known.setdefault(normalised_text(text), int(item))
    first: dict[str, int] = {}
    for record, text in enumerate(texts):
        if text not in known:
            first.setdefault(text, record)
    known.update({text: len(data.items) + place for place, text in enumerate(first)})
    item = np.array([known[text] for text in texts], np.int64)
    return _with_items(data, list(first), fields.iloc[list(first.values())], domain), item


def _with_items(data: TwoDomainData, texts: list[str], fields: pd.DataFrame, domain: int) -> TwoDomainData:
    keys = [f"{data.domains[domain]}\0{text}".encode() for text in texts]
    tokens = np.array([f"edt-virtual-{hashlib.sha256(key).hexdigest()[:16]}" for key in keys], object)
    return replace(
        data,
        items=np.concatenate([data.items, tokens]),
        item_domain=np.append(data.item_domain, np.full(len(texts), domain, np.int8)),
        item_fields=pd.concat([data.item_fields, fields], ignore_index=True).fillna(""),
        virtual=np.append(data.virtual, np.ones(len(texts), bool)),
    )
