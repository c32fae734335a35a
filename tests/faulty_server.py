"""A small OpenAI-compatible server on loopback that answers well, or on cue goes wrong in a chosen way.

    with FaultyServer(latency_s=0.2, fault_share=0.3) as server:
        ...  # base URL: server.url
        server.cue("429", "500")  # what happens to the next two calls

    python tests/faulty_server.py --latency=0.2  # in a process of its own: prints its URL, GET /stats counts

Good answers depend on the request's body alone, so that two runs that ask the same get the same. They fit the JSON
schema of ``response_format``, or the last one written into the messages. Every call is counted when it arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import random
import re
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from time import monotonic, time
from typing import Any

ADJECTIVES = "organic classic roasted wild stainless ceramic large fresh dark golden".split()
WORDS = {
    "food": "tea honey coffee pasta rice olive pepper sugar bean soup".split(),
    "kitchen": "pan knife kettle bowl spoon grater oven mug plate whisk".split(),
}
BRANDS = "Acme Harvest Nordic Bialetti Lodge Tramontina Barilla Twinings Zwilling Pyrex".split()

# HTTP status, message, code.
STATUS: dict[str, tuple[int, str, str | None]] = {
    "400": (400, "this request is malformed", None),
    "401": (401, "Incorrect API key provided", "invalid_api_key"),
    "402": (402, "Insufficient Balance", None),
    "403": (403, "this key may not use this model", None),
    "404": (404, "The model does not exist", "model_not_found"),
    "408": (408, "request timed out", None),
    "409": (409, "conflict", None),
    "policy": (400, "The prompt triggered the content policy", "content_filter"),
    "422": (422, "unprocessable", None),
    "429": (429, "Rate limit reached", "rate_limit_exceeded"),
    "429 date": (429, "Rate limit reached", "rate_limit_exceeded"),
    "429 bare": (429, "Rate limit reached", "rate_limit_exceeded"),
    "quota": (429, "You exceeded your current quota, check your plan and billing", "insufficient_quota"),
    "500": (500, "internal error", None),
    "502": (502, "bad gateway", None),
    "503": (503, "unavailable", None),
    "529": (529, "overloaded", None),
}
# Answers with status 200 that cannot be used, and connections that end badly.
BROKEN = ("drip", "hang", "cut", "reset", "truncated", "html", "error 200", "no choices", "noise")
CHAT = ("not json", "wrong schema", "noise content", "empty", "null", "refusal", "length", "filtered")
EMBEDDING = ("duplicate rows", "missing rows", "wrong dimension", "nan", "no rows")
# Unusual, but good.
HARMLESS = ("fenced", "prose", "reordered", "no usage")
FAULTS = (*STATUS, *BROKEN, *CHAT, *EMBEDDING, *HARMLESS)
# What `fault_share` draws from: all that passes when asked again.
PASSING = ("429", "429 date", "500", "502", "503", "529", "drip", "cut", "reset", "truncated", "html", "error 200")
PASSING_CHAT = (*PASSING, "noise", "no choices", "not json", "wrong schema", "noise content", "empty", "null", "length")
PASSING_EMBEDDING = (*PASSING, "noise", "duplicate rows", "missing rows", "wrong dimension", "nan", "no rows")


class FaultyServer:
    """The server in a thread of its own; everything may be set while it runs.

    Attributes:
        latency_s: time before each answer.
        api_key: where given, any other key gets 401.
        refuses: kinds of ``response_format`` answered with 400 (``json_schema``, ``json_object``); ``limits`` are
            schemas that hold ``maxLength``.
        rejects: names of parameters answered with 400, in OpenAI's words.
        dimensions: length of the vectors, unless the request asks for another.
        retry_after_s: what a 429 asks for.
        fault_share: share of calls that fail in a way that passes; which ones depends on ``seed``, on the body and on
            how often this body came, not on the order of arrival.
        choose: instead of chance, ``choose(body, nth)`` names the fault of the nth call (from 0) of this body, or None.
        answer: instead of the good answer, ``answer(body)`` gives the text of a chat answer.
        always: the fault of every call.
        bodies: number of calls by body (canonical JSON).
        calls: of every call its path, body and fault, in order of arrival.
        arrivals: seconds of the monotonic clock at which they came.
        in_flight, most_in_flight: calls that arrived and are not yet answered, now and at most.
    """

    def __init__(
        self,
        latency_s: float = 0.0,
        api_key: str | None = None,
        refuses: Sequence[str] = (),
        rejects: Sequence[str] = (),
        dimensions: int = 16,
        retry_after_s: float = 0.02,
        fault_share: float = 0.0,
        seed: int = 0,
        choose: Callable[[Mapping[str, Any], int], str | None] | None = None,
        answer: Callable[[Mapping[str, Any]], str] | None = None,
        always: str | None = None,
        port: int = 0,
    ) -> None:
        self.latency_s, self.api_key, self.dimensions = latency_s, api_key, dimensions
        self.refuses, self.rejects = refuses, rejects
        self.retry_after_s, self.fault_share, self.seed = retry_after_s, fault_share, seed
        self.choose, self.answer, self.always, self.port = choose, answer, always, port
        self.bodies: Counter[str] = Counter()
        self.calls: list[tuple[str, dict[str, Any], str | None]] = []
        self.arrivals: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self._cues: deque[str | None] = deque()
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        """Base URL for the client."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def n_calls(self) -> int:
        """Calls of chat and embeddings so far."""
        return len(self.calls)

    def cue(self, *faults: str | None) -> None:
        """What happens to the next calls, in order; None is a good answer."""
        unknown = {fault for fault in faults if fault} - set(FAULTS)
        assert not unknown, f"no such fault: {unknown}"
        self._cues.extend(faults)

    def forget(self) -> None:
        """Start counting anew."""
        self.bodies.clear()
        self.calls.clear()
        self.arrivals.clear()
        self.most_in_flight = self.in_flight

    def stats(self) -> dict[str, Any]:
        """Counts so far."""
        return {
            "calls": self.n_calls,
            "distinct": len(self.bodies),
            "repeated": self.n_calls - len(self.bodies),
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "faults": Counter(fault for _, _, fault in self.calls if fault),
        }

    def __enter__(self) -> FaultyServer:
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    async def serve(self) -> None:
        """Serve until told to stop."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=2**24, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- HTTP ----------------------------------------------------------------------------------------------------

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request and answer it; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        if method == "GET":
            found = {"/stats": self.stats(), "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model"}]}}
            await self._send(writer, 200 if path in found else 404, found.get(path, {}))
            return True
        body = json.loads(content)
        if path == "/cue":
            self.cue(*body)
            await self._send(writer, 200, {})
            return True
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._call(writer, path, body, headers.get("authorization", ""))
        finally:
            self.in_flight -= 1

    async def _call(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any], key: str) -> bool:
        fault = self._fault(path, body, key)
        self.calls.append((path, body, fault))
        self.arrivals.append(monotonic())
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if fault in STATUS:
            status, message, code = STATUS[fault]
            if fault == "401":
                message += f": {key.removeprefix('Bearer ')}"  # as some servers do, to a log's harm
            error = {"message": message, "type": "error", "param": None, "code": code}
            await self._send(writer, status, {"error": error}, self._headers(fault))
            return True
        if fault == "rejects":
            name = next(name for name in self.rejects if name in body)
            hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
            message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
            await self._send(
                writer, 400, {"error": {"message": message, "param": name, "code": "unsupported_parameter"}}
            )
            return True
        if fault == "refuses":
            await self._send(writer, 400, {"error": {"message": "response_format is not supported", "code": None}})
            return True
        if path.endswith("/embeddings"):
            good = embeddings_answer(body, self.dimensions, fault)
        else:
            good = chat_answer(body, fault, self.answer)
        if fault in BROKEN:
            return await self._break(writer, fault, good)
        await self._send(writer, 200, good)
        return True

    def _fault(self, path: str, body: dict[str, Any], key: str) -> str | None:
        canonical = json.dumps(body, sort_keys=True)
        nth = self.bodies[canonical]
        self.bodies[canonical] += 1
        if self.api_key is not None and key != f"Bearer {self.api_key}":
            return "401"
        if any(name in body for name in self.rejects):
            return "rejects"
        form = body.get("response_format") or {}
        if form.get("type") in self.refuses or ("limits" in self.refuses and "maxLength" in json.dumps(form)):
            return "refuses"
        if self._cues:
            return self._cues.popleft()
        if self.choose is not None:
            return self.choose(body, nth)
        if self.always is not None:
            return self.always
        chance = random.Random(f"{self.seed} {nth} {canonical}")
        if chance.random() < self.fault_share:
            return chance.choice(PASSING_EMBEDDING if path.endswith("/embeddings") else PASSING_CHAT)
        return None

    def _headers(self, fault: str) -> dict[str, str]:
        if fault == "429":
            return {"Retry-After": f"{self.retry_after_s:g}"}
        return {"Retry-After": formatdate(time() + self.retry_after_s, usegmt=True)} if fault == "429 date" else {}

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, body: Any, headers: Mapping[str, str] | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"HTTP/1.1 {status} -\r\n{head}\r\n".encode() + content)
        await writer.drain()

    async def _break(self, writer: asyncio.StreamWriter, fault: str, good: dict[str, Any]) -> bool:
        content = json.dumps(good).encode()
        if fault == "html":
            page = b"<html><body><h1>Checking your browser</h1></body></html>"
            await self._send(writer, 200, page, {"Content-Type": "text/html"})
        elif fault == "truncated":
            await self._send(writer, 200, content[: len(content) // 2])
        elif fault == "noise":
            await self._send(writer, 200, random.Random(0).randbytes(2**20))
        elif fault == "error 200":
            await self._send(writer, 200, {"error": {"message": "the backend is busy", "code": 503}})
        elif fault == "no choices":
            await self._send(writer, 200, {**good, "choices": None, "data": None})
        elif fault == "reset":
            writer.transport.abort()
            return False
        elif fault == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            writer.write(content[: len(content) // 2])
            await writer.drain()
            return False
        elif fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "drip":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            for _ in range(72000):  # blank lines, as servers under load send them to keep a connection
                writer.write(b"\n")
                await writer.drain()
                await asyncio.sleep(0.05)
        return True


# ---- answers -----------------------------------------------------------------------------------------------------


def chat_answer(
    body: Mapping[str, Any],
    fault: str | None = None,
    answer: Callable[[Mapping[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """The body of a chat answer, good or with one of the faults of ``CHAT``."""
    asked = {key: body.get(key) for key in ("model", "messages", "temperature", "seed")}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    text = answer(body) if answer else _good_text(body, random.Random(digest))
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    reason = "stop"
    if fault == "refusal":
        message |= {"content": None, "refusal": "I'm sorry, I cannot help with that."}
    elif fault == "length":
        message["content"], reason = text[: len(text) // 2], "length"
    elif fault == "filtered":
        message["content"], reason = "", "content_filter"
    elif fault in CHAT or fault in HARMLESS:
        message["content"] = {
            "not json": "Sure! Here are a few nice products.",
            "wrong schema": '{"unexpected": [1, 2, 3]}',
            "noise content": "".join(random.Random(digest).choices('abc {}[]":,\\n\u2603', k=2**20)),
            "empty": "",
            "null": None,
            "fenced": f"```json\n{text}\n```",
            "prose": f"Here you are: {text}\nI hope that {{this}} helps.",
        }.get(fault, text)
    prompt = sum(n_tokens(str(one["content"])) + 4 for one in body["messages"])
    completion = n_tokens(message["content"] or "")
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {
        "id": f"chatcmpl-{digest[:12]}",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": None if fault == "no usage" else usage,
    }


def embeddings_answer(body: Mapping[str, Any], dimensions: int, fault: str | None = None) -> dict[str, Any]:
    """The body of an embeddings answer, good or with one of the faults of ``EMBEDDING``."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    dim = body.get("dimensions", dimensions) + (fault == "wrong dimension")
    vectors = [word_vector(text, dim) for text in texts]
    if fault == "nan":
        vectors[0] = [float("nan")] * dim
    if body.get("encoding_format") == "base64":
        coded: list[Any] = [base64.b64encode(struct.pack(f"<{dim}f", *vector)).decode() for vector in vectors]
    else:
        coded = list(vectors)
    rows = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(coded)]
    if fault == "duplicate rows":
        rows[-1] = {**rows[-1], "index": 0} if len(rows) > 1 else rows[-1]
        rows.append(rows[0])
    elif fault == "missing rows":
        rows.pop()
    elif fault == "no rows":
        rows = []
    elif fault == "reordered":
        rows.reverse()
    tokens = sum(map(n_tokens, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": rows, "model": body["model"], "usage": usage}


def word_vector(text: str, dim: int) -> list[float]:
    """Sum of one random vector per word: texts that share words are alike."""
    total = [0.0] * dim
    for word in re.findall(r"\w+", text.lower()):
        chance = random.Random(word)
        total = [old + chance.uniform(-1, 1) for old in total]
    return total


def n_tokens(text: str) -> int:
    """Words and signs, which is what this server counts as tokens."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def batch_answers(lines: str, faults: Mapping[str, str] | None = None, dimensions: int = 16) -> str:
    """The result file of the Batch API for an input file, line for line.

    Args:
        faults: by ``custom_id``: ``missing`` leaves the line out, ``expired`` and ``500`` are failed lines, anything
            else is a fault of the answer itself.
    """
    results = []
    for line in map(json.loads, lines.splitlines()):
        name, body = line["custom_id"], line["body"]
        fault = (faults or {}).get(name)
        if fault == "missing":
            continue
        result: dict[str, Any] = {"id": f"batch_req_{name[:8]}", "custom_id": name, "response": None, "error": None}
        if fault == "expired":
            result["error"] = {"code": "batch_expired", "message": "This request could not be executed in time."}
        elif fault == "500":
            result["response"] = {"status_code": 500, "request_id": "r", "body": {"error": {"message": "internal"}}}
        else:
            embedding = line["url"].endswith("/embeddings")
            answer = embeddings_answer(body, dimensions, fault) if embedding else chat_answer(body, fault)
            result["response"] = {"status_code": 200, "request_id": "r", "body": answer}
        results.append(json.dumps(result))
    return "".join(f"{result}\n" for result in results)


def _good_text(body: Mapping[str, Any], chance: random.Random) -> str:
    schema = _schema(body)
    if schema is None:
        return f"A {_sentence(chance)}"
    return json.dumps(_value(schema, schema, chance, "", _words(body, chance)), ensure_ascii=False)


def _words(body: Mapping[str, Any], chance: random.Random) -> list[str]:
    """Words of the domain that the messages name last, so that answers may look like items of it."""
    text = " ".join(str(one["content"]) for one in body["messages"]).lower()
    named = {domain: text.rfind(domain) for domain in WORDS}
    if max(named.values()) < 0:
        return WORDS[chance.choice(sorted(WORDS))]
    return WORDS[max(named, key=lambda domain: named[domain])]


def _schema(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema asked for: of ``response_format``, else the last one that a message holds."""
    form = body.get("response_format") or {}
    if "json_schema" in form:
        return form["json_schema"]["schema"]
    for message in reversed(body["messages"]):
        text = str(message["content"])
        for start in [match.start() for match in re.finditer(r"\{", text)]:
            with contextlib.suppress(ValueError, RecursionError):
                found, _ = json.JSONDecoder().raw_decode(text[start:])
                if "type" in found and ("properties" in found or "items" in found):
                    return found
    return None


def _value(
    schema: Mapping[str, Any], root: Mapping[str, Any], chance: random.Random, name: str, words: list[str]
) -> Any:
    """A value that fits a schema: objects whole, arrays as long as allowed up to 5, text by the name of its field."""
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return _value(found, root, chance, name, words)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else chance.choice(schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return _value(schema[several][0], root, chance, name, words)
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {key: _value(one, root, chance, key, words) for key, one in schema.get("properties", {}).items()}
    if kind == "array":
        least = schema.get("minItems", 0)
        length = max(least, min(schema.get("maxItems", 5), 5))
        return [_value(schema.get("items", {}), root, chance, name, words) for _ in range(length)]
    if kind == "string":
        text = _text(name, chance, words)
        return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
    low = schema.get("minimum", 0)
    return {"integer": int(low), "number": float(low), "boolean": chance.random() < 0.5, "null": None}[kind]


def _text(name: str, chance: random.Random, words: list[str]) -> str:
    if name in ("title", "name"):
        return f"{chance.choice(words)} {chance.choice(words)} no {chance.randrange(15)}"
    if name == "brand":
        return chance.choice(BRANDS)
    if name in ("category", "categories"):
        return chance.choice(words)
    return f"A {chance.choice(ADJECTIVES)} {chance.choice(words)}, {_sentence(chance)}"


def _sentence(chance: random.Random) -> str:
    return f"{chance.choice(ADJECTIVES)} and {chance.choice(ADJECTIVES)}, for {chance.choice(WORDS['food'])} lovers."


def main() -> None:
    parser = argparse.ArgumentParser(description="OpenAI-compatible server that can go wrong; prints its URL.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--fault-share", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    server = FaultyServer(given.latency, fault_share=given.fault_share, seed=given.seed, port=given.port)
    with server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server._thread.join()


if __name__ == "__main__":
    main()
