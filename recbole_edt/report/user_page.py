"""What augmentation and the language model did to one user: at the terminal, and as one page of HTML.

Everything shown comes from data or from a model and is never trusted: characters that would move a cursor, turn the
direction of text or open a tag are shown, not obeyed. The page is one file that loads nothing.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from recbole_edt.augment import augment
from recbole_edt.augment.augment import user_representatives
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.augment.trace import read_trace
from recbole_edt.cleaning import harmless
from recbole_edt.config.settings import Settings
from recbole_edt.data import split
from recbole_edt.data.atomic import read_table
from recbole_edt.data.two_domains import TwoDomainData, keep_rows
from recbole_edt.errors import DataError
from recbole_edt.files import sha256_of, write_text
from recbole_edt.llm.templates import FIELDS
from recbole_edt.pipeline import stages
from recbole_edt.pipeline.dry_run import Say
from recbole_edt.pipeline.model_access import Reader
from recbole_edt.profile.profile import profile_users
from recbole_edt.profile.settings import infix
from recbole_edt.render.html import render
from recbole_edt.text import vectors
from recbole_edt.text.item_text import item_text
from recbole_edt.text.vectors import EmbeddingTable

# ---- one user ----------------------------------------------------------------------------------------------------


def inspect(settings: Settings, say: Say, user: str) -> None:
    """Show what was done to one user's data, in the terminal and as a page."""
    table = vectors.EmbeddingTable.load(stages.item_vectors(settings))
    data, augmented = stages.with_text(settings, table), stages.read_augmented(settings)
    stages.check_made_with(settings, data, augmented)  # else the cache would be searched for other questions
    exchanges = _exchanges(settings, data, augmented, table, user)
    folder = stages.augmented_folder(settings)
    trace = read_trace(folder / stages.AUGMENT_TRACE, user)
    profile = _profile(folder / f"{settings.augmented}.{infix(settings.profile.pipeline)}user", user)
    view = view_of(data, augmented, table, settings.augment, trace, exchanges, profile, user)
    print_view(view)
    page = folder / "inspect" / f"{_file_name(user)}.html"
    write_text(page, html_page(view))
    say(f"page: {page}")


def _exchanges(
    settings: Settings,
    data: TwoDomainData,
    augmented: TwoDomainData,
    table: vectors.EmbeddingTable,
    user: str,
) -> list[Exchange]:
    """All that a language model was asked for a user, and what it said, from the cache."""
    with Reader(settings, lambda line: None) as writer:
        if settings.augment.generator == "llm":
            one = rows_of(data, user)
            writer.ask(augment.generation_requests(one, table, settings.augment, writer).requests, "inspect")
        if settings.profile.generator == "llm":
            one = rows_of(split.training_rows(augmented), user)
            whole = vectors.EmbeddingTable.load(stages.augmented_vectors(settings))
            for kind in settings.profile_kinds:
                profile_users(one, whole, kind, writer)
    return [
        Exchange(request.tag or request.template, request.messages, said, failure)
        for request, said, failure in writer.heard
    ]


def _profile(path: Path, user: str) -> str:
    """The user's text in the ``.user`` file; empty if there is none."""
    if not path.is_file():
        return ""
    frame, _ = read_table(path)
    return "".join(frame.loc[frame["user_id"] == user, "profile"])


def _file_name(user: str) -> str:
    """A plain name for a file; a token may hold anything, so a hash tells similar ones apart."""
    plain = re.sub(r"[^\w.-]", "_", user).lstrip(".")[:60]
    return plain if plain == user else f"{plain}-{sha256_of(user)[:8]}"

PARTS = {split.TRAIN: "training", split.VALID: "validation", split.TEST: "test"}
INSERTED = "inserted"
FATES = {
    "not injected": "passed the filter, but only a share of what passes is injected",
    "rank": "not among the k most like the user's items of the other domain",
    "tau": "too unlike the user's items, or the catalogue, of its own domain (below tau)",
    "duplicate": "the user was given this item already",
    "own item": "the user has it in training, or it repeats an item of the other domain",
    "no text": "no title with a letter or digit",
    "no vector": "its text could not be embedded",
}
"""Why a proposal was not kept; any other word is why the request failed."""


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
        trace: the user's rows of ``augment.read_trace``, with their ``text``.
        exchanges: prompts and answers.
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
    return keep_rows(data, data.user == _index(data, user))


