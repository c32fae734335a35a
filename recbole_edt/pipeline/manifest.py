"""What the data were made with, and what was asked of models for it, as tables and notes say it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from recbole_edt.config.settings import Settings, budget_note
from recbole_edt.data import prepare, statistics
from recbole_edt.errors import DataError
from recbole_edt.llm.prices import WORDS, paper_usd
from recbole_edt.pipeline import stages
from recbole_edt.render.tables import Column, ResultTable
from recbole_edt.text import embedders

STAGES = ("prepare", "embed", "augment", "profile")
"""Those before training."""


def data_parts(settings: Settings) -> Iterator[ResultTable | str]:
    """For a report: figures of the data set and of augmentation, or why there are none."""
    try:
        rows = statistics.card(stages.read(settings))
    except DataError as error:
        yield f"The data set is not at hand: {error}"
        return
    rows |= augment_figures(settings)
    named = [
        (key.replace("_", " "), round(value, 3) if isinstance(value, float) else value) for key, value in rows.items()
    ]
    yield ResultTable("data", "Data", ["figure", "value"], named)


def cost_parts(settings: Settings, counts: Mapping[str, Any]) -> Iterator[ResultTable | str]:
    """For a report: calls, tokens and cost of each stage that asked a model, beside the paper's.

    Args:
        counts: by stage what `made_with` notes of it.
    """
    asked = [(stage, kind, used) for stage, one in counts.items() for kind, used in one.get("used", {}).items()]
    if not asked:
        known = "No language model was called, so nothing was paid."
        yield known if "augment" in counts else "It is not known whether a language model was called."
        return
    n_users = max(one.get("users", 0) for one in counts.values())
    if not n_users:
        try:
            n_users = len(stages.read(settings).users)
        except DataError:
            n_users = 0  # the data set is not at hand
    headings = ["cost (US $)", "cost per user (US $)", "paper (US $ per user)"]
    columns = ["stage", "of", "calls", "tokens in", "tokens out", *(Column(name, decimals=6) for name in headings)]
    rows = []
    for stage, kind, used in asked:
        cost = used["cost_usd"]
        tokens = used["calls"], used["prompt_tokens"], used["completion_tokens"]
        per = None if cost is None or not n_users else cost / n_users
        rows.append((stage, WORDS[kind], *tokens, cost, per, paper_usd(stage, kind)))
    failed = [f"{stage}: {statistics.listed(one['failed'])}" for stage, one in counts.items() if one.get("failed")]
    note = "n/a: the model's price is not known (key llm.prices), or the paper gives none"
    yield ResultTable("cost", "Cost", columns, rows, "; failed in ".join([note, *failed]))


def stage_counts(settings: Settings) -> dict[str, dict[str, Any]]:
    """The counts of the stages before training; empty where someone else's program made the files."""
    return {stage: manifest.get("counts", {}) for stage, manifest in stages.stage_manifests(settings).items()}


def augment_figures(settings: Settings) -> dict[str, Any]:
    """The single figures that augmentation counted, each ``_before`` ahead of its ``_after``."""
    counts = stage_counts(settings)["augment"]
    single = [key for key, value in counts.items() if not isinstance(value, Mapping)]
    single.sort(key=lambda key: (re.sub("_(before|after)$", "", key), key.endswith("_after")))
    return {key: counts[key] for key in single}


def about(settings: Settings, models: Sequence[str]) -> str:
    """The second line of a table: what a language model did, and where there was a search, its budget."""
    note = llm_note(settings)
    return f"{note}. {budget_note(settings, models)}" if settings.tune.tuned else note


def made_with(settings: Settings) -> dict[str, dict[str, Any]]:
    """By stage before training, its configuration and what it asked of models; without those that were never run.

    It stands in each run, too: the data may be made anew, or be elsewhere, when somebody reads of it.
    """
    kept = ("asked", "failed", "used", "users")
    manifests = {"prepare": prepare.manifest(settings.folder), **stages.stage_manifests(settings)}
    found = {}
    for stage, manifest in manifests.items():
        counts = {} if stage == "prepare" else manifest.get("counts", {})
        if manifest:
            asked = {key: counts[key] for key in kept if key in counts}
            found[stage] = {"config": manifest.get("config", {}), "counts": asked}
    return found


def llm_note(settings: Settings, made: Mapping[str, Any] | None = None) -> str:
    """Which parts a language model did, and which ran without one.

    Args:
        made: what a run's data were made with; none is what they are made with now.
    """
    made = made_with(settings) if made is None else made
    asked = {stage: one for stage, one in made.items() if "llm" in one["config"]}
    if not asked and "augment" not in made:
        return "not known how rows and profiles were made"
    items, profiles = _writers(asked, "augment"), _writers(asked, "profile")
    items = f"items written by {items}" if items else "items proposed by co-occurrence"
    texts = f"profiles by {profiles}" if profiles else "profiles made of telling words"
    texts = texts if any(stage.startswith("profile") for stage in made) else "no profiles made"
    embed = made.get("embed", {}).get("config") or asdict(settings.embed)
    embedder = embed["vectors"] or embed["model" if embed["embedder"] == embedders.ENDPOINT else "embedder"]
    parts = f"{items}, {texts}, texts embedded by {embedder}"
    return f"LLM: {parts}" if asked else f"offline: no LLM was called; {parts}"


def _writers(asked: Mapping[str, Any], stage: str) -> str:
    """The models that a stage asked, for all kinds of profiles, with how many of their requests came to nothing."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for name, one in asked.items():
        if name.startswith(stage):
            by_model.setdefault(one["config"]["llm"]["model"], []).append(one["counts"])
    return " and ".join(model + _failures(counts) for model, counts in by_model.items())


def _failures(counts: Sequence[Mapping[str, Any]]) -> str:
    """In brackets, how many requests came to nothing; empty if none did."""
    failed = [item for one in counts for item in one.get("failed", {}).items()]
    n = sum(n for kind, n in failed if kind != "no vector")  # that is no question
    return f" ({n:,} of {sum(one['asked'] for one in counts):,} requests failed)" if n else ""
