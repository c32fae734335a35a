"""What goes on around the questions to a language model: their price beforehand, batch files, the cache, inspection.

A dry run and a batch export go through the stages themselves, so that they ask for exactly what a run would.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from recbole_edt import augment, batch, costs, embeddings, inspection, profiles, split, stages
from recbole_edt.answers import AnswerStore
from recbole_edt.atomic import TwoDomainData, read_table
from recbole_edt.config import Settings
from recbole_edt.costs import dollars
from recbole_edt.errors import ConfigError
from recbole_edt.files import sha256_of, write_text
from recbole_edt.profiles import infix
from recbole_edt.writer import Collector, Estimate, Reader, Rehearsal, Waiting, cache_path, existing_cache

Say = Callable[[str], None]
_MOST_DAYS = 36_500  # a hundred years; no calendar reaches back by any number

STEPS = {
    "embed": ("vectors of items",),
    "augment": ("generate", "vectors of written items"),
    "profile": ("summarize", "reform", "analyze", "compose", "plain", "vectors of profiles"),
}
"""What the stages ask for, in order."""


# ---- what would it cost? -----------------------------------------------------------------------------------------


def dry_run(settings: Settings, stage: str | None, say: Say) -> None:
    """Print calls, tokens and cost of one stage, or of all; nothing is sent, and nothing written but a source's files.

    Questions that hold earlier answers, which are not there yet, are made up once with the shortest and once with the
    longest answers that fit; the truth lies between. Where answers are stored, their mean length counts. Re-asks after
    unusable answers come on top.
    """
    asked = [stage] if stage else list(STEPS)
    if settings.prepare.source is not None and not (settings.folder / f"{settings.dataset}.inter").is_file():
        # It asks nobody, and nothing could be counted without it.
        stages.prepare(settings, say, goes_on=stage != "embed")
    least, most = (rehearse(settings, asked[-1], longest) for longest in (False, True))
    n_users = len(stages.read(settings).users)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("step", "calls", "stored", "prompt tokens", "answer tokens", "USD", "USD per user"):
        table.add_column(heading, justify="left" if heading == "step" else "right", no_wrap=True)
    total = [Estimate(), Estimate()]
    for step in (step for name in asked for step in STEPS[name]):
        of_step = [_named(steps, step) for steps in (least, most)]
        if of_step[1].calls + of_step[1].stored:
            table.add_row(step, *_cells(of_step, n_users))
            total = [one + other for one, other in zip(total, of_step, strict=True)]
    if not total[1].calls + total[1].stored:
        say("no language model and no endpoint would be asked")
        return
    table.add_section()
    table.add_row("total", *_cells(total, n_users))
    say(_printed(table))
    if _named(most, STEPS["embed"][0]).calls and asked[-1] != "embed":
        say("estimated with the offline embedder, until the vectors of the items are there")
    if total[1].calls:
        cost = "" if total[1].limit_usd is None else f", {dollars(total[1].limit_usd)}"
        say(f"a model that thinks before it answers may take up to {total[1].limit_tokens:,} answer tokens{cost}")
    paper = ", ".join(f"{dollars(usd)} ({name})" for name, usd in costs.PAPER_USD.items())
    say(f"nothing was sent; {n_users:,} users; the paper paid per user {paper}")


def rehearse(settings: Settings, last: str, longest: bool) -> dict[str, Estimate]:
    """What the stages up to ``last`` would send, by step; ``longest`` as in `Rehearsal`."""
    with Rehearsal(settings, longest) as writer:
        data = stages.read(settings)
        table = _item_table(settings, data, writer)
        if last == "embed":
            return writer.steps
        data, writer.texts = stages.with_text(settings, table), "written items"
        done = augment.augment(data, table, _extreme(settings, data, table, writer), writer)
        table = stages.add_vectors(done.data, table, writer)
        if last == "augment":
            return writer.steps
        writer.texts = "profiles"
        for kind in settings.profile_kinds:
            written = profiles.profile_users(split.training_rows(done.data), table, kind, writer)
            writer.embed([text for text in written.texts if text])
        return writer.steps


def _item_table(settings: Settings, data: TwoDomainData, writer: Rehearsal) -> embeddings.EmbeddingTable:
    """The items' vectors as the stage embed would make them, without a file."""
    if settings.embed.vectors:
        return embeddings.EmbeddingTable.load(stages.item_vectors(settings))  # embed asks nobody for these
    rows, distinct = pd.factorize(np.asarray(embeddings.item_text(data.item_fields), dtype=object))
    return embeddings.EmbeddingTable(data.items, rows.astype(np.int32), writer.embed(list(distinct)), {})


def _extreme(
    settings: Settings, data: TwoDomainData, table: embeddings.EmbeddingTable, writer: Rehearsal
) -> augment.AugmentConfig:
    """With made-up items the filter knows nothing: none of them passes, or all that rank high enough do."""
    requests = augment.generation_requests(data, table, settings.augment, writer).requests
    if not requests or None not in writer.chat.cached(requests):
        return settings.augment
    return replace(settings.augment, tau=-1.0 if writer.longest else 1.0)


def _named(steps: dict[str, Estimate], step: str) -> Estimate:
    """The estimate of a step, whatever the version of its template."""
    found = [one for name, one in steps.items() if name.partition("@")[0] == step]
    return found[0] if found else Estimate()


