"""Calls to an OpenAI-compatible endpoint: sent at the pace it allows, repeated while that can help, read with mistrust.

A call gives what its reader made of the response, or a ``Failure``; what no repetition can help stops the run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import numpy as np

from recbole_edt.cleaning import short, whole_text
from recbole_edt.errors import LLMError
from recbole_edt.llm.settings import MODES, OPENAI, LLMConfig, is_near, shown

CHAT, EMBEDDINGS = "/chat/completions", "/embeddings"
LONGEST_WAIT_S = 3600.0
"""The longest wait a server may ask for; beyond it the run stops."""

_LONGEST_BACKOFF_S = 60.0
_UNTOLD_WAIT_S = 10.0  # the longest pause a server may ask for without our saying so
_FEWEST_IN_A_ROW, _BAD_REQUESTS_IN_A_ROW = 5, 100
_CONNECT_S = 15.0  # to a machine that is up this takes less
_T = TypeVar("_T")


# ---- what is understood, and what comes back ---------------------------------------------------------------------


@dataclass(frozen=True)
class Dialect:
    """What an endpoint and model understand.

    Attributes:
        mode: one of ``MODES``.
        limits: whether a schema may hold limits such as ``maxLength``.
        tokens_key: name of the parameter for the most tokens.
        without: parameters that are refused.
    """

    mode: str = "json_schema"
    limits: bool = True
    tokens_key: str = "max_tokens"
    without: tuple[str, ...] = ()

    def next(self, message: str, may_change_mode: bool) -> Dialect | None:
        """What to try after a refusal with this message; None if there is nothing left."""
        if self.tokens_key == "max_tokens" and "max_completion_tokens" in message:
            return replace(self, tokens_key="max_completion_tokens")
        for name in ("temperature", "seed"):
            if name not in self.without and re.search(rf"['\"`]{name}['\"`]", message):
                return replace(self, without=(*self.without, name))
        if self.mode == "json_schema" and self.limits:
            return replace(self, limits=False)
        later = MODES[MODES.index(self.mode) + 1 :]
        return replace(self, mode=later[0]) if later and may_change_mode else None


def read_chat(content: str) -> tuple[str, str | None, Mapping[str, Any]]:
    """What the model said, why it stopped and the usage, from the body of a response.

    Raises: ValueError if the body is not a chat answer.
    """
    body = _object(content)
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ValueError(f"not a chat answer: {short(content)}")
    text, reason = message.get("content"), choice.get("finish_reason")
    if isinstance(text, list):  # parts, as some servers send them
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    if not text and message.get("refusal"):
        text, reason = message["refusal"], "refusal"
    if not isinstance(text, str | None):
        raise ValueError(f"the content is not a text: {short(content)}")
    return whole_text(text or ""), None if reason is None else whole_text(str(reason)), _usage(body)


def read_vectors(content: str, n_texts: int, dimensions: int | None) -> tuple[np.ndarray, Mapping[str, Any]]:
    """``[n_texts, D]`` float32 in the order of the texts, and the usage, from the body of a response.

    Raises: ValueError if a row is missing, doubled, not finite or of another length.
    """
    body = _object(content)
    rows = body.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"not an answer with vectors: {short(content)}")
    if sorted(str(row.get("index")) for row in rows) != sorted(map(str, range(n_texts))):
        raise ValueError(f"expected one vector for each of {n_texts} texts, found {len(rows)}")
    try:
        vectors = np.array([row["embedding"] for row in sorted(rows, key=lambda row: int(row["index"]))], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"vectors of unequal length, or not of numbers ({short(str(error))})") from None
    if vectors.ndim != 2 or not vectors.shape[1] or not (np.abs(vectors) <= np.finfo(np.float32).max).all():
        raise ValueError("vectors that are empty or not finite")
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise ValueError(f"vectors of {vectors.shape[1]} numbers instead of {dimensions}")
    return vectors.astype(np.float32), _usage(body)


def _object(content: str) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"not JSON: {short(content)}") from None
    if not isinstance(body, dict):
        raise ValueError(f"not a JSON object: {short(content)}")
    return body


def _usage(body: Mapping[str, Any]) -> Mapping[str, Any]:
    usage = body.get("usage")
    return usage if isinstance(usage, dict) else {}


_MAX_TOKENS = 2**53  # no call has as many, and no database holds any number


def tokens_of(usage: Mapping[str, Any], name: str) -> int | None:
    """A count of a usage field; None if the server gave none that can be."""
    count = usage.get(name)
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MAX_TOKENS else None


# ---- the way -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A call that came to nothing.

    Attributes:
        kind: ``bad request``, ``refused``, ``timeout``, ``connection``, ``rate limit``, ``server`` or ``garbage``.
        message: what the server said, or what was wrong with it.
        retry_after_s: the wait that the server asked for.
    """

    kind: str
    message: str
    retry_after_s: float | None = None


