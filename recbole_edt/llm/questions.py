"""A question to a language model, its answer, and the conversation between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from recbole_edt.errors import LLMError
from recbole_edt.llm import json_answers
from recbole_edt.llm.endpoint import Dialect
from recbole_edt.llm.json_answers import Problem
from recbole_edt.llm.store import Exported, Stored

MOST_REASKS = 2


@dataclass(frozen=True)
class ChatRequest:
    """One question.

    Attributes:
        messages: ``{"role": ..., "content": ...}`` each.
        schema: JSON schema that the answer must fit.
        schema_name: a word for it.
        template: name and version of the template, such as ``generate@1``; part of the key.
        max_tokens: most tokens of the answer.
        tag: what it is about, for people: ``user A1: food to kitchen``; not part of the key.
    """

    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any]
    schema_name: str
    template: str
    max_tokens: int
    tag: str = ""


@dataclass(frozen=True)
class ChatAnswer:
    """What came of a question.

    Attributes:
        value: fits the schema; None if there was a failure.
        text: what the model said last, as it came.
        failure: ``refused``, ``empty``, ``cut off``, ``not JSON``, ``schema`` (the model); ``bad request``,
            ``timeout``, ``connection``, ``rate limit``, ``server``, ``garbage`` (the way); None if there was none.
        from_cache: whether nothing was sent for it.
        prompt_tokens, completion_tokens, cost_usd: of all its asks, whenever they were paid; a cost is None where the
            price is not known.
        n_asks: answers that it took.
    """

    value: Any
    text: str
    failure: str | None
    from_cache: bool
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    n_asks: int


@dataclass(frozen=True)
class Plan:
    """What would be sent.

    Attributes:
        calls: questions without an answer; re-asks are not foreseen.
        cached: questions that are answered already.
        prompt_tokens: estimated; by what the endpoint has counted before, where there are records.
        completion_tokens: mean of the template's records, else the most that is allowed.
        completion_tokens_most: the most that is allowed.
        cost_usd_most: with these; None where the price is not known.
    """

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    completion_tokens_most: int
    cost_usd_most: float | None


class CostLimit(LLMError):
    """The money for this run is spent."""


@dataclass
class Conversation:
    """A question and what was said so far: rejected answers, each with its problem."""

    request: ChatRequest
    key: str = ""
    """That of its first call."""
    turns: list[tuple[str, Problem]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    answer: ChatAnswer | None = None
    call: tuple[Dialect, int, Exported] | None = None
    """Its next call, with what it was made for: way of asking and number of turns."""
    heard: list[str] = field(default_factory=list)
    """All answers, good and bad."""
    recorded: ChatAnswer | None = None
    """A failure of an earlier run, which is to be asked again."""

    def count(self, prompt_tokens: int, completion_tokens: int, cost_usd: float | None) -> None:
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.cost_usd = None if cost_usd is None or self.cost_usd is None else self.cost_usd + cost_usd

    def take(self, text: str | None, finish_reason: str | None) -> bool:
        """Judge the next answer; whether it is good."""
        self.heard.append(text or "")
        self.call = None
        verdict = json_answers.judge(text, finish_reason, self.request.schema)
        if isinstance(verdict, Problem):
            self.turns.append((text or "", verdict))
            return False
        self.answer = self.result(verdict, text or "", None, len(self.turns) + 1)
        return True

    def start_again(self) -> None:
        """Forget what was said, and not what it cost."""
        self.turns, self.call = [], None

    @property
    def is_hopeless(self) -> bool:
        return bool(self.turns) and (len(self.turns) > MOST_REASKS or self.turns[-1][1].kind == "refused")

    def failed(self, kind: str | None = None) -> ChatAnswer:
        """A failure of the way, or by default that of the last answer."""
        text, problem = self.turns[-1] if self.turns else ("", None)
        return self.result(None, text, kind or (problem.kind if problem else None), len(self.turns))

    def result(self, value: Any, text: str, failure: str | None, n_asks: int) -> ChatAnswer:
        tokens = self.prompt_tokens, self.completion_tokens
        return ChatAnswer(value, text, failure, False, *tokens, self.cost_usd, n_asks)


def goes_on(talk: Conversation, stored: Stored) -> bool:
    """Take a stored answer into a conversation; whether the next one is to be looked for."""
    talk.count(stored.prompt_tokens, stored.completion_tokens, stored.cost_usd)
    if talk.take(stored.text, stored.finish_reason):
        talk.answer = replace(talk.answer, from_cache=True) if talk.answer else None
        return False
    if not talk.is_hopeless:
        return True
    talk.recorded = replace(talk.failed(), from_cache=True)
    talk.start_again()
    return False