def _cells(both: Sequence[Estimate], n_users: int) -> list[str]:
    least, most = both
    counts = [
        _range(getattr(least, key), getattr(most, key), "{:,}".format)
        for key in ("calls", "stored", "prompt_tokens", "completion_tokens")
    ]
    if least.cost_usd is None or most.cost_usd is None:
        return [*counts, "price not known", ""]
    cost = _range(least.cost_usd, most.cost_usd, dollars)
    return [*counts, cost, _range(least.cost_usd / n_users, most.cost_usd / n_users, dollars)]


def _range(least: Any, most: Any, shown: Callable[[Any], str]) -> str:
    low, high = sorted((least, most))
    return shown(low) if low == high else f"{shown(low)} to {shown(high)}"


def _printed(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=1000, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


# ---- batch files -------------------------------------------------------------------------------------------------


def batch_export(settings: Settings, say: Say, file: str) -> None:
    """Go through the stages as far as the stored answers reach, and write what the next one lacks to a batch file."""
    stages.prepare(settings, say, goes_on=True)
    try:
        for stage in (stages.embed, stages.augment_data, stages.profile):
            stage(settings, say, Collector)
    except Waiting as waiting:
        with AnswerStore(cache_path(settings)) as store:
            paths = batch.export(waiting.requests, Path(file), store)
        names = ", ".join(map(str, paths))
        n = len(waiting.requests)
        say(f"{waiting.what}: {n:,} requests in {names}; give the results of the Batch API to batch import")
    else:
        say("no request is without an answer; the files of embed, augment and profile are written")


def batch_import(settings: Settings, say: Say, file: str) -> None:
    """Take a result file of the Batch API into the cache; what it lacks stays to be asked."""
    with AnswerStore(existing_cache(settings)) as store:
        found = batch.import_results(settings.llm, store, file)
    say(f"{found}; go on with batch export, or with the stages themselves")


# ---- the cache ---------------------------------------------------------------------------------------------------


def cache_stats(settings: Settings, say: Say) -> None:
    """Answers, tokens and cost by endpoint, model and template."""
    with AnswerStore(existing_cache(settings)) as store:
        rows = store.stats()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ("endpoint", "model", "template", "answers", "rejected", "prompt_tokens", "completion_tokens", "cost_usd")
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name in names[:3] else "right", no_wrap=True)
    for row in rows:
        cost = "not known" if row["without_price"] else dollars(row["cost_usd"])
        table.add_row(*(str(row[name]) for name in names[:3]), *(f"{row[name]:,}" for name in names[3:7]), cost)
    say(_printed(table))
    say(f"{sum(row['answers'] for row in rows):,} answers in {cache_path(settings)}")


def cache_export(settings: Settings, say: Say, file: str) -> None:
    """Every stored answer as a line of JSON."""
    with AnswerStore(existing_cache(settings)) as store:
        say(f"{store.export(file):,} answers: {file}")


def cache_prune(
    settings: Settings,
    say: Say,
    model: str | None = None,
    template: str | None = None,
    older_than: str | None = None,
    rejected: str | None = None,
) -> None:
    """Delete the answers that fit every criterion given."""
    days = None if older_than is None else _days(older_than)
    with AnswerStore(existing_cache(settings)) as store:
        say(f"{store.prune(model, template, days, rejected == 'true'):,} answers deleted")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 < days <= _MOST_DAYS:
        raise ConfigError(f"--older-than: {text!r} is not a number of days above 0 and up to {_MOST_DAYS:,}")
    return days


# ---- one user ----------------------------------------------------------------------------------------------------


def inspect(settings: Settings, say: Say, user: str) -> None:
    """Show what was done to one user's data, in the terminal and as a page."""
    table = embeddings.EmbeddingTable.load(stages.item_vectors(settings))
    data, augmented = stages.with_text(settings, table), stages.read_augmented(settings)
    stages.check_made_with(settings, data, augmented)  # else the cache would be searched for other questions
    exchanges = _exchanges(settings, data, augmented, table, user)
    folder = stages.augmented_folder(settings)
    trace = augment.read_trace(folder / stages.AUGMENT_TRACE, user)
    profile = _profile(folder / f"{settings.augmented}.{infix(settings.profile.pipeline)}user", user)
    view = inspection.view(data, augmented, table, settings.augment, trace, exchanges, profile, user)
    inspection.print_view(view)
    page = folder / "inspect" / f"{_file_name(user)}.html"
    write_text(page, inspection.html_page(view))
    say(f"page: {page}")


def _exchanges(
    settings: Settings,
    data: TwoDomainData,
    augmented: TwoDomainData,
    table: embeddings.EmbeddingTable,
    user: str,
) -> list[inspection.Exchange]:
    """All that a language model was asked for a user, and what it said, from the cache."""
    with Reader(settings, lambda line: None) as writer:
        if settings.augment.generator == "llm":
            one = inspection.rows_of(data, user)
            writer.ask(augment.generation_requests(one, table, settings.augment, writer).requests, "inspect")
        if settings.profile.generator == "llm":
            one = inspection.rows_of(split.training_rows(augmented), user)
            whole = embeddings.EmbeddingTable.load(stages.augmented_vectors(settings))
            for kind in settings.profile_kinds:
                profiles.profile_users(one, whole, kind, writer)
    return [
        inspection.Exchange(request.tag or request.template, request.messages, said, failure)
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


STAGES: dict[str, Callable[..., None]] = {
    "inspect": inspect,
    "batch export": batch_export,
    "batch import": batch_import,
    "cache stats": cache_stats,
    "cache export": cache_export,
    "cache prune": cache_prune,
}
