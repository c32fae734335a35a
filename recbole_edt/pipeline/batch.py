"""Pending calls as files for OpenAI's Batch API, and its result files back into the store of answers.

A batch costs half and takes up to a day. A result is matched by its ``custom_id``, which is the key of the answer;
missing, failed and unknown lines are counted and change nothing: their calls stay pending.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from recbole_edt.cleaning import short, whole_text
from recbole_edt.config.settings import Settings
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.files import write_safely
from recbole_edt.llm.client import chat_answer, price_at, vector_answers
from recbole_edt.llm.endpoint import CHAT, EMBEDDINGS, read_chat, read_vectors
from recbole_edt.llm.prices import Price, dollars, load_prices
from recbole_edt.llm.questions import ChatAnswer, ChatRequest
from recbole_edt.llm.settings import LLMConfig
from recbole_edt.llm.store import Answer, AnswerStore, Exported
from recbole_edt.pipeline import stages
from recbole_edt.pipeline.dry_run import Say
from recbole_edt.pipeline.model_access import LiveWriter, cache_path, existing_cache
from recbole_edt.render.console import printed
from recbole_edt.text.embedders import EndpointEmbedder


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
_MOST_DAYS = 36_500  # a hundred years; no calendar reaches back by any number


# ---- batch files -------------------------------------------------------------------------------------------------


def batch_export(settings: Settings, say: Say, file: str) -> None:
    """Go through the stages as far as the stored answers reach, and write what the next one lacks to a batch file."""
    stages.prepare(settings, say, goes_on=True)
    try:
        for stage in (stages.embed, stages.augment_data, stages.profile):
            stage(settings, say, Collector)
    except Waiting as waiting:
        with AnswerStore(cache_path(settings)) as store:
            paths = export(waiting.requests, Path(file), store)
        names = ", ".join(map(str, paths))
        n = len(waiting.requests)
        say(f"{waiting.what}: {n:,} requests in {names}; give the results of the Batch API to batch import")
    else:
        say("no request is without an answer; the files of embed, augment and profile are written")


def batch_import(settings: Settings, say: Say, file: str) -> None:
    """Take a result file of the Batch API into the cache; what it lacks stays to be asked."""
    with AnswerStore(existing_cache(settings)) as store:
        found = import_results(settings.llm, store, file)
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
    say(printed(table))
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

MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000
"""What one file may hold; OpenAI takes 50,000 requests and 200 MB."""
SHARE = 0.5
"""Part of the price that a batch costs."""

_PATHS = {"chat": f"/v1{CHAT}", "embedding": f"/v1{EMBEDDINGS}"}
_LINES = 1000  # of a result file, stored at a time


@dataclass(frozen=True)
class Imported:
    """What a result file held.

    Attributes:
        answers: lines whose answer is stored now.
        failed: lines without one, by reason; their calls stay pending.
    """

    answers: int
    failed: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lost = ", ".join(f"{count} {reason}" for reason, count in sorted(self.failed.items()))
        return f"{self.answers} answers imported" + (
            f"; {self.failed.total()} lines without one: {lost}" if lost else ""
        )


def export(requests: Sequence[Exported], path: str | os.PathLike[str], store: AnswerStore) -> list[Path]:
    """Write calls as Batch API input, and note in the store what was asked.

    Args:
        requests: of one kind, as ``Client.pending`` or ``Client.pending_embedding`` gives them.

    Returns: the files: ``path``, or, beyond what one may hold, ``path`` with a number before its ending.
    """
    assert len({request.kind for request in requests}) <= 1, "a batch is of chats or of embeddings"
    path = Path(path)
    parts = list(_parts([_line(request) for request in requests]))
    paths = [path] if len(parts) == 1 else [path.with_stem(f"{path.stem}-{n + 1}") for n in range(len(parts))]
    # Noted first: a file whose requests nobody knows would be paid for nothing.
    store.note_export(requests)
    for one, lines in zip(paths, parts, strict=True):
        with write_safely(one) as temporary:
            temporary.write_bytes(b"".join(lines))
    return paths


def import_results(config: LLMConfig, store: AnswerStore, path: str | os.PathLike[str]) -> Imported:
    """Store the answers of a result file, each once.

    Args:
        config: for its prices.

    Raises: DataError if the file cannot be read, or holds no line of a batch.
    """
    prices = load_prices(config.prices)
    failed: Counter[str] = Counter()
    n_answers = n_lines = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = (line for line in file if line.strip())
            while part := list(islice(lines, _LINES)):
                n_lines += len(part)
                results = [result for line in part if (result := _result(line, failed)) is not None]
                asked = store.exported([result["custom_id"] for result in results])
                answers: dict[str, Answer] = {}
                for result in results:
                    request = asked.get(result["custom_id"])
                    if request is None or request.key in answers:
                        failed["unknown, or imported before"] += 1
                        continue
                    price = price_at(request.endpoint, request.model, prices)
                    answer = _answer(request, result, price, failed)
                    if answer is not None:
                        answers[request.key] = answer
                store.put(answers.values(), imported=True)
                n_answers += len(answers)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if n_lines and failed["exported"] == n_lines:
        raise DataError(f"{path}: this looks like the exported file; give the batch's output")
    if n_lines and failed["damaged"] == n_lines:
        raise DataError(f"{path}: no line is a result of the Batch API; give the output file of the batch")
    return Imported(n_answers, failed)


def _line(request: Exported) -> bytes:
    head = {"custom_id": request.key, "method": "POST", "url": _PATHS[request.kind]}
    return (json.dumps({**head, "body": json.loads(request.request)}) + "\n").encode()


def _parts(lines: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The lines in as few files as their limits allow, at least one."""
    part: list[bytes] = []
    size = 0
    for line in lines:
        if len(part) == MOST_REQUESTS or (part and size + len(line) > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    yield part


def _result(line: str, failed: Counter[str]) -> dict[str, Any] | None:
    """A line of a result file; None if it is none."""
    try:
        result = whole_text(json.loads(line))
    except (ValueError, RecursionError):
        result = None
    if isinstance(result, dict) and isinstance(result.get("custom_id"), str):
        if "body" not in result or "response" in result:
            return result
        failed["exported"] += 1
        return None
    failed["damaged"] += 1
    return None


def _answer(request: Exported, result: dict[str, Any], price: Price | None, failed: Counter[str]) -> Answer | None:
    """What a line holds; None, and counted, if the call failed."""
    response, error = result.get("response"), result.get("error")
    status = response.get("status_code") if isinstance(response, dict) else None
    if not isinstance(response, dict) or status != 200:
        code = error.get("code") if isinstance(error, dict) else None
        failed[short(str(code or (f"status {status}" if status else "failed")))] += 1
        return None
    content = json.dumps(response.get("body"))
    try:
        if request.kind == "chat":
            return chat_answer(request, read_chat(content), price, SHARE)
        vectors, usage = read_vectors(content, 1, json.loads(request.request).get("dimensions"))
        return vector_answers([request], json.loads(request.request)["input"], vectors, usage, price, SHARE)[0]
    except ValueError:
        failed["garbage"] += 1
        return None
