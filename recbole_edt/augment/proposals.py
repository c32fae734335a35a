"""What a language model is asked for a user, and which items it named: catalogue items, or new virtual ones.

Looks at training rows only. Whatever was written is judged by its normalised text: the same text is the same item.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm import tqdm

from recbole_edt import cleaning
from recbole_edt.augment.cooccurrence import user_item_matrix
from recbole_edt.cleaning import clean
from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.errors import DataError
from recbole_edt.llm import templates
from recbole_edt.llm.questions import ChatAnswer, ChatRequest
from recbole_edt.llm.templates import FIELDS, Writer, listed, object_schema, quoted_domains, request_from, text_schema
from recbole_edt.text.clusters import normalise
from recbole_edt.text.item_text import TEXT_COLUMNS, item_text

_HINTS = {
    "title": "title (at most 15 words)",
    "brand": "brand (or maker)",
    "category": "category",
    "description": "description (one short sentence)",
}


# ---- one pair of functions per step ------------------------------------------------------------------------------


def generate(
    writer: Writer, items: Sequence[str], source: str, target: str, n: int, fields: Sequence[str], tag: str
) -> ChatRequest:
    """Ask for items of another domain (eq. 4).

    Args:
        writer: whose templates are used.
        items: texts of the user's representatives in the source domain, oldest first.
        source: name of their domain.
        target: name of the domain of the items to write.
        n: items wanted.
        fields: parts of an item that the answer shall have, of ``FIELDS``.
        tag: for people.
    """
    record = {field: text_schema(FIELDS[field], shortest=int(field == "title")) for field in fields}
    # Fewer than n are taken as they are: what is there was paid for, and the filter wants few.
    schema = {"items": {"type": "array", "minItems": 1, "maxItems": n, "items": object_schema(record)}}
    values = {"items": listed(items), "n": str(n), "fields": ", ".join(_HINTS[field] for field in fields)}
    return request_from(writer, "generate", tag, schema, values | quoted_domains(source=source, target=target))


def parse_generated(value: Mapping[str, Any]) -> list[dict[str, str]]:
    """The records of an answer to ``generate``: cleaned title, brand, category, description (``""`` if not asked)."""
    return [{field: clean(item.get(field, ""), limit) for field, limit in FIELDS.items()} for item in value["items"]]

_BLOCK = 1024  # proposals compared with a whole catalogue at a time


class Asked(NamedTuple):
    """Requests and whom they are for, ``n`` each."""

    user: np.ndarray
    """Index into the users."""
    source: np.ndarray
    """Domain whose items the request tells, 0 or 1; it asks for items of the other."""
    requests: list[ChatRequest]


@dataclass(frozen=True)
class Proposed:
    """Proposals of one direction, by user: ``[P]`` each, and a row of ``fields`` with the parts of its text."""

    user: np.ndarray
    item: np.ndarray
    """Index into the items, -1 where there is none."""
    fate: np.ndarray
    """Why it is out already; ``""`` while nothing speaks against it."""
    fields: pd.DataFrame


def requests_for(train: TwoDomainData, speaking: Sequence[np.ndarray], n_generated: int, writer: Writer) -> Asked:
    """What to ask for each user and direction, by direction and then user (eq. 4).

    Args:
        train: training rows only.
        speaking: for each domain the rows of ``train`` that represent users there, increasing.
        n_generated: items wanted per request.
        writer: whose template is used.
    """
    texts = [cleaning.clean(text) for text in item_text(train.item_fields)]
    told = np.array([bool(text) for text in texts], bool)
    users, sources, requests = [], [], []
    for source in (0, 1):
        names, fields = (train.domains[source], train.domains[1 - source]), list(_fields(train, 1 - source))
        rows = speaking[source][told[train.item[speaking[source]]]]
        for user, own in _by_user(train, rows):
            items = [texts[item] for item in train.item[own].tolist()]
            tag = f"{train.users[user]}: {names[0]} to {names[1]}"
            requests.append(generate(writer, items, *names, n_generated, fields, tag))
            users.append(user)
            sources.append(source)
    return Asked(np.array(users, np.int64), np.array(sources, np.int64), requests)


def _by_user(train: TwoDomainData, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each user of the increasing ``rows``, with that user's."""
    users, first = np.unique(train.user[rows], return_index=True)
    return list(zip(users.tolist(), np.split(rows, first[1:]), strict=True)) if len(users) else []