class Endpoint:
    """An open connection; to be used inside one event loop.

    Attributes:
        in_flight: calls that were sent and have not come back.
        closing: once true, nothing new is sent.
    """

    def __init__(
        self, config: LLMConfig, before_each: Callable[[], None], backoff_s: float, say: Callable[[str], None]
    ) -> None:
        """
        Args:
            before_each: called right before a call is sent; what it raises stops the call.
            backoff_s: wait before the first repetition, doubled for each further one.
            say: takes a line about a long wait, once for all calls that wait.
        """
        from aiolimiter import AsyncLimiter
        from openai import AsyncOpenAI, Timeout

        # RecBole shows what every library logs, and this one logs every call.
        for library in ("openai", "httpx", "httpx2"):
            logging.getLogger(library).setLevel(logging.WARNING)
        self.config, self._before_each, self._backoff_s, self._say = config, before_each, backoff_s, say
        self.url = config.base_url or OPENAI
        self._key = key_from_environment(config)
        _check_way_of_key(config, self._key)
        parts = urlsplit(self.url)
        query = dict(parse_qsl(parts.query))
        self._http = AsyncOpenAI(
            base_url=urlunsplit(parts._replace(query="")),
            api_key=self._key or "none",
            default_query=query,
            default_headers={"api-key": self._key} if query and self._key else {},  # as Azure wants it
            max_retries=0,
            timeout=Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s / 2)),
        )
        if not _is_openai(self.url):  # the client takes them from the environment, and they concern nobody else
            self._http.organization = self._http.project = None
        self._limits: list[tuple[AsyncLimiter, bool]] = []  # with whether it counts tokens
        if (rate := config.requests_per_minute) is not None:
            # About a second's worth at once: a larger bucket would let through twice the rate in its first minute.
            self._limits.append((AsyncLimiter(max(1.0, rate / 60), max(1.0, 60 / rate)), False))
        if (rate := config.tokens_per_minute) is not None:
            self._limits.append((AsyncLimiter(rate / 6, 10.0), True))
        self._turn = asyncio.Lock()
        self.in_flight, self.closing = 0, False
        self._not_before = 0.0
        self._told_until = 0.0
        self._in_a_row = 0

    async def close(self) -> None:
        await self._http.close()

    async def send(self, path: str, request: str, read: Callable[[str], _T], n_tokens: int) -> _T | Failure:
        """Send a call until it succeeds or its repetitions are used up.

        Args:
            request: the body as JSON.
            read: makes a result of the response's text, or raises ValueError where it is none.
            n_tokens: about how many tokens the call will take.

        Raises: LLMError for what concerns every call alike: the key, the money, the model, a server that is down.
        """
        failure, body = Failure("server", ""), json.loads(request)
        for attempt in range(self.config.retries + 1):
            await self._clearance(n_tokens)
            try:
                result = read(await self._post(path, body))
            except Exception as error:
                failure = self._failure(error)
            else:
                self._in_a_row = 0
                return result
            if failure.kind in ("bad request", "refused"):
                break
            if attempt < self.config.retries:
                self._tell(failure)
                await self._back_off(attempt, failure)
        return failure

    def hidden(self, text: str) -> str:
        """The text without the key, should the server repeat it."""
        return text.replace(self._key, "***") if len(self._key) >= 8 else text

    def count_failure(self, failure: Failure) -> None:
        """Note a call that failed for good.

        Raises: LLMError if so many failed one after the other that the rest would too.
        """
        if failure.kind == "refused":
            return
        self._in_a_row += 1
        # Prompts that are too long for the model may well come one after the other, and their refusal costs nothing.
        most = _BAD_REQUESTS_IN_A_ROW if failure.kind == "bad request" else _FEWEST_IN_A_ROW
        if self._in_a_row >= max(most, self.config.concurrency):
            raise LLMError(
                f"{self.url} failed {self._in_a_row} calls in a row for good; the last: {failure.kind}, "
                f"{failure.message}. What was answered is stored; run the same command again to go on"
            )

    async def _post(self, path: str, body: Mapping[str, Any]) -> str:
        self.in_flight += 1
        try:
            # The client's own time-out is per piece of the response, and a server may drip for ever.
            content = await asyncio.wait_for(self._http.post(path, cast_to=str, body=body), self.config.timeout_s)
            return self.hidden(content)  # before any of it is cut, which could leave a part of the key
        finally:
            self.in_flight -= 1

    async def _clearance(self, n_tokens: int) -> None:
        """Wait for a server that asked for a pause, and for a place under the limits."""
        await self._pause()
        if self._limits:
            # One call at a time: places that many took before a pause, or bit by bit, would all be used at one instant.
            async with self._turn:
                for limiter, counts_tokens in self._limits:
                    await _acquire(limiter, n_tokens if counts_tokens else 1)
                await self._pause()
        if self.closing:
            raise asyncio.CancelledError
        self._before_each()

    async def _pause(self) -> None:
        while (wait_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.1))  # not all at the same instant

    def _tell(self, failure: Failure) -> None:
        """Say that a wait begins, unless the last one that was told of goes on."""
        now, wait_s, retries = time.monotonic(), failure.retry_after_s or 0.0, self.config.retries
        if failure.kind in ("connection", "timeout") and now >= self._told_until:
            tries_s = retries * self.config.timeout_s if failure.kind == "timeout" else 0.0
            wait_s = tries_s + sum(min(_LONGEST_BACKOFF_S, self._backoff_s * 2**n) for n in range(retries))
            self._told_until = now + wait_s
            problem = "no connection to" if failure.kind == "connection" else "no answer in time from"
            self._say(f"{problem} {self.url}; trying again for about {math.ceil(wait_s)} s")
        elif _UNTOLD_WAIT_S < wait_s <= LONGEST_WAIT_S and now >= self._not_before:
            self._say(f"{self.url}: the server asks for a pause of {math.ceil(wait_s)} s")

    async def _back_off(self, attempt: int, failure: Failure) -> None:
        wait_s = min(_LONGEST_BACKOFF_S, self._backoff_s * 2**attempt) * random.uniform(0.75, 1.25)
        if failure.retry_after_s is not None:
            if failure.retry_after_s > LONGEST_WAIT_S:
                raise LLMError(
                    f"{self.url} asks to wait for {failure.retry_after_s / 3600:.1f} hours ({failure.message}); "
                    "what was answered is stored: run the same command again then"
                )
            wait_s = failure.retry_after_s
        if failure.kind == "rate limit":
            self._not_before = max(self._not_before, time.monotonic() + wait_s)  # for every call
        else:
            await asyncio.sleep(wait_s)

    def _failure(self, error: Exception) -> Failure:
        """What an error means for the call; raises what is no failure of the way."""
        import openai

        if isinstance(error, (asyncio.TimeoutError, openai.APITimeoutError)):
            return Failure("timeout", f"no answer within {self.config.timeout_s:g} s")
        if isinstance(error, openai.APIStatusError):
            return self._status_failure(error)
        if isinstance(error, openai.APIConnectionError):
            return Failure("connection", short(self.hidden(str(error.__cause__ or error))) or "the connection broke")
        if isinstance(error, ValueError):
            return Failure("garbage", str(error))
        raise error

    def _told_key(self) -> str:
        name = shown(self.config.api_key_env)
        if not name:
            return "None was sent: name the environment variable with the key of this server in api_key_env"
        state = "was sent" if self._key else f"is missing: the environment variable {name} is empty"
        return f"The key from {name} {state}; check that it belongs to this endpoint and may use this model"

    def _status_failure(self, error: Any) -> Failure:
        status, message = error.status_code, _message(error, self.hidden)
        if error.code in ("insufficient_quota", "billing_hard_limit_reached") or status == 402:
            raise LLMError(
                f"{self.url}: the account has no money left ({status}: {message}); top it up and run the same command "
                "again, what was answered is stored"
            ) from None
        if status in (401, 403):
            raise LLMError(f"{self.url}: the key is refused ({status}: {message}). {self._told_key()}") from None
        if status in (404, 405, 410, 501):
            raise LLMError(
                f"{self.url}: the endpoint or its model {self.config.model!r} does not exist ({status}: {message}); "
                "check base_url, which usually ends in /v1, and the name of the model"
            ) from None
        if status in (408, 409, 425) or status >= 500 or status == 429:
            wait_s = retry_after(error.response.headers)
            limited = status in (429, 503, 529) or wait_s is not None
            return Failure("rate limit" if limited else "server", f"{status}: {message}", wait_s)
        return Failure("refused" if error.code == "content_filter" else "bad request", f"{status}: {message}")


