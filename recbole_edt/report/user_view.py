"""What is known of one user: the history with the rows inserted, the proposals and their fate, prompts and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recbole_edt.augment import augment
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.config.settings import Settings
from recbole_edt.data import split
from recbole_edt.data.two_domains import TwoDomainData, keep_rows
from recbole_edt.errors import DataError
from recbole_edt.llm.templates import FIELDS
from recbole_edt.pipeline import stages
from recbole_edt.pipeline.model_access import Reader
from recbole_edt.profile.profile import profile_users
from recbole_edt.text.item_text import item_text
from recbole_edt.text.vectors import EmbeddingTable

TRAINED, INSERTED = "training", "inserted"
PARTS = {split.TRAIN: TRAINED, split.VALID: "validation", split.TEST: "test"}


@dataclass(frozen=True)
class Exchange:
    """A prompt and what came back.

    Attributes:
        title: what it was about, such as ``user A1: food to kitchen``.
        messages: ``{"role": ..., "content": ...}`` each.
        answers: raw, in the order in which they came; the last counts.
        failure: why nothing could be read in it; None if something could.
    """

    title: str
    messages: Sequence[Mapping[str, str]]
    answers: Sequence[str]
    failure: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of a user's history."""

    place: int
    """From 1, among the raw rows; an inserted row has the place of the raw row that it follows."""
    domain: str
    item: str
    text: str
    part: str
    """One of ``PARTS``, or ``INSERTED``."""
    speaks: bool
    """Whether it is a representative."""


@dataclass(frozen=True)
class UserView:
    """All that is shown of one user.

    Attributes:
        dataset: its name.
        user: token.
        domains: names of A and B.
        rows: the history, inserted rows included.
        trace: the user's rows of ``trace.read_trace``, with their ``text``.
        exchanges: prompts and answers of this user.
        profile: ``""`` without one.
    """

    dataset: str
    user: str
    domains: tuple[str, str]
    rows: Sequence[Row]
    trace: pd.DataFrame
    exchanges: Sequence[Exchange]
    profile: str


def rows_of(data: TwoDomainData, user: str) -> TwoDomainData:
    """The same catalogue and users with the rows of one user only; what that user is asked stays the same.

    Raises: DataError if there is no such user.
    """
    found = np.flatnonzero(data.users == user)
    if not len(found):
        raise DataError(f"data set {data.name!r} has no user {user!r}; users are the ids of the .inter file")
    return keep_rows(data, data.user == found[0])


def view_of(
    data: TwoDomainData,
    augmented: TwoDomainData | None,
    table: EmbeddingTable,
    config: AugmentConfig,
    trace: pd.DataFrame,
    exchanges: Iterable[Exchange],
    profile: str,
    user: str,
) -> UserView:
    """Gather what is known of one user.

    Args:
        data: raw rows.
        augmented: with the inserted rows; None before the stage augment.
        table: vectors of the items of ``data``.
        config: of the stage augment, for the representatives.
        trace: what became of each proposal, of this user at least.
        exchanges: as in `UserView`, and so are the others.

    Raises: DataError if there is no such user, or if the augmented data are of other rows.
    """
    own = rows_of(data, user)
    shown = own if augmented is None else rows_of(augmented, user)
    raw = ~shown.generated
    if not np.array_equal(shown.items[shown.item[raw]], own.items[own.item]):
        raise DataError(f"user {user!r} has other rows in the augmented files than in the raw ones; run augment again")
    speak = np.zeros(len(own.user), bool)
    for rows in augment.user_representatives(own, table, config):
        speak[rows] = True
    mine = _with_texts(trace[trace["user"] == user], data)
    return UserView(data.name, user, data.domains, list(_history(shown, speak)), mine, list(exchanges), profile)


def _with_texts(trace: pd.DataFrame, data: TwoDomainData) -> pd.DataFrame:
    """With a column ``text``: what was written, and the item of the catalogue for which it stands, if any."""
    known = dict(zip(data.items.tolist(), item_text(data.item_fields), strict=True))
    texts = []
    for row in trace.to_dict("records"):
        written = ". ".join(str(row[field]) for field in FIELDS if row[field])
        texts.append(" → ".join(text for text in dict.fromkeys((written, known.get(row["item"], ""))) if text))
    return trace.assign(text=texts)


def _history(shown: TwoDomainData, speak: np.ndarray) -> Iterator[Row]:
    """Rows of one user; ``speak`` says which of the raw ones are representatives."""
    marks = split.leave_one_out(shown)
    texts = item_text(shown.item_fields.iloc[shown.item])
    place = 0
    for row, (item, new) in enumerate(zip(shown.item.tolist(), shown.generated.tolist(), strict=True)):
        place += not new
        part = INSERTED if new else PARTS[int(marks[row])]
        speaks = not new and bool(speak[place - 1])
        domain = shown.domains[shown.item_domain[item]]
        yield Row(place, domain, str(shown.items[item]), texts[row], part, speaks)


def exchanges_of(
    settings: Settings, data: TwoDomainData, augmented: TwoDomainData, table: EmbeddingTable, user: str
) -> list[Exchange]:
    """All that a language model was asked for a user, and what it said, from the cache."""
    with Reader(settings, lambda line: None) as writer:
        if settings.augment.generator == "llm":
            one = rows_of(data, user)
            writer.ask(augment.generation_requests(one, table, settings.augment, writer).requests, "inspect")
        if settings.profile.generator == "llm":
            one = rows_of(split.training_rows(augmented), user)
            whole = EmbeddingTable.load(stages.augmented_vectors(settings))
            for kind in settings.profile_kinds:
                profile_users(one, whole, kind, writer)
    return [
        Exchange(request.tag or request.template, request.messages, said, failure)
        for request, said, failure in writer.heard
    ]