def _index(data: TwoDomainData, user: str) -> int:
    found = np.flatnonzero(data.users == user)
    if not len(found):
        raise DataError(f"data set {data.name!r} has no user {user!r}; users are the ids of the .inter file")
    return int(found[0])


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
        exchanges: prompts and answers of this user.
        profile: ``""`` without one.
        user: token.

    Raises: DataError if there is no such user, or if the augmented data are of other rows.
    """
    own = rows_of(data, user)
    shown = own if augmented is None else rows_of(augmented, user)
    raw = ~shown.generated
    if not np.array_equal(shown.items[shown.item[raw]], own.items[own.item]):
        raise DataError(f"user {user!r} has other rows in the augmented files than in the raw ones; run augment again")
    speak = np.zeros(len(own.user), bool)
    for rows in user_representatives(own, table, config):
        speak[rows] = True
    mine = _with_texts(trace[trace["user"] == user], data)
    return UserView(data.name, user, data.domains, list(_history(shown, speak)), mine, list(exchanges), profile)


def _with_texts(trace: pd.DataFrame, data: TwoDomainData) -> pd.DataFrame:
    """With a column ``text``: what was written, and the item of the catalogue for which it stands, if any."""
    known = dict(zip(data.items.tolist(), item_text(data.item_fields), strict=True))
    texts = []
    for _, row in trace.iterrows():
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


def _title(view: UserView) -> str:
    return f"User {view.user} of {view.dataset}"


def _summary(view: UserView) -> str:
    parts = [row.part for row in view.rows]
    raw = len(parts) - parts.count(INSERTED)
    asked = f", {_counted(len(view.exchanges), 'prompt')}" if view.exchanges else ""
    return f"{_counted(raw, 'row')}, {parts.count(INSERTED)} inserted; {_counted(len(view.trace), 'proposal')}{asked}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _number(value: Any) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _directions(view: UserView) -> Iterator[tuple[str, pd.DataFrame]]:
    """Proposals of each direction that has some, best first, those without a rank last."""
    for source, target in (view.domains, view.domains[::-1]):
        rows = view.trace[view.trace["source"] == source]
        if len(rows):
            last = rows["rank"].where(rows["rank"] > 0, np.iinfo(np.int64).max)
            yield f"{source} to {target}", rows.iloc[np.argsort(last.to_numpy(), kind="stable")]


# ---- terminal ----------------------------------------------------------------------------------------------------


def print_view(view: UserView, file: IO[str] | None = None) -> None:
    """Print for a reader at a terminal, or as plain text into a pipe."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(Text(harmless(_title(view)), style="bold"))
    console.print(Text(_summary(view)), end="\n\n")
    console.print(_history_table(view), end="\n\n")
    for title, rows in _directions(view):
        console.print(_proposal_table(title, rows), end="\n\n")
    for exchange in view.exchanges:
        _print_exchange(console, exchange)
    console.print(Panel(Text(harmless(view.profile) or "none"), title="profile", title_align="left"))


def _history_table(view: UserView) -> Table:
    table = Table(title="history (* speaks for the user)", title_justify="left", box=box.SIMPLE)
    for name in ("", "domain", "item", "text", "part"):
        table.add_column(name, overflow="fold")
    for row in view.rows:
        mark = "+" if row.part == INSERTED else f"{row.place}{'*' if row.speaks else ''}"
        style = "green" if row.part == INSERTED else "dim" if row.part != PARTS[split.TRAIN] else ""
        table.add_row(*(Text(harmless(cell)) for cell in (mark, row.domain, row.item, row.text, row.part)), style=style)
    return table


def _proposal_table(title: str, rows: pd.DataFrame) -> Table:
    table = Table(title=Text(f"proposed, {harmless(title)}"), title_justify="left", box=box.SIMPLE)
    for name in ("rank", "item", "source score", "target score", "fate", "after"):
        table.add_column(name, overflow="fold")
    for _, row in rows.iterrows():
        rank = str(row["rank"]) if row["rank"] else ""
        after = f"row {row['place']}, {row['after']}" if row["fate"] == "kept" else ""
        fate = "below tau" if row["fate"] == "tau" else row["fate"]
        cells = (rank, row["text"], _number(row["source_score"]), _number(row["target_score"]), fate, after)
        table.add_row(*(Text(harmless(cell)) for cell in cells), style="green" if row["fate"] == "kept" else "")
    return table


def _print_exchange(console: Console, exchange: Exchange) -> None:
    for message in exchange.messages:
        title = Text(f"{harmless(exchange.title)}: {harmless(message['role'])}")
        console.print(Panel(Text(harmless(message["content"])), title=title, title_align="left"))
    title = Text("answer" + (f" ({harmless(exchange.failure)})" if exchange.failure else ""))
    for answer in exchange.answers or [""]:
        console.print(Panel(Text(harmless(answer) or "none"), title=title, title_align="left"), end="\n\n")