async def _acquire(limiter: Any, n: float) -> None:
    """Wait for places, which may be more than the limiter gives at a time."""
    while n > 0:
        await limiter.acquire(min(n, limiter.max_rate))
        n -= limiter.max_rate


def key_from_environment(config: LLMConfig) -> str:
    """The key; empty where a server of your own needs none.

    Raises: LLMError if there is none for OpenAI, or if it cannot be sent.
    """
    name = config.api_key_env or ""
    key = os.environ.get(name, "").strip()
    if not key and config.base_url is None:
        place = f"put it into the environment variable {shown(name)}, or name another" if name else "name its variable"
        raise LLMError(f"no key: {place} in api_key_env")
    if not key.isascii() or not key.isprintable():
        raise LLMError(f"the environment variable {shown(name)} holds characters that no key has; copy the key again")
    return key


def _check_way_of_key(config: LLMConfig, key: str) -> None:
    """Raises: LLMError if OpenAI's key would be readable on its way through a foreign network."""
    default = LLMConfig.api_key_env
    if key and config.api_key_env == default and config.base_url and _is_open(config.base_url):
        raise LLMError(
            f"{config.base_url}: the key in {default} would be sent readable for everybody on the way; use https, or, "
            "if this endpoint has a key of its own, put that into another variable and name it in api_key_env"
        )


def _is_open(url: str) -> bool:
    """Whether a URL is plain http beyond this machine and its private network."""
    return urlsplit(url).scheme == "http" and not is_near(url)


def _is_openai(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from a number or a date; None if it does not say."""
    value = headers.get("retry-after-ms")
    try:
        wait_s = float(value) / 1000 if value else float(headers.get("retry-after", ""))
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, wait_s) if math.isfinite(wait_s) else None


def _message(error: Any, hide: Callable[[str], str]) -> str:
    """What a server said about an error, with the parameter that it names."""
    body = error.body if isinstance(error.body, dict) else {}
    parameter = f" (parameter '{short(hide(body['param']))}')" if isinstance(body.get("param"), str) else ""
    return short(hide(str(body.get("message") or error.message))) + parameter
