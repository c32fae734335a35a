"""A stage's access to a language model and an embedder: the real ones, a rehearsal, or a list of what is missing.

Nothing is opened, read or asked before it is needed, so that an offline run has neither a cache nor a client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recbole_edt.config.settings import Settings
from recbole_edt.errors import DataError, LLMError
from recbole_edt.llm import templates
from recbole_edt.llm.client import Client, price_for
from recbole_edt.llm.prices import Usage
from recbole_edt.llm.questions import ChatAnswer, ChatRequest
from recbole_edt.llm.store import AnswerStore
from recbole_edt.text.embedders import EMBEDDERS, ENDPOINT, Embedder, EndpointEmbedder
from recbole_edt.text.item_text import TEXT_TEMPLATE_VERSION

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
    return {**chosen, "templates": templates.load(settings.llm.templates).digest}


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
    def templates(self) -> templates.Templates:
        """The packaged prompts, or those of ``llm.templates``."""
        return templates.load(self.settings.llm.templates)

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


class StoredAnswers(LiveWriter):
    """Looks up, and makes no file."""

    must_exist = False
    """Whether it is an error if there is none."""

    @cached_property
    def store(self) -> AnswerStore:
        path = existing_cache(self.settings) if self.must_exist else cache_path(self.settings)
        return self._exit.enter_context(AnswerStore(path if path.exists() else ":memory:"))


class Reader(StoredAnswers):
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
