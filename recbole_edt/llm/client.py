"""Questions to a language model and texts to an embedding model, each paid for once.

Whatever comes back is stored before it is judged, and never asked for again; what cannot be had fails alone, so that a
stage only sees values that fit their schema, and the kinds of its failures.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from recbole_edt.cleaning import short
from recbole_edt.errors import ConfigError, LLMError
from recbole_edt.llm import json_answers
from recbole_edt.llm.endpoint import CHAT, EMBEDDINGS, Dialect, Failure, read_chat, read_vectors, tokens_of
from recbole_edt.llm.json_answers import Problem
from recbole_edt.llm.pool import Session, run
from recbole_edt.llm.prices import Price, Usage, dollars, estimate_chat, estimate_texts, load_prices, price_of
from recbole_edt.llm.questions import ChatAnswer, ChatRequest, Conversation, CostLimit, Plan, goes_on
from recbole_edt.llm.settings import OPENAI, LLMConfig, is_loopback
from recbole_edt.llm.store import Answer, AnswerStore, Exported, Stored

TEXTS_PER_CALL = 64

_PROBES = 3  # questions by which a way of asking is looked for
_QUOTED_ANSWER = 2000  # characters of a rejected answer that are shown to the model again
_RECORDS, _FEWEST_RECORDS = 200, 5  # stored answers that an estimate is calibrated by
_UNREACHED = ("connection", "timeout")  # kinds of failure
_OF_THE_WAY = (*_UNREACHED, "garbage", "rate limit", "server")
_ROUNDS = 3  # of asking for vectors whose length differs from that of the rest


# ---- the client --------------------------------------------------------------------------------------------------


class Client:
    """Asks and embeds, with everything that came before from the store.

    Several clients may share a store, and an account of what was spent, to which ``max_cost`` applies. The key is read
    from the environment when the first call is sent, and not before.

    Attributes:
        spent: what this process paid; shared where one was given.
        used: what the answers given so far cost, each counted once, whenever they were paid. A text that was embedded
            counts as a call.
        failures: number of questions and texts without an answer, by kind.
    """

    def __init__(
        self,
        config: LLMConfig,
        store: AnswerStore,
        say: Callable[[str], None] = lambda line: None,
        spent: Usage | None = None,
        backoff_s: float = 1.0,
        patience_s: float = 10.0,
    ) -> None:
        """
        Args:
            say: takes a line about what happened.
            backoff_s: wait before the first repetition of a call; doubled for each further one.
            patience_s: how long calls in flight are waited for after Ctrl-C.

        Raises: ConfigError for wrong settings, a faulty price list, or ``max_cost`` without a price.
        """
        config.validate()
        if config.model is None:
            raise ConfigError("llm.model: name the model to ask")
        self.config, self.store, self.say = config, store, say
        self.model = config.model
        self.endpoint = (config.base_url or OPENAI).rstrip("/")
        self.spent = Usage() if spent is None else spent
        self.used = Usage()
        self.failures: Counter[str] = Counter()
        self._counted: set[str] = set()
        self._last_failure: Failure | None = None
        self.price = price_for(config)
        self._backoff_s, self._patience_s = backoff_s, patience_s
        fact = store.fact(self.endpoint, self.model, self._dialect_name)
        self._dialect = Dialect(**{**fact, "without": tuple(fact["without"])}) if fact else None
        self._is_doubtful = bool(store.fact(self.endpoint, self.model, self._doubt_name))

    # ---- chat ----

    def ask(self, requests: Sequence[ChatRequest], desc: str) -> list[ChatAnswer]:
        """Answers in the order of the questions; equal questions are asked once, stored answers not at all.

        Args:
            desc: what is going on, for the progress bar.

        Raises:
            LLMError: the key, the model, the money or the server stops the run, no question reached anybody, or
                ``replay`` lacks answers. All that came back is stored.
            KeyboardInterrupt: likewise; calls in flight were waited for.
        """
        places, talks = self._distinct(requests)
        self._look_up(talks)
        todo = [talk for talk in talks if talk.answer is None]
        if todo:
            if self.config.replay:
                self._replay(todo, len(talks))
            else:
                self._run(lambda session: self._ask_all(session, todo, desc), len(todo), len(talks))
        answers = [talk.answer for talk in talks if talk.answer is not None]
        for talk, answer in zip(talks, answers, strict=True):
            tokens = answer.prompt_tokens, answer.completion_tokens
            self._use(talk.key, *tokens, answer.cost_usd, answer.n_asks)
        if todo:
            failed = Counter(answer.failure for answer in answers if answer.failure)
            self._report(desc, len(talks), len(todo), failed)
        return [answers[place] for place in places]

    def cached(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | None]:
        """Stored answers in the order of the questions; None where something would have to be sent."""
        places, talks = self._distinct(requests)
        self._look_up(talks)
        return [talks[place].answer for place in places]

    def said(self, requests: Sequence[ChatRequest]) -> list[list[str]]:
        """Of each question all that the model is stored to have said, as it came: rejected answers first."""
        places, talks = self._distinct(requests)
        self._look_up(talks)
        return [talks[place].heard for place in places]

    def plan(self, requests: Sequence[ChatRequest]) -> Plan:
        """What asking these would cost; nothing is sent."""
        _, talks = self._distinct(requests)
        self._look_up(talks)
        todo = [talk for talk in talks if talk.answer is None]
        records = self.store.recent(self.endpoint, self.model, "chat", _RECORDS)
        scale, lengths = _calibration(records)
        sizes = estimate_chat([self._messages(talk) for talk in todo])
        prompt = round(sum(scale.get(t.request.template, scale[""]) * n for t, n in zip(todo, sizes, strict=True)))
        most = sum(talk.request.max_tokens for talk in todo)
        usual = sum(min(lengths.get(talk.request.template, math.inf), talk.request.max_tokens) for talk in todo)
        return self._plan(len(todo), len(talks) - len(todo), prompt, round(usual), most)

    @property
    def is_explored(self) -> bool:
        """Whether it is known how this endpoint is to be asked; if not, the first call of ``ask`` finds out."""
        return self._dialect is not None and not self._is_doubtful

    def pending(self, requests: Sequence[ChatRequest]) -> list[Exported]:
        """The next call of every question without an answer, for a batch file.

        Ask one question first where ``is_explored`` is false, or the batch may be refused as a whole.
        """
        _, talks = self._distinct(requests)
        self._look_up(talks)
        return [self._call(talk) for talk in talks if talk.answer is None]

    def _distinct(self, requests: Sequence[ChatRequest]) -> tuple[list[int], list[Conversation]]:
        """One conversation per distinct question, and for each question which one is its own."""
        talks: dict[str, Conversation] = {}
        order: dict[str, int] = {}
        places = []
        for request in requests:
            talk = Conversation(request)
            talk.key = self._call(talk).key
            places.append(order.setdefault(talk.key, len(order)))
            talks.setdefault(talk.key, talk)
        return places, list(talks.values())

    def _look_up(self, talks: Sequence[Conversation]) -> None:
        """Follow what is stored of each conversation: to its answer, or to the point where it must go on."""
        todo, bad = list(talks), []
        while todo:
            keys = [self._call(talk).key for talk in todo]
            stored = self.store.get(keys, rejected=True)
            found = [(talk, key) for talk, key in zip(todo, keys, strict=True) if key in stored]
            todo = [talk for talk, key in found if goes_on(talk, stored[key])]
            bad += [key for talk, key in found if talk.answer is None and not stored[key].rejected]
        if bad and not self.config.replay:  # came by batch, or right before the end of a run
            self.store.reject(bad)

    def _replay(self, talks: Sequence[Conversation], n: int) -> None:
        """Without a network what the model got wrong stays wrong, and what has no answer at all is an error."""
        missing = [talk.request.tag or talk.request.template for talk in talks if talk.recorded is None]
        if missing:
            raise LLMError(_missing(missing, n, self.store))
        for talk in talks:
            talk.answer = talk.recorded
        self.failures.update(talk.recorded.failure for talk in talks if talk.recorded and talk.recorded.failure)

    def _messages(self, talk: Conversation) -> list[dict[str, str]]:
        """The messages of the next call, with what was said before and, where needed, the schema in words."""
        dialect, schema = self._dialect or self._first_dialect, canonical(talk.request.schema)
        messages: list[dict[str, str]] = [dict(message) for message in talk.request.messages]
        if dialect.mode != "json_schema":
            last = messages[-1]
            last["content"] = f"{last['content']}\n\nAnswer with JSON alone that fits this JSON schema:\n{schema}"
        for text, problem in talk.turns:
            messages.append({"role": "assistant", "content": text[:_QUOTED_ANSWER].strip() or "(nothing)"})
            demand = "Answer the same question again, with JSON alone that fits this JSON schema"
            messages.append({"role": "user", "content": f"Not usable: {problem.message}.\n{demand}:\n{schema}"})
        return messages

    def _call(self, talk: Conversation) -> Exported:
        """The next call of a conversation."""
        dialect, request = self._dialect or self._first_dialect, talk.request
        if talk.call and talk.call[:2] == (dialect, len(talk.turns)):
            return talk.call[2]
        body: dict[str, Any] = {"model": self.model, "messages": self._messages(talk)}
        body[dialect.tokens_key] = request.max_tokens
        for name, value in (("temperature", self.config.temperature), ("seed", self.config.seed)):
            if value is not None and name not in dialect.without:
                body[name] = value
        if dialect.mode == "json_schema":
            schema = request.schema if dialect.limits else json_answers.without_limits(request.schema)
            form = {"name": request.schema_name, "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif dialect.mode == "json_object":
            body["response_format"] = {"type": "json_object"}
        sent = canonical(body)
        key = key_of(self.endpoint, CHAT, request.template, sent)
        call = Exported(key, self.endpoint, self.model, "chat", request.template, sent)
        talk.call = dialect, len(talk.turns), call
        return call

    @property
    def _first_dialect(self) -> Dialect:
        return Dialect(mode="json_schema" if self.config.structured == "auto" else self.config.structured)

    @property
    def _dialect_name(self) -> str:
        return f"dialect {self.config.structured}"

    @property
    def _doubt_name(self) -> str:
        return f"{self._dialect_name} doubtful"

    async def _ask_all(self, session: Session, talks: Sequence[Conversation], desc: str) -> None:
        if not self.is_explored:
            for talk in talks[:_PROBES]:
                failure = await self._detect(session, replace(talk, turns=[*talk.turns]))
                if failure is not None and failure.kind == "connection":
                    self._last_failure = failure
                    raise self._nobody(len(talks))
                if failure is None or failure.kind in _OF_THE_WAY:
                    break
            for talk in talks:  # all that was paid is looked up again
                talk.start_again()
                talk.prompt_tokens, talk.completion_tokens, talk.cost_usd = 0, 0, 0.0
            self._look_up(talks)
            for talk in talks:
                talk.answer = replace(talk.answer, from_cache=False) if talk.answer else None
        todo = [talk for talk in talks if talk.answer is None]
        await session.share_out(todo, lambda talk: self._converse(session, talk), desc, "answer", self._total)

    async def _detect(self, session: Session, talk: Conversation) -> Failure | None:
        """Ask one question in one way after the other until one works, and remember it for the endpoint.

        A way that worked before comes first, for answers are stored by the way in which they were asked for.

        Returns: the last failure, if none works.
        """
        known = self._dialect
        dialect: Dialect | None = known or self._first_dialect
        failure: Failure | None = None
        may_change = self.config.structured == "auto"
        while dialect is not None:
            self._dialect = dialect
            call = self._call(talk)
            outcome = await self._ask_once(session, talk, call)
            if isinstance(outcome, Failure):
                failure = outcome
                if outcome.kind != "bad request":
                    break
                dialect = self._first_dialect if dialect is known else dialect.next(outcome.message, may_change)
                continue
            verdict = json_answers.judge(*outcome, json_answers.without_limits(talk.request.schema))
            ignored = isinstance(verdict, Problem) and verdict.kind in ("not JSON", "schema")
            if not (ignored and may_change and dialect.mode == "json_schema" and dialect is not known):
                self.store.remember(self.endpoint, self.model, self._dialect_name, asdict(dialect))
                self._doubt(False)
                return None
            # The server took the schema and did not heed it.
            session.reject(call.key)
            dialect = replace(dialect, mode="json_object")
        self._dialect = known
        return failure

    def _doubt(self, is_doubtful: bool) -> None:
        """Note whether the way of asking is to be looked for anew when something is asked next."""
        if is_doubtful != self._is_doubtful:
            self._is_doubtful = is_doubtful
            self.store.remember(self.endpoint, self.model, self._doubt_name, is_doubtful)

    async def _converse(self, session: Session, talk: Conversation) -> None:
        """Ask until there is a good answer, or none is to be had."""
        while talk.answer is None:
            call = self._call(talk)
            outcome = await self._ask_once(session, talk, call)
            if isinstance(outcome, Failure):
                talk.answer = talk.failed(outcome.kind)
                self._count_failure(session, outcome)
            elif not talk.take(*outcome):
                session.reject(call.key)
                if talk.is_hopeless:
                    talk.answer = talk.failed()
        if talk.answer.failure:
            self.failures[talk.answer.failure] += 1

    async def _ask_once(
        self, session: Session, talk: Conversation, call: Exported
    ) -> tuple[str, str | None] | Failure:
        """Send one call and store what comes, before anybody judges it."""
        size = 0
        if self.config.tokens_per_minute is not None:
            size = estimate_chat([self._messages(talk)])[0] + talk.request.max_tokens // 2
        outcome = await session.way.send(CHAT, call.request, read_chat, size)
        if isinstance(outcome, Failure):
            return outcome
        text, reason, usage = outcome
        answer = chat_answer(call, (session.way.hidden(text), reason, usage), self.price)
        paid = answer.prompt_tokens, answer.completion_tokens, answer.cost_usd
        self.spent.add(*paid)
        talk.count(*paid)
        await session.keep([answer])
        return answer.text or "", reason

    def _count_failure(self, session: Session, failure: Failure) -> None:
        self._last_failure = failure
        try:
            session.way.count_failure(failure)
        except LLMError:
            if failure.kind == "bad request":  # perhaps the endpoint no longer takes what it took
                self._doubt(True)
            raise

    # ---- embeddings ----

    def embed(self, texts: Sequence[str], desc: str, dimensions: int | None = None) -> np.ndarray:
        """Vectors ``[P, D]`` float32; zeros for an empty text, NaN for one that no vector could be had for.

        Args:
            dimensions: length of the vectors, for models that offer several; none is the model's own.

        Raises: LLMError as ``ask`` does, or if the vectors are not all of one length.
        """
        distinct = list(dict.fromkeys(text for text in texts if text))
        found = self._stored_vectors(distinct, dimensions)
        todo = [text for text in distinct if text not in found]
        if todo and self.config.replay:
            raise LLMError(_missing([short(text, 60) for text in todo], len(distinct), self.store))
        if todo:
            n = len(todo), len(distinct)
            self._run(lambda session: self._embed_missing(session, todo, desc, dimensions, found), *n)
            lost = len(distinct) - len(found)
            self._report(desc, len(distinct), len(todo), {"without a vector": lost} if lost else {})
        length = self._one_length(found, dimensions)
        if distinct and not found and not length:
            raise LLMError(f"{self.model} at {self.endpoint} gave no vector for any of {len(distinct)} texts")
        for text, one in found.items():
            self._use(self._vector_key(text, dimensions), one.prompt_tokens, 0, one.cost_usd, 1)
        vectors = np.full((len(texts), length), np.nan, np.float32)
        for row, text in enumerate(texts):
            if not text:
                vectors[row] = 0
            elif text in found:
                vectors[row] = found[text].vector
        return vectors

    def plan_embedding(self, texts: Sequence[str], dimensions: int | None = None) -> Plan:
        """What embedding these texts would cost; nothing is sent.

        ``calls`` are of up to ``TEXTS_PER_CALL`` texts each, ``cached`` counts texts.
        """
        distinct = list(dict.fromkeys(text for text in texts if text))
        found = self._stored_vectors(distinct, dimensions)
        todo = [text for text in distinct if text not in found]
        records = self.store.recent(self.endpoint, self.model, "embedding", _RECORDS)
        tokens = round(_embedding_scale(records) * sum(estimate_texts(todo)))
        return self._plan(-(-len(todo) // TEXTS_PER_CALL), len(found), tokens, 0, 0)

    def pending_embedding(self, texts: Sequence[str], dimensions: int | None = None) -> list[Exported]:
        """A call for every text without a vector, for a batch file."""
        distinct = list(dict.fromkeys(text for text in texts if text))
        found = self._stored_vectors(distinct, dimensions)
        return [self._vector_call(text, dimensions) for text in distinct if text not in found]

    def _vector_key(self, text: str, dimensions: int | None) -> str:
        return key_of(self.endpoint, EMBEDDINGS, self.model, dimensions, text)

    def _vector_call(self, text: str, dimensions: int | None) -> Exported:
        """The call for one text alone."""
        key, request = self._vector_key(text, dimensions), self._vector_request([text], dimensions)
        return Exported(key, self.endpoint, self.model, "embedding", "embedding", request)

    def _vector_request(self, texts: Sequence[str], dimensions: int | None) -> str:
        body: dict[str, Any] = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        return canonical(body if dimensions is None else {**body, "dimensions": dimensions})

    def _stored_vectors(self, texts: Sequence[str], dimensions: int | None) -> dict[str, Stored]:
        keys = [self._vector_key(text, dimensions) for text in texts]
        stored = self.store.get(keys)
        return {text: stored[key] for text, key in zip(texts, keys, strict=True) if key in stored}

    async def _embed_missing(
        self, session: Session, todo: list[str], desc: str, dimensions: int | None, found: dict[str, Stored]
    ) -> None:
        """Ask for vectors until all that can be had are of one length, and add them to ``found``."""
        length = self.store.fact(self.endpoint, self.model, f"length {dimensions}")
        for rounds_left in reversed(range(_ROUNDS)):
            calls = [todo[start : start + TEXTS_PER_CALL] for start in range(0, len(todo), TEXTS_PER_CALL)]
            await session.share_out(
                calls,
                lambda call: self._embed_call(session, call, dimensions, found),
                desc,
                "call",
                self._total,
            )
            lengths = Counter(len(_vector(one)) for one in found.values())
            usual = length or max(lengths, key=lambda one: lengths[one], default=None)
            if not set(lengths) - {usual} or not rounds_left:
                return
            todo = [text for text, one in found.items() if len(_vector(one)) != usual]
            self.store.reject(self._vector_key(text, dimensions) for text in todo)
            for text in todo:
                del found[text]

    def _one_length(self, found: Mapping[str, Stored], dimensions: int | None) -> int:
        """The length of all vectors, remembered for later runs; 0 if it is not known."""
        name, lengths = f"length {dimensions}", Counter(len(_vector(one)) for one in found.values())
        remembered = self.store.fact(self.endpoint, self.model, name)
        if len(lengths) > 1:
            told = ", ".join(f"{n} of {length} numbers" for length, n in lengths.most_common())
            raise LLMError(
                f"{self.model} at {self.endpoint} gives vectors of unequal length ({told}); if the model behind the "
                f"name has changed, delete what is stored of it: cache prune --model={self.model}"
            )
        length = next(iter(lengths), dimensions or remembered or 0)
        if remembered and length != remembered:
            raise LLMError(
                f"{self.model} at {self.endpoint} gives vectors of {length} numbers, and gave {remembered} before; if "
                f"the model behind the name has changed, delete what is stored of it: cache prune --model={self.model}"
            )
        if lengths and length != remembered:
            self.store.remember(self.endpoint, self.model, name, length)
        return int(length)

    async def _embed_call(
        self,
        session: Session,
        texts: list[str],
        dimensions: int | None,
        found: dict[str, Stored],
    ) -> None:
        """Ask for some texts' vectors; another length than was asked for is an answer that is none."""
        size = 0 if self.config.tokens_per_minute is None else sum(estimate_texts(texts))
        outcome = await session.way.send(
            EMBEDDINGS,
            self._vector_request(texts, dimensions),
            lambda content: read_vectors(content, len(texts), dimensions),
            size,
        )
        if isinstance(outcome, Failure):
            if outcome.kind == "bad request" and len(texts) > 1:  # one text may spoil it for the others
                for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
                    await self._embed_call(session, half, dimensions, found)
                return
            self._count_failure(session, outcome)
            self.failures[outcome.kind] += len(texts)
            return
        vectors, usage = outcome
        calls = [self._vector_call(text, dimensions) for text in texts]
        answers = vector_answers(calls, texts, vectors, usage, self.price)
        cost = None if self.price is None else sum(one.cost_usd or 0.0 for one in answers)
        self.spent.add(sum(one.prompt_tokens for one in answers), 0, cost)
        await session.keep(answers)
        for text, one in zip(texts, answers, strict=True):
            found[text] = Stored(None, None, one.vector, one.prompt_tokens, 0, one.cost_usd, False)

    # ---- running ----

    def _run(self, main: Callable[[Session], Awaitable[None]], n_todo: int, n_all: int) -> None:
        """Run a step of so many questions or texts.

        Raises: LLMError if all of them failed on the way, for a dead server must not end as a finished run.
        """
        n_paid, before = self.spent.calls, Counter(self.failures)
        try:
            run(
                lambda: Session(self.config, self.store, self._check_cost, self._backoff_s, self.say),
                main,
                self._patience_s,
                self.say,
            )
        except KeyboardInterrupt:
            self.say(f"all answers so far are in {self.store.path}; run the same command again to go on")
            raise
        failed = self.failures - before
        # Where others of the step are answered, what a server cannot answer fails alone, in this run as in the last.
        kinds = _OF_THE_WAY if n_todo == n_all else _UNREACHED
        if self.spent.calls == n_paid and sum(failed[kind] for kind in kinds) == n_todo:
            raise self._nobody(n_todo)

    def _nobody(self, n: int) -> LLMError:
        last = f"; the last failure: {one.kind}, {one.message}" if (one := self._last_failure) else ""
        return LLMError(
            f"{self.endpoint} answered nothing to {n} questions or texts{last}. What was answered is stored; check "
            "that the server is up, and run the same command again to go on"
        )

    def _total(self) -> str:
        n_failed = sum(self.failures.values())
        return f"{self.spent}, {n_failed} failed" if n_failed else str(self.spent)

    def _check_cost(self) -> None:
        if self.config.max_cost is not None and self.spent.cost_usd >= self.config.max_cost:
            raise CostLimit(
                f"llm.max_cost: {dollars(self.spent.cost_usd)} are spent, and "
                f"{dollars(self.config.max_cost)} were allowed; all answers are stored: run the same command "
                "again with a fresh allowance to go on"
            )

    def _use(self, key: str, prompt: int, completion: int, cost_usd: float | None, calls: int) -> None:
        if key not in self._counted:
            self._counted.add(key)
            self.used.add(prompt, completion, cost_usd, calls)

    def _report(self, desc: str, n: int, n_asked: int, failed: Mapping[str, int]) -> None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items()))
        lost = f"; {sum(failed.values())} failed ({kinds})" if kinds else ""
        self.say(f"{desc}: {n} distinct, {n - n_asked} from the cache, {n_asked} asked{lost}; so far {self.spent}")
        if failed.get("cut off"):
            self.say(
                f"note: answers were cut off at llm.max_tokens: {self.config.max_tokens}; raise it and run again, "
                "which asks all questions of these steps anew"
            )

    def _plan(self, calls: int, cached: int, prompt: int, usual: int, most: int) -> Plan:
        cost = None if self.price is None else self.price.of(prompt, most)
        return Plan(calls, cached, prompt, usual, most, cost)


