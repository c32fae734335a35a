"""A stage's access to a language model and an embedder: the real ones, a rehearsal, or a list of what is missing.

Nothing is opened, read or asked before it is needed, so that an offline run has neither a cache nor a client.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recbole_edt import prompts
from recbole_edt.answers import AnswerStore, Exported
from recbole_edt.config import Settings
from recbole_edt.costs import Usage, estimate_texts
from recbole_edt.embeddings import EMBEDDERS, ENDPOINT, TEXT_TEMPLATE_VERSION, Embedder, EndpointEmbedder, WordLlama
from recbole_edt.errors import DataError, LLMError
from recbole_edt.llm import ChatAnswer, ChatRequest, Client, Plan, price_for

Say = Callable[[str], None]
W = TypeVar("W", bound="LiveWriter")


def cache_path(settings: Settings) -> Path:
    """The file of stored answers: ``llm.cache``, or one beside the data sets, shared by all of them."""
    return Path(settings.llm.cache) if settings.llm.cache else settings.data_path / "llm_cache.sqlite"


def existing_cache(settings: Settings) -> Path:
    """The file of stored answers, for what only looks into it.

    Raises: DataError if there is none; opening it would make an empty one.
    """
    path = cache_path(settings)
    if not path.is_file():
        raise DataError(f"{path}: no answers are stored yet; name another file with --llm.cache=FILE")
    return path


def llm_identity(settings: Settings) -> dict[str, Any]:
    """What decides the answers besides the data: model, parameters, prompts; no key, no limit, no price."""
    keys = ("base_url", "model", "temperature", "seed", "max_tokens", "structured")
    chosen = {key: getattr(settings.llm, key) for key in keys}
    return {**chosen, "templates": prompts.load(settings.llm.templates).digest}


def embedder_identity(settings: Settings) -> list[Any]:
    """What decides the vector of a text."""
    if settings.embed.embedder != ENDPOINT:
        return [EMBEDDERS[settings.embed.embedder].name, TEXT_TEMPLATE_VERSION]
    endpoint = settings.embedding
    return [endpoint.base_url, endpoint.model, settings.embed.dimensions, TEXT_TEMPLATE_VERSION]


class LiveWriter:
    """Asks for real, through the cache: a `prompts.Writer` and an `embeddings.Embedder` at once, for one stage.

    Args:
        settings: of the run.
        say: takes a line about what happened.
        spent: account of all stages of one command, to which ``llm.max_cost`` applies.
    """

    def __init__(self, settings: Settings, say: Say, spent: Usage | None = None) -> None:
        self.settings, self.say, self.spent = settings, say, Usage() if spent is None else spent
        self.max_tokens = settings.llm.max_tokens
        self._exit = ExitStack()

    def __enter__(self: W) -> W:
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.close()

    @cached_property
    def templates(self) -> prompts.Templates:
        """The packaged prompts, or those of ``llm.templates``."""
        return prompts.load(self.settings.llm.templates)

    @cached_property
    def store(self) -> AnswerStore:
        """The cache."""
        path = existing_cache(self.settings) if self.settings.llm.replay else cache_path(self.settings)
        return self._exit.enter_context(AnswerStore(path))

    @cached_property
    def chat(self) -> Client:
        """Client of the chat model."""
        if self.settings.embed.embedder == ENDPOINT:
            price_for(self.settings.embedding)  # a limit that the vectors' price makes void is told before paying
        return Client(self.settings.llm, self.store, self.say, self.spent)

    @cached_property
    def vectors(self) -> Client:
        """Client of the embedding model."""
        return Client(self.settings.embedding, self.store, self.say, self.spent)

    @cached_property
    def embedder(self) -> Embedder:
        """What turns texts into vectors."""
        chosen = self.settings.embed
        if chosen.embedder == ENDPOINT:
            return EndpointEmbedder(self.vectors, str(chosen.model), chosen.dimensions)
        return EMBEDDERS[chosen.embedder]()

    @property
    def name(self) -> str:
        """Of the embedder's model."""
        return self.embedder.name

    @property
    def dim(self) -> int:
        """Length of a vector; 0 if that is not known yet."""
        return self.embedder.dim

    def ask(self, requests: Sequence[ChatRequest], desc: str) -> Sequence[ChatAnswer]:
        """One answer per request, in order.

        Raises: LLMError for what stops a run.
        """
        return self.chat.ask(requests, desc)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """``[n, D]`` float32; zeros for a text without a vector.

        Raises: LLMError for what stops a run.
        """
        return self.embedder.embed(texts)

    def counted(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """A stage's counts with what its answers cost, whenever that was paid, and with texts left without a vector."""
        # Only a client that was needed has been made.
        clients = {name: vars(self)[name] for name in ("chat", "vectors") if name in vars(self)}
        used = {name: _account(client.used) for name, client in clients.items()}
        if not clients:
            return dict(counts)
        n_failed = len(getattr(vars(self).get("embedder"), "failed", ()))
        failed = {**counts.get("failed", {}), **({"no vector": n_failed} if n_failed else {})}
        return {**counts, "failed": failed, "used": used}


def _account(usage: Usage) -> dict[str, Any]:
    return {
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_usd": None if usage.unpriced else usage.cost_usd,
    }


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


class _Stored(LiveWriter):
    """Looks up, and makes no file."""

    must_exist = False
    """Whether it is an error if there is none."""

    @cached_property
    def store(self) -> AnswerStore:
        path = existing_cache(self.settings) if self.must_exist else cache_path(self.settings)
        return self._exit.enter_context(AnswerStore(path if path.exists() else ":memory:"))


class Rehearsal(_Stored):
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


class Waiting(Exception):
    """What a stage needs to go on.

    Attributes:
        requests: calls that were not answered yet.
        what: the step they belong to.
    """

    def __init__(self, requests: Sequence[Exported], what: str) -> None:
        super().__init__(what)
        self.requests, self.what = requests, what


class Collector(LiveWriter):
    """Raises `Waiting` with all questions of a step, rather than asking them, while there is any without an answer."""

    def ask(self, requests: Sequence[ChatRequest], desc: str) -> Sequence[ChatAnswer]:
        if not self.chat.is_explored:
            # One question tells whether the endpoint takes a schema and a temperature; else all might be refused.
            self.chat.ask(requests[:1], "first question")
        if pending := self.chat.pending(requests):
            raise Waiting(pending, desc)
        return super().ask(requests, desc)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if isinstance(self.embedder, EndpointEmbedder):
            asked = self.embedder.shortened(texts)
            if pending := self.vectors.pending_embedding(asked, self.settings.embed.dimensions):
                raise Waiting(pending, "vectors")
        return super().embed(texts)


class Reader(_Stored):
    """Only looks up, failures too; what was never asked is a failure of its own.

    Attributes:
        heard: of every question what was said to it, unusable answers first, and why nothing could be read in it.
    """

    def __init__(self, settings: Settings, say: Say) -> None:
        super().__init__(replace(settings, llm=replace(settings.llm, replay=True)), say)
        self.must_exist = bool(settings.llm.cache)  # a file that was named is meant; it may be mistyped
        self.heard: list[tuple[ChatRequest, list[str], str | None]] = []

    def ask(self, requests: Sequence[ChatRequest], desc: str) -> list[ChatAnswer]:
        answers = [self._recorded(request, desc) for request in requests]
        said = self.chat.said(requests)
        failures = [answer.failure for answer in answers]
        self.heard += zip(requests, said, failures, strict=True)
        return answers

    def _recorded(self, request: ChatRequest, desc: str) -> ChatAnswer:
        try:
            return self.chat.ask([request], desc)[0]
        except LLMError:
            return ChatAnswer(None, "", "not asked yet", True, 0, 0, 0.0, 0)
