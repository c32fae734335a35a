"""What the questions to a language model would cost, before any is sent.

A dry run goes through the stages themselves, so that it asks for exactly what a run would.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from recbole_edt.augment import augment
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.config.settings import Settings
from recbole_edt.data import split
from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.llm import prices
from recbole_edt.llm.client import Client
from recbole_edt.llm.prices import dollars, estimate_texts
from recbole_edt.llm.questions import ChatAnswer, ChatRequest, Plan
from recbole_edt.pipeline import needed, stages
from recbole_edt.pipeline.model_access import StoredAnswers
from recbole_edt.profile import profile
from recbole_edt.render.console import printed
from recbole_edt.text import item_text, vectors
from recbole_edt.text.embedders import Embedder, EndpointEmbedder, WordLlama

# ---- without sending anything ------------------------------------------------------------------------------------


@dataclass
class Estimate:
    """What one step would send.

    Attributes:
        calls: questions or texts without an answer.
        stored: those with one.
        prompt_tokens, completion_tokens: of the calls.
        cost_usd: None where the price is not known.
        limit_tokens, limit_usd: if every answer took all the tokens that it may.
    """

    calls: int = 0
    stored: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    limit_tokens: int = 0
    limit_usd: float | None = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        pairs = zip(astuple(self), astuple(other), strict=True)
        sums: list[Any] = [None if a is None or b is None else a + b for a, b in pairs]
        return Estimate(*sums)


_FILLER = "wok zyt "
"""About two characters a token: denser than words, so that an answer of this length is long indeed."""


class Rehearsal(StoredAnswers):
    """Answers from the cache, and made-up ones where there are none, so that a stage goes on to its next questions.

    Args:
        settings: of the run.
        longest: whether the made-up answers are the longest that fit, or the shortest.

    Attributes:
        steps: what would be sent, by template or ``vectors of ...``.
        texts: what the texts to embed are now.
    """

    def __init__(self, settings: Settings, longest: bool) -> None:
        super().__init__(settings, lambda line: None)
        self.longest, self.texts = longest, "items"
        self.steps: dict[str, Estimate] = {}
        self._counted: set[Any] = set()  # questions and texts: one that two steps share is sent once
        self._stand_in: Embedder | None = None
        self._words = itertools.count()

    def ask(self, requests: Sequence[ChatRequest], desc: str) -> list[ChatAnswer]:
        """Stored answers, and made-up ones for the rest."""
        found = self.chat.cached(requests)
        answers = [answer or self._made_up(one) for one, answer in zip(requests, found, strict=True)]
        new = [
            (one, made, stored)
            for one, made, stored in zip(requests, answers, found, strict=True)
            if (one.template, repr(one.messages)) not in self._counted
        ]
        self._counted.update((one.template, repr(one.messages)) for one, _, _ in new)
        for template in dict.fromkeys(one.template for one in requests):
            asked = [one for one, _, _ in new if one.template == template]
            made_up = [made.text for one, made, stored in new if one.template == template and stored is None]
            self._add(template, self.chat, self.chat.plan(asked), made_up)
        return answers

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Stored vectors, or, if some are missing, vectors of the offline embedder in their place."""
        if not isinstance(self.embedder, EndpointEmbedder):
            return super().embed(texts)
        new = [text for text in dict.fromkeys(self.embedder.shortened(texts)) if text and text not in self._counted]
        self._counted.update(new)
        plan = self.vectors.plan_embedding(new, self.settings.embed.dimensions)
        self._add(f"vectors of {self.texts}", self.vectors, plan, [])
        if plan.calls and self._stand_in is None:
            self._stand_in = _Random(self.dim) if self.dim else WordLlama()
        return super().embed(texts) if self._stand_in is None else self._stand_in.embed(texts)

    def _add(self, step: str, client: Client, plan: Plan, made_up: Sequence[str]) -> None:
        completion = min(plan.completion_tokens_most, sum(estimate_texts(made_up)))
        if plan.completion_tokens < plan.completion_tokens_most:  # there are records, which know better
            completion = max(completion, plan.completion_tokens) if self.longest else plan.completion_tokens
        cost = None if client.price is None else client.price.of(plan.prompt_tokens, completion)
        tokens = plan.prompt_tokens, completion
        new = Estimate(plan.calls, plan.cached, *tokens, cost, plan.completion_tokens_most, plan.cost_usd_most)
        self.steps[step] = self.steps.get(step, Estimate()) + new

    def _made_up(self, request: ChatRequest) -> ChatAnswer:
        value = self._value(request.schema)
        return ChatAnswer(value, json.dumps(value), None, False, 0, 0, 0.0, 1)

    def _value(self, schema: Mapping[str, Any]) -> Any:
        """The longest or shortest value of a schema of `prompts`; no two texts are alike."""
        if schema["type"] == "object":
            return {key: self._value(one) for key, one in schema["properties"].items()}
        if schema["type"] == "array":
            n = schema["maxItems" if self.longest else "minItems"]
            return [self._value(schema["items"]) for _ in range(n)]
        word, most = str(next(self._words)), schema["maxLength"]
        return f"{word} {_FILLER * (most // len(_FILLER))}"[:most] if self.longest else word


class _Random:
    """Vectors for texts that have none yet, in the space of others that have."""

    name = "random"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._generator = np.random.default_rng(0)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._generator.normal(size=(len(texts), self.dim)).astype(np.float32)

Say = Callable[[str], None]

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
    models = [settings.model] if "model" in settings.given else settings.models
    if stage is None and needed.raw_rows_suffice(settings, models):
        say("no language model and no endpoint would be asked")
        return
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
    say(printed(table))
    if _named(most, STEPS["embed"][0]).calls and asked[-1] != "embed":
        say("estimated with the offline embedder, until the vectors of the items are there")
    if total[1].calls:
        cost = "" if total[1].limit_usd is None else f", {dollars(total[1].limit_usd)}"
        say(f"a model that thinks before it answers may take up to {total[1].limit_tokens:,} answer tokens{cost}")
    paper = ", ".join(f"{dollars(usd)} ({name})" for name, usd in prices.PAPER_USD.items())
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
            written = profile.profile_users(split.training_rows(done.data), table, kind, writer)
            writer.embed([text for text in written.texts if text])
        return writer.steps


def _item_table(settings: Settings, data: TwoDomainData, writer: Rehearsal) -> vectors.EmbeddingTable:
    """The items' vectors as the stage embed would make them, without a file."""
    if settings.embed.vectors:
        return vectors.EmbeddingTable.load(stages.item_vectors(settings))  # embed asks nobody for these
    rows, distinct = pd.factorize(np.asarray(item_text.item_text(data.item_fields), dtype=object))
    return vectors.EmbeddingTable(data.items, rows.astype(np.int32), writer.embed(list(distinct)), {})


def _extreme(
    settings: Settings, data: TwoDomainData, table: vectors.EmbeddingTable, writer: Rehearsal
) -> AugmentConfig:
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
