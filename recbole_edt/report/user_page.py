"""What augmentation and the language model did to one user: at the terminal, and as one page of HTML.

Everything shown comes from data or from a model and is never trusted: what shows the page escapes it. The page is one
file that loads and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from recbole_edt.augment.trace import read_trace
from recbole_edt.config.settings import Settings
from recbole_edt.data.atomic import read_table
from recbole_edt.files import sha256_of, write_text
from recbole_edt.pipeline import stages
from recbole_edt.profile.settings import infix
from recbole_edt.render import console, html
from recbole_edt.render.sections import Listing, Page, Section
from recbole_edt.render.tables import Column, ResultTable
from recbole_edt.report.user_view import INSERTED, TRAINED, Exchange, UserView, exchanges_of, view_of
from recbole_edt.text.vectors import EmbeddingTable

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


def inspect(settings: Settings, say: stages.Say, user: str) -> None:
    """Show what was done to one user's data, in the terminal and as a page."""
    table = EmbeddingTable.load(stages.item_vectors(settings))
    data, augmented = stages.with_text(settings, table), stages.read_augmented(settings)
    stages.check_made_with(settings, data, augmented)  # else the cache would be searched for other questions
    exchanges = exchanges_of(settings, data, augmented, table, user)
    folder = stages.augmented_folder(settings)
    trace = read_trace(folder / stages.AUGMENT_TRACE, user)
    profiles, profile = folder / f"{settings.augmented}.{infix(settings.profile.pipeline)}user", ""
    if profiles.is_file():
        frame, _ = read_table(profiles)
        profile = "".join(frame.loc[frame["user_id"] == user, "profile"])
    page = page_of(view_of(data, augmented, table, settings.augment, trace, exchanges, profile, user))
    console.print_page(page)
    path = folder / "inspect" / f"{_file_name(user)}.html"
    write_text(path, html.page(page, sorts=False))
    say(f"page: {path}")


def _file_name(user: str) -> str:
    """A plain name for a file; a token may hold anything, so a hash tells similar ones apart."""
    plain = re.sub(r"[^\w.-]", "_", user).lstrip(".")[:60]
    return plain if plain == user else f"{plain}-{sha256_of(user)[:8]}"


def page_of(view: UserView) -> Page:
    """All of it, for the terminal and the browser."""
    parts = [row.part for row in view.rows]
    counts = {"row": len(parts) - parts.count(INSERTED), "proposal": len(view.trace), "prompt": len(view.exchanges)}
    rows, proposals, prompts = (f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items())
    summary = f"{rows}, {parts.count(INSERTED)} inserted; {proposals}{f', {prompts}' if view.exchanges else ''}"
    sections = [
        Section("History", [_history_table(view)]),
        *(Section(table.title, [table]) for table in _proposal_tables(view)),
        Section("Profile", [Listing("Profile", view.profile or "none", opened=True)]),
        Section("Prompts and answers", [part for exchange in view.exchanges for part in _exchange(exchange)]),
    ]
    return Page(f"User {view.user} of {view.dataset}", [summary], sections)


def _history_table(view: UserView) -> ResultTable:
    rows, tones = [], []
    for row in view.rows:
        place = "+" if row.part == INSERTED else f"{'● ' if row.speaks else ''}{row.place}"
        rows.append((place, row.domain, row.text, row.item, row.part))
        tones.append({INSERTED: "good", TRAINED: ""}.get(row.part, "pale"))
    columns = ["row", Column("domain", form="tag"), "text", "item", "part"]
    note = "In time order. ● speaks for the user, + was inserted; held-out rows are pale."
    return ResultTable("history", "History", columns, rows, note, tones=tones)


def _proposal_tables(view: UserView) -> Iterator[ResultTable]:
    """One per direction that has some, the best first, those without a rank last."""
    scores = [Column(name, decimals=3, form="share") for name in ("source score", "target score")]
    columns = ["rank", "item", *scores, Column("fate", form="tag"), "where, or why not"]
    texts = {row.place: row.text for row in view.rows if row.part != INSERTED}
    note = (
        "Source score: cosine to the most similar item that speaks for the user in the other domain. Target score: the "
        "same in the item's own domain, or to the catalogue where the user has nothing there."
    )
    for source, target in (view.domains, view.domains[::-1]):
        found = view.trace[view.trace["source"] == source]
        last = found["rank"].where(found["rank"] > 0, np.iinfo(np.int64).max)
        rows = []
        for one in found.iloc[np.argsort(last.to_numpy(), kind="stable")].to_dict("records"):
            why = FATES.get(one["fate"], "the request failed")
            if one["fate"] == "kept":
                why = f"after row {one['place']}: {texts.get(one['place'], '')}"
            scored = one["source_score"], one["target_score"]
            rows.append((one["rank"] or None, one["text"], *scored, one["fate"], why))
        if rows:
            title, tones = f"Proposed: {source} to {target}", ["good" if row[4] == "kept" else "" for row in rows]
            yield ResultTable(title, title, columns, rows, note, tones=tones)


def _exchange(exchange: Exchange) -> Iterator[Listing]:
    for message in exchange.messages:
        yield Listing(f"{exchange.title}: {message['role']}", message["content"])
    failure = f" ({exchange.failure})" if exchange.failure else ""
    for answer in exchange.answers or ["none"]:
        yield Listing(f"{exchange.title}: answer{failure}", answer)