def chat_answer(
    call: Exported, said: tuple[str, str | None, Mapping[str, Any]], price: Price | None, share: float = 1.0
) -> Answer:
    """What is stored of a response to a question, from what ``read_chat`` gave.

    Args:
        share: part of the price that is to be paid.
    """
    text, reason, usage = said
    prompt, completion = tokens_of(usage, "prompt_tokens"), tokens_of(usage, "completion_tokens")
    # A server that does not count must not make a limit on money void.
    prompt = estimate_chat([json.loads(call.request)["messages"]])[0] if prompt is None else prompt
    completion = estimate_texts([text])[0] if completion is None else completion
    cost = None if price is None else share * price.of(prompt, completion)
    paid = prompt, completion, cost
    return Answer(call.key, call.endpoint, call.model, call.kind, call.template, *paid, call.request, text, reason)


def vector_answers(
    calls: Sequence[Exported],
    texts: Sequence[str],
    vectors: np.ndarray,
    usage: Mapping[str, Any],
    price: Price | None,
    share: float = 1.0,
) -> list[Answer]:
    """What is stored of a response with vectors, from what ``read_vectors`` gave: a row per text.

    The tokens of the response are shared out among the texts by their estimated length.
    """
    estimates = np.array(estimate_texts(texts), dtype=np.float64)
    total = tokens_of(usage, "prompt_tokens")
    total = int(estimates.sum()) if total is None else total
    ends = np.round(total * estimates.cumsum() / estimates.sum()).astype(int)
    answers = []
    for call, text, vector, n in zip(calls, texts, vectors, np.diff(ends, prepend=0).tolist(), strict=True):
        cost = None if price is None else share * price.of(n, 0)
        head = call.key, call.endpoint, call.model, call.kind, call.template
        answers.append(Answer(*head, n, 0, cost, json.dumps(text), vector=vector))
    return answers