# ---- page --------------------------------------------------------------------------------------------------------

def html_page(view: UserView) -> str:
    """The same as one HTML file that loads nothing and runs nothing."""
    parts = [
        _section("History", _history_rows(view), "In time order. ● speaks for the user; held-out rows are pale."),
        *(_section(f"Proposed: {name}", _proposal_rows(view, rows), _LEGEND) for name, rows in _directions(view)),
        _section("Profile", f"<blockquote dir=auto>{_escaped(view.profile) or 'none'}</blockquote>"),
    ]
    if view.exchanges:
        parts.append(_section("Prompts and answers", "".join(map(_exchange, view.exchanges))))
    return render("user.html", title=_title(view), summary=_summary(view), sections=Markup("\n".join(parts)))


_LEGEND = (
    "Source score: cosine to the most similar item that speaks for the user in the other domain. Target score: the "
    "same in the item's own domain, or to the catalogue where the user has nothing there."
)


def _escaped(text: object) -> str:
    return html.escape(harmless(text), quote=True)


def _section(title: str, body: str, note: str = "") -> str:
    told = f"<p class=soft>{_escaped(note)}</p>\n" if note else ""
    return f"<section>\n<h2>{_escaped(title)}</h2>\n{told}<div class=card>\n{body}\n</div>\n</section>"


def _table(names: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{_escaped(name)}</th>" for name in names)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"


def _domain_tag(view: UserView, domain: str) -> str:
    colour = "a" if domain == view.domains[0] else "b"
    return f'<span class="tag {colour}">{_escaped(domain)}</span>'


def _history_rows(view: UserView) -> str:
    lines = []
    for row in view.rows:
        kind = {INSERTED: "inserted", PARTS[split.TRAIN]: "raw"}.get(row.part, "held")
        place = "+" if row.part == INSERTED else f"{'● ' if row.speaks else ''}{row.place}"
        cells = [
            f"<td class=n>{place}</td>",
            f"<td>{_domain_tag(view, row.domain)}</td>",
            f"<td dir=auto>{_escaped(row.text)}</td>",
            f"<td class=id>{_escaped(row.item)}</td>",
            f"<td class=part>{row.part}</td>",
        ]
        lines.append(f"<tr class={kind}>{''.join(cells)}</tr>")
    return _table(("", "domain", "text", "item", "part"), lines)


def _proposal_rows(view: UserView, rows: pd.DataFrame) -> str:
    lines = []
    for _, row in rows.iterrows():
        kept = row["fate"] == "kept"
        place = f"after row {row['place']}: {_text_of(view, row['place'])}"
        cells = [
            f"<td class=n>{row['rank'] or ''}</td>",
            f"<td dir=auto>{_escaped(row['text'])}</td>",
            f"<td class=n>{_bar(row['source_score'])}</td>",
            f"<td class=n>{_bar(row['target_score'])}</td>",
            f'<td><span class="tag {"good" if kept else "bad"}">{_escaped(row["fate"])}</span></td>',
            f"<td dir=auto>{_escaped(place if kept else FATES.get(row['fate'], 'the request failed'))}</td>",
        ]
        lines.append(f"<tr class={'kept' if kept else 'out'}>{''.join(cells)}</tr>")
    return _table(("rank", "item", "source score", "target score", "fate", "where, or why not"), lines)


def _text_of(view: UserView, place: int) -> str:
    """Text of the raw row with this place."""
    return next((row.text for row in view.rows if row.place == place and row.part != INSERTED), "")


def _bar(score: Any) -> str:
    number = _number(score)
    width = f"{100 * min(max(score, 0), 1):.0f}" if number else "0"
    return f"{number}<span class=bar><i style='width:{width}%'></i></span>" if number else ""


def _exchange(exchange: Exchange) -> str:
    outcome = f' <span class="tag bad">{_escaped(exchange.failure)}</span>' if exchange.failure else ""
    prompt = "".join(
        f"<p class=soft>{_escaped(message['role'])}</p><pre dir=auto>{_escaped(message['content'])}</pre>"
        for message in exchange.messages
    )
    answers = "".join(f"<p class=soft>answer</p><pre dir=auto>{_escaped(answer)}</pre>" for answer in exchange.answers)
    none = "" if exchange.answers else "<p class=soft>no answer</p>"
    return f"<details><summary>{_escaped(exchange.title)}{outcome}</summary>{prompt}{answers}{none}</details>"
