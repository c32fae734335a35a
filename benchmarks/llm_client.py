"""Calls per second of the LLM client against a bare asynchronous loop of the same openai client.

    python benchmarks/llm_client.py [--calls=2000] [--latency=0.2] [--concurrency=64] [--repeats=3]

The server runs in a process of its own on loopback and answers each call after a set time. Each measurement runs in a
process of its own: ``client`` is ours (questions checked against a schema, answers stored durably in a fresh cache),
``create`` a loop around ``chat.completions.create``, ``post`` a loop around the client's plainest call, which builds no
objects from the answer. The table gives medians; CPU is that of the process, without start and imports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

WAYS = ("client", "create", "post")
SERVER = Path(__file__).parents[1] / "tests" / "faulty_server.py"
FIELDS = ("title", "brand", "category", "description")
ITEM = {
    "type": "object",
    "properties": {name: {"type": "string", "minLength": 1, "maxLength": 300} for name in FIELDS},
    "required": list(FIELDS),
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"items": {"type": "array", "minItems": 5, "maxItems": 5, "items": ITEM}},
    "required": ["items"],
    "additionalProperties": False,
}


def messages(user: int) -> list[dict[str, str]]:
    """A prompt about as long as that of generation."""
    items = "\n".join(f'{place}. "Item {user}-{place}, Stainless Steel, 12-Ounce (Pack of 6)"' for place in range(10))
    return [
        {"role": "system", "content": "You know which products go together."},
        {"role": "user", "content": f"Bought in food, oldest first:\n{items}\nName 5 products of kitchen as JSON."},
    ]


def measure_client(url: str, calls: int, concurrency: int, folder: str) -> dict[str, float]:
    """Our client, with a fresh cache."""
    from recbole_edt.llm.client import Client
    from recbole_edt.llm.questions import ChatRequest
    from recbole_edt.llm.settings import LLMConfig
    from recbole_edt.llm.store import AnswerStore

    config = LLMConfig(base_url=url, model="m", concurrency=concurrency)
    with AnswerStore(Path(folder) / f"{time.time_ns()}.sqlite") as store:
        client = Client(config, store)
        requests = [ChatRequest(tuple(messages(n)), SCHEMA, "items", "generate@1", 800) for n in range(-9, calls)]
        client.ask(requests[:9], "warming up")  # imports, and which form of answer the server supports
        start, cpu = time.perf_counter(), time.process_time()
        answers = client.ask(requests[9:], "asking")
        end, cpu_end = time.perf_counter(), time.process_time()
    assert len(answers) == calls and all(answer.value for answer in answers)
    return {"calls/s": calls / (end - start), "CPU ms": (cpu_end - cpu) / calls * 1e3}


def measure_loop(way: str, url: str, calls: int, concurrency: int) -> dict[str, float]:
    """A bare loop of the openai client."""
    import openai

    form = {"type": "json_schema", "json_schema": {"name": "items", "strict": True, "schema": SCHEMA}}
    fixed: dict[str, Any] = {"model": "m", "max_tokens": 800, "temperature": 0.7, "seed": 42, "response_format": form}

    async def share_out(ask: Callable[[int], Awaitable[str]], users: range) -> None:
        queue = iter(users)

        async def worker() -> None:
            for user in queue:
                assert len(json.loads(await ask(user))["items"]) == 5

        await asyncio.gather(*(worker() for _ in range(concurrency)))

    async def run() -> dict[str, float]:
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)

        async def create(user: int) -> str:
            answer = await client.chat.completions.create(messages=messages(user), **fixed)
            return answer.choices[0].message.content

        async def post(user: int) -> str:
            body = {"messages": messages(user), **fixed}
            return json.loads(await client.post("/chat/completions", cast_to=str, body=body))["choices"][0]["message"][
                "content"
            ]

        ask = {"create": create, "post": post}[way]
        await share_out(ask, range(-9, 0))
        start, cpu = time.perf_counter(), time.process_time()
        await share_out(ask, range(calls))
        end, cpu_end = time.perf_counter(), time.process_time()
        await client.close()
        return {"calls/s": calls / (end - start), "CPU ms": (cpu_end - cpu) / calls * 1e3}

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        with tempfile.TemporaryDirectory() as folder:
            if given.measure == "client":
                print(json.dumps(measure_client(given.url, given.calls, given.concurrency, folder)))
            else:
                print(json.dumps(measure_loop(given.measure, given.url, given.calls, given.concurrency)))
        return
    server = subprocess.Popen(
        [sys.executable, str(SERVER), f"--latency={given.latency}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(given.repeats):
            for way in WAYS:
                runs[way].append(run(way, url, given))
    finally:
        server.terminate()
        server.wait()
    print(table(runs, given))


def run(way: str, url: str, given: argparse.Namespace) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, f"--measure={way}", f"--url={url}"]
    command += [f"--calls={given.calls}", f"--concurrency={given.concurrency}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def table(runs: dict[str, list[dict[str, float]]], given: argparse.Namespace) -> str:
    """Medians by way, and how our client compares, as Markdown."""
    middle = {way: {key: median(one[key] for one in several) for key in several[0]} for way, several in runs.items()}
    lines = ["| way | calls/s | CPU ms per call | calls/s of client / this | CPU ms more in client |"]
    lines.append("|---|---|---|---|---|")
    for way, row in middle.items():
        ratio = middle["client"]["calls/s"] / row["calls/s"]
        more = middle["client"]["CPU ms"] - row["CPU ms"]
        lines.append(f"| {way} | {row['calls/s']:.1f} | {row['CPU ms']:.2f} | {ratio:.3f} | {more:.2f} |")
    most = given.concurrency / given.latency
    lines += ["", f"{given.concurrency} in flight, {given.latency * 1e3:.0f} ms: at most {most:.0f} calls/s"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