def price_for(config: LLMConfig) -> Price | None:
    """The price of the model that is asked; None if it is not known.

    Raises: ConfigError for a faulty price list, or ``max_cost`` without a price.
    """
    price = price_at(config.base_url or OPENAI, str(config.model), load_prices(config.prices))
    if price is None and config.max_cost is not None:
        raise ConfigError(
            f"llm.max_cost: the price of {config.model} is not known; write it into a file, "
            f"'{config.model}: {{input: USD, output: USD}}' per million tokens, and name the file in llm.prices"
        )
    return price


def price_at(endpoint: str, model: str, prices: Mapping[str, Price]) -> Price | None:
    """The price of a model; nothing on this machine, unless it is named; None if it is not known."""
    return price_of(model, prices) or (Price(0.0, 0.0) if is_loopback(endpoint) else None)


def _vector(stored: Stored) -> np.ndarray:
    assert stored.vector is not None, "an embedding is stored with its vector"
    return stored.vector


def _missing(tags: Sequence[str], n: int, store: AnswerStore) -> str:
    shown = "\n".join(f"  {tag}" for tag in tags[:10])
    more = f"\n  and {len(tags) - 10} more" if len(tags) > 10 else ""
    return f"llm.replay: {store.path} has no answer to {len(tags)} of {n} questions:\n{shown}{more}"