def _fields(data: TwoDomainData, domain: int) -> dict[str, str]:
    """Part of a text to column of ``.item``: the title, and what most real items of the domain have besides.

    A generated item has the same parts as those that it is compared with, so that their cosines mean the same.
    """
    rows = data.item_fields[(data.item_domain == domain) & ~data.virtual]
    columns = {"title": "title"}
    for group in TEXT_COLUMNS:
        filled = {name: float((rows[name].astype(str).str.strip() != "").mean()) for name in group if name in rows}
        if filled and (group[0] == "title" or sum(filled.values()) >= 0.5):
            columns[group[0]] = max(filled, key=filled.__getitem__)
    return columns


def outcomes(train: TwoDomainData, asked: Asked, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
    """Requests and users by what came of them."""
    failure = np.array([templates.failure(answer) for answer in answers], object)
    counts: dict[str, Any] = {"asked": len(answers), "failed": dict(sorted(Counter(failure[failure != ""]).items()))}
    for source in (0, 1):
        here, way = failure[asked.source == source], way_of(train, source)
        counts[f"users_asked_{way}"] = len(here)
        counts[f"users_answered_{way}"] = int((here == "").sum())
        counts[f"users_not_asked_{way}"] = len(train.users) - len(here)
    return counts


def way_of(data: TwoDomainData, source: int) -> str:
    """A direction as it is named in counts: ``A_to_B``."""
    return f"{data.domains[source]}_to_{data.domains[1 - source]}"


def proposals(
    data: TwoDomainData,
    train: TwoDomainData,
    vectors: np.ndarray,
    asked: Asked,
    answers: Sequence[ChatAnswer],
    source: int,
    from_catalogue: bool,
    writer: Writer,
) -> tuple[TwoDomainData, np.ndarray, Proposed]:
    """What was written in one direction, as items.

    Out are, in this order: failed requests, records without a title, items that the user has in training or that
    repeat one of the other domain, items that the user was given before, and items without a vector.

    Args:
        data: the catalogue.
        train: training rows of the same users.
        vectors: ``[N, D]`` normalised, of the items of ``data``.
        asked: what was asked, in both directions.
        answers: in the order of ``asked``.
        source: domain of the items that were told.
        from_catalogue: whether each stands for the nearest real item that its user does not have in training.
        writer: embeds new texts; each text once, and only those that are still in.

    Returns: the data with new virtual items, the vectors of all its items, and the proposals.
    """
    user, fate, fields = _records(asked, answers, source)
    columns = _fields(data, 1 - source)
    records = fields[list(columns)].rename(columns=columns)
    records.loc[fate != "", :] = ""
    data, item = add_virtual_items(data, records, 1 - source)
    had, repeated = _own_items(data, train, user, item, 1 - source)
    # What stands for the nearest item that the user does not have may as well name one that the user has.
    _reject(fate, repeated if from_catalogue else had | repeated, "own item")
    _reject(fate, _again(user, _name_ids(data)[item], fate == ""), "duplicate")
    vectors = _with_new_vectors(data, vectors, item[fate == ""], writer)
    _reject(fate, ~vectors[item].any(axis=1), "no vector")
    if from_catalogue:
        live = np.flatnonzero(fate == "")
        item[live] = _nearest_not_had(data, train, vectors, user[live], item[live], 1 - source)
        _reject(fate, item < 0, "own item")
        _reject(fate, _again(user, item, fate == ""), "duplicate")
    return data, vectors, Proposed(user, item, fate, fields)


def _reject(fate: np.ndarray, out: np.ndarray, why: str) -> None:
    """Give the proposals that are still in, and are ``out``, their fate."""
    fate[(fate == "") & out] = why


def _records(asked: Asked, answers: Sequence[ChatAnswer], source: int) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Users, fates and texts of what was written in one direction; a failed request is one row without text."""
    users, fates, records = [], [], []
    for place in np.flatnonzero(asked.source == source).tolist():
        failure = templates.failure(answers[place])
        for record in ([] if failure else parse_generated(answers[place].value)) or [{}]:
            users.append(asked.user[place])
            fates.append(failure or ("" if cleaning.says_something(record.get("title", "")) else "no text"))
            records.append(record)
    fields = pd.DataFrame(records, columns=list(templates.FIELDS), dtype=object).fillna("")
    return np.array(users, np.int64), np.array(fates, object), fields


def _own_items(
    data: TwoDomainData, train: TwoDomainData, user: np.ndarray, item: np.ndarray, domain: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which proposals for ``domain`` the user has in training, and which only repeat an item of the other domain.

    An item is had if its text is that of an item of the same domain. A virtual item repeats one of the other domain
    if its text or its title is that one's: the model wrote its input down again.
    """
    texts = [normalised_text(text) for text in (*item_text(data.item_fields), *_titles(data.item_fields))]
    ids, names = pd.factorize(np.array(texts, object))
    text, title = ids[: len(data.items)], ids[len(data.items) :]
    same = data.item_domain[train.item] == domain

    def pair(whom: np.ndarray, what: np.ndarray) -> np.ndarray:
        return whom * len(names) + what

    had = np.isin(pair(user, text[item]), pair(train.user[same], text[train.item[same]]))
    others = [pair(train.user[~same], kind[train.item[~same]]) for kind in (text, title)]
    repeated = np.isin([pair(user, kind[item]) for kind in (text, title)], np.concatenate(others)).any(axis=0)
    return had, repeated & data.virtual[item]


def _name_ids(data: TwoDomainData) -> np.ndarray:
    """``[N]``: one number for all items of the same title and brand."""
    columns = [name for group in TEXT_COLUMNS[:2] for name in group if name in data.item_fields]
    return pd.factorize(np.array([normalised_text(text) for text in item_text(data.item_fields[columns])], object))[0]


def _again(user: np.ndarray, what: np.ndarray, live: np.ndarray) -> np.ndarray:
    """``[P]``: whether an earlier live proposal of the same user is the same."""
    places = np.flatnonzero(live)
    pairs = user[places] * (what.max(initial=0) + 1) + what[places]
    again = live.copy()
    again[places[np.unique(pairs, return_index=True)[1]]] = False
    return again


def _with_new_vectors(data: TwoDomainData, vectors: np.ndarray, item: np.ndarray, writer: Writer) -> np.ndarray:
    """``vectors`` for all items of the data; of the new ones only those in ``item`` are embedded."""
    new = np.unique(item[item >= len(vectors)])
    added = np.zeros((len(data.items) - len(vectors), vectors.shape[1]), np.float32)
    if len(new):
        found = np.nan_to_num(np.asarray(writer.embed(item_text(data.item_fields.iloc[new])), np.float32))
        if found.shape != (len(new), vectors.shape[1]):
            raise DataError(
                f"new items got vectors of shape {found.shape}, those of the data set have {vectors.shape[1]} numbers; "
                "embed both with the same embedder (embed.embedder, embed.model, embed.dimensions)"
            )
        added[new - len(vectors)] = normalise(found)
    return np.concatenate([vectors, added])


def _nearest_not_had(
    data: TwoDomainData, train: TwoDomainData, vectors: np.ndarray, user: np.ndarray, item: np.ndarray, domain: int
) -> np.ndarray:
    """``[P]`` the real item of the domain nearest to each, of those that the user does not have in training; or -1."""
    real = items_with_vector(data, vectors, domain)
    own = user_item_matrix(train, np.arange(len(train.user)))[user][:, real]
    found, _ = nearest_items(vectors[item], vectors[real], own)
    return np.where(found >= 0, np.append(real, -1)[found], -1)


def items_with_vector(data: TwoDomainData, vectors: np.ndarray, domain: int) -> np.ndarray:
    """Real items of the domain that have a text or vector of their own."""
    return np.flatnonzero((data.item_domain == domain) & ~data.virtual & vectors.any(axis=1))


def nearest_items(
    wanted: np.ndarray, offered: np.ndarray, barred: sp.csr_matrix | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each vector the most similar of those offered; ties to the first.

    Args:
        wanted: ``[P, D]`` normalised.
        offered: ``[R, D]`` normalised.
        barred: ``[P, R]``, not 0 where it may not be taken.

    Returns:
        index ``[P]`` into ``offered`` and cosine ``[P]``; -1 and ``-inf`` where there is none to take.
    """
    index, cosine = np.full(len(wanted), -1, np.int64), np.full(len(wanted), -np.inf, np.float32)
    starts = range(0, len(wanted), _BLOCK) if len(offered) else ()
    for start in tqdm(starts, desc="comparing with the catalogue", delay=1, leave=False, disable=None):
        part = slice(start, start + _BLOCK)
        scores = wanted[part] @ offered.T  # [block, R]
        if barred is not None:
            scores[barred[part].nonzero()] = -np.inf
        best = scores.argmax(axis=1)
        cosine[part] = scores[np.arange(len(best)), best]
        index[part] = np.where(np.isneginf(cosine[part]), -1, best)
    return index, cosine


# ---- records to items --------------------------------------------------------------------------------------------


def normalised_text(text: str) -> str:
    """The form in which two texts are the same item: compatibility characters, case and spaces evened out."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def add_virtual_items(data: TwoDomainData, fields: pd.DataFrame, domain: int) -> tuple[TwoDomainData, np.ndarray]:
    """Give every generated record an item: the catalogue's if text or title is there, else a virtual one.

    Of several items with the title the first whose brand does not contradict the record's is taken.

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
    catalogue = data.item_fields.iloc[own]
    known = {"": -1}
    for item, text in zip(own.tolist(), item_text(catalogue), strict=True):
        known.setdefault(normalised_text(text), item)
    named = _by_title(catalogue, own)
    first: dict[str, int] = {}
    for record, (text, title, brand) in enumerate(zip(texts, *_names(fields), strict=True)):
        if text not in known:
            same = [item for item, other in named.get(title, ()) if not brand or other in ("", brand)]
            if same:
                known[text] = same[0]
            else:
                first.setdefault(text, record)
    known.update({text: len(data.items) + place for place, text in enumerate(first)})
    item = np.array([known[text] for text in texts], np.int64)
    return _with_items(data, list(first), fields.iloc[list(first.values())], domain), item


def _by_title(fields: pd.DataFrame, items: np.ndarray) -> dict[str, list[tuple[int, str]]]:
    """Items and their brands by normalised title."""
    found: dict[str, list[tuple[int, str]]] = {}
    for item, title, brand in zip(items.tolist(), *_names(fields), strict=True):
        if title:
            found.setdefault(title, []).append((item, brand))
    return found


def _names(fields: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Normalised titles and brands."""
    brands = item_text(fields[[name for name in TEXT_COLUMNS[1] if name in fields]])
    return [normalised_text(text) for text in _titles(fields)], [normalised_text(text) for text in brands]


def _titles(fields: pd.DataFrame) -> list[str]:
    return item_text(fields[[name for name in TEXT_COLUMNS[0] if name in fields]])


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