def _calibration(records: Sequence[tuple[str, str, int, int]]) -> tuple[dict[str, float], dict[str, float]]:
    """From stored answers: counted over estimated prompt tokens, and the mean length of an answer, by template.

    The template "" stands for all. A template with few records is left out.
    """
    estimates = estimate_chat([json.loads(request)["messages"] for _, request, _, _ in records])
    groups: dict[str, list[tuple[int, int, int]]] = {"": []}
    for (template, _, prompt, completion), estimate in zip(records, estimates, strict=True):
        groups[""].append((prompt, estimate, completion))
        groups.setdefault(template, []).append((prompt, estimate, completion))
    scale, lengths = {"": 1.0}, {}
    for template, rows in groups.items():
        if len(rows) >= _FEWEST_RECORDS:
            scale[template] = sum(row[0] for row in rows) / sum(row[1] for row in rows)
            lengths[template] = sum(row[2] for row in rows) / len(rows)
    return scale, lengths


def _embedding_scale(records: Sequence[tuple[str, str, int, int]]) -> float:
    if len(records) < _FEWEST_RECORDS:
        return 1.0
    return sum(record[2] for record in records) / sum(estimate_texts([json.loads(one[1]) for one in records]))


def key_of(*parts: Any) -> str:
    """Hex SHA-256 of everything that determines an answer."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def canonical(obj: Any) -> str:
    """JSON without spaces, in ASCII; keys keep their order, for a model writes an object in the order of its schema."""
    return json.dumps(obj, separators=(",", ":"))
