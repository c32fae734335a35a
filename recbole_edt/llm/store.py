"""Every answer of a language model, kept in one SQLite file from the moment it arrives, by what was asked.

A row is one paid call (or one text of an embedding call). Rows are never overwritten: an answer that turned out to be
unusable stays as a cost, marked as rejected. Two processes may share a file. No key of any service is ever in it.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from recbole_edt.errors import ConfigError, DataError
from recbole_edt.files import write_safely

_FORMAT = 1
_WAIT_S = 60.0  # for another process that is writing
_MANY = 500  # keys per query; older SQLite allows 999 variables

_SCHEMA = """
CREATE TABLE answers (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL,
    template TEXT NOT NULL, created TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cost_usd REAL, request TEXT NOT NULL, text TEXT, finish_reason TEXT, vector BLOB,
    rejected INTEGER NOT NULL DEFAULT 0);
CREATE INDEX answers_by_key ON answers (key);
CREATE TABLE facts (
    endpoint TEXT NOT NULL, model TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (endpoint, model, name));
CREATE TABLE exported (
    key TEXT PRIMARY KEY, endpoint TEXT NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL, template TEXT NOT NULL,
    request TEXT NOT NULL, created TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Answer:
    """One answer as it came, before anybody judged it.

    Attributes:
        key: hash of everything that determines the answer.
        endpoint: base URL.
        kind: ``chat`` or ``embedding``.
        template: name and version of the prompt's template, such as ``generate@1``.
        prompt_tokens, completion_tokens: as the server counted them.
        cost_usd: None where the price is not known.
        request: JSON of what was sent; for an embedding, of its one text.
        text: what the model said; None for an embedding.
        finish_reason: why the model stopped, in the server's words.
        vector: ``[D]`` float32; None for a chat.
    """

    key: str
    endpoint: str
    model: str
    kind: str
    template: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    request: str
    text: str | None = None
    finish_reason: str | None = None
    vector: np.ndarray | None = None


@dataclass(frozen=True)
class Stored:
    """What the store gives back for a key."""

    text: str | None
    finish_reason: str | None
    vector: np.ndarray | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    rejected: bool


@dataclass(frozen=True)
class Exported:
    """A call as it is sent; noted when it is written to a batch file, to tell its answer from a stranger's.

    Attributes:
        key: hash of everything that determines the answer.
        request: the body as JSON.
    """

    key: str
    endpoint: str
    model: str
    kind: str
    template: str
    request: str


class AnswerStore:
    """The file of answers; made where there is none. Methods may be called from several threads.

    Raises: DataError if the file cannot be used, or was made by another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def get(self, keys: Sequence[str], rejected: bool = False) -> dict[str, Stored]:
        """The newest answer of each key that has one.

        Args:
            rejected: whether a rejected answer is given where there is no other; by default it is as if not there.
        """
        found: dict[str, Stored] = {}
        columns = "key, text, finish_reason, vector, prompt_tokens, completion_tokens, cost_usd, rejected"
        for start in range(0, len(keys), _MANY):
            part = list(keys[start : start + _MANY])
            marks = ",".join("?" * len(part))
            # Later rows win in the dictionary: rejected ones come first, then by age.
            query = f"SELECT {columns} FROM answers WHERE key IN ({marks}) AND rejected <= ? ORDER BY rejected DESC, id"
            for key, text, reason, blob, prompt, completion, cost, flag in self._rows(query, [*part, int(rejected)]):
                vector = None if blob is None else np.frombuffer(blob, dtype="<f4")
                found[key] = Stored(text, reason, vector, prompt, completion, cost, bool(flag))
        return found

    def put(self, answers: Iterable[Answer], imported: bool = False) -> None:
        """Keep answers; when this returns they outlive a crash of the machine.

        Args:
            imported: whether they answer what was noted as exported, which is then answered.
        """
        now = _now()
        rows = [(*_all_but_vector(answer), _blob(answer.vector), now) for answer in answers]
        names = [field.name for field in fields(Answer)]
        marks = ",".join("?" * (len(names) + 1))
        with self._transaction() as db:
            db.executemany(f"INSERT INTO answers ({','.join(names)}, created) VALUES ({marks})", rows)
            if imported:
                db.executemany("DELETE FROM exported WHERE key = ?", [row[:1] for row in rows])

    def reject(self, keys: Iterable[str]) -> None:
        """Mark the answers of these keys as unusable; they go on counting as cost."""
        with self._transaction() as db:
            db.executemany("UPDATE answers SET rejected = 1 WHERE key = ?", [(key,) for key in keys])

    def fact(self, endpoint: str, model: str, name: str) -> Any:
        """What is remembered about an endpoint under a name; None if nothing is."""
        query = "SELECT value FROM facts WHERE endpoint = ? AND model = ? AND name = ?"
        rows = self._rows(query, [endpoint, model, name])
        return json.loads(rows[0][0]) if rows else None

    def remember(self, endpoint: str, model: str, name: str, value: Any) -> None:
        """Keep something about an endpoint, for every later run."""
        with self._transaction() as db:
            row = (endpoint, model, name, json.dumps(value))
            db.execute("INSERT OR REPLACE INTO facts (endpoint, model, name, value) VALUES (?, ?, ?, ?)", row)

    def note_export(self, requests: Iterable[Exported]) -> None:
        """Keep what was written to a batch file."""
        with self._transaction() as db:
            rows = [(*astuple(request), _now()) for request in requests]
            db.executemany("INSERT OR REPLACE INTO exported VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def exported(self, keys: Sequence[str]) -> dict[str, Exported]:
        """Of these keys, those that were written to a batch file."""
        found = {}
        for start in range(0, len(keys), _MANY):
            part = list(keys[start : start + _MANY])
            query = (
                "SELECT key, endpoint, model, kind, template, request FROM exported "
                f"WHERE key IN ({','.join('?' * len(part))})"
            )
            found.update({row[0]: Exported(*row) for row in self._rows(query, part)})
        return found

    def recent(self, endpoint: str, model: str, kind: str, n: int) -> list[tuple[str, str, int, int]]:
        """Template, request, prompt and completion tokens of the last answers of an endpoint, newest first."""
        query = (
            "SELECT template, request, prompt_tokens, completion_tokens FROM answers "
            "WHERE endpoint = ? AND model = ? AND kind = ? ORDER BY id DESC LIMIT ?"
        )
        return self._rows(query, [endpoint, model, kind, n])

    def stats(self) -> list[dict[str, Any]]:
        """Counts, tokens and cost by endpoint, model, kind and template; a cost is None where no price was known."""
        query = (
            "SELECT endpoint, model, kind, template, COUNT(*) AS answers, SUM(rejected) AS rejected, "
            "SUM(prompt_tokens) AS prompt_tokens, SUM(completion_tokens) AS completion_tokens, "
            "SUM(cost_usd) AS cost_usd, SUM(cost_usd IS NULL) AS without_price "
            "FROM answers GROUP BY endpoint, model, kind, template ORDER BY endpoint, model, kind, template"
        )
        with self._reading() as db:
            cursor = db.execute(query)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def export(self, path: str | os.PathLike[str]) -> int:
        """Write every row as a line of JSON, oldest first; vectors as base64 of little-endian float32.

        Returns: the number of lines.
        """
        columns = ["created", *(field.name for field in fields(Answer)), "rejected"]
        lines = 0
        with write_safely(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            last = 0
            while rows := self._rows(
                f"SELECT id, {','.join(columns)} FROM answers WHERE id > ? ORDER BY id LIMIT {_MANY}", [last]
            ):
                last = rows[-1][0]
                for _, *values in rows:
                    row = dict(zip(columns, values, strict=True))
                    row["request"] = json.loads(row["request"])
                    if row["vector"] is not None:
                        row["vector"] = base64.b64encode(row["vector"]).decode("ascii")
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    lines += 1
        return lines

    def prune(
        self,
        model: str | None = None,
        template: str | None = None,
        older_than_days: float | None = None,
        rejected: bool = False,
    ) -> int:
        """Delete the answers that fit every criterion given, and give their space back.

        What was remembered about a model that has no answers left goes with them.

        Args:
            template: a name with its version (``generate@1``), or a name alone for all its versions.
            older_than_days: above 0, and so few that the calendar has the day.
            rejected: only answers that were unusable.

        Returns: the number of answers deleted.
        Raises: ConfigError if no criterion is given.
        """
        tests: list[str] = []
        values: list[Any] = []
        if model is not None:
            tests, values = [*tests, "model = ?"], [*values, model]
        if template is not None:
            tests, values = [*tests, "(template = ? OR substr(template, 1, ?) = ?)"], [*values, template]
            values += [len(template) + 1, f"{template}@"]
        if older_than_days is not None:
            before = datetime.now(timezone.utc) - timedelta(days=older_than_days)
            tests, values = [*tests, "created < ?"], [*values, before.isoformat(timespec="seconds")]
        if rejected:
            tests.append("rejected = 1")
        if not tests:
            raise ConfigError("cache prune: say which answers to delete: a model, a template, an age, or rejected ones")
        with self._transaction() as db:
            n_deleted = db.execute(f"DELETE FROM answers WHERE {' AND '.join(tests)}", values).rowcount
            # What is remembered of a model without answers may be what made its answers worth deleting.
            db.execute(
                "DELETE FROM facts WHERE NOT EXISTS "
                "(SELECT 1 FROM answers a WHERE a.endpoint = facts.endpoint AND a.model = facts.model)"
            )
        with self._reading() as db:
            db.execute("VACUUM")
        return n_deleted

    # ---- SQLite --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        with self._reading() as db:
            _write_ahead(db)
            db.execute("PRAGMA synchronous = FULL")
            version = self._version()
        if version == 0:
            with self._transaction() as db:
                # Another process may have made the tables in the meantime.
                if self._version() == 0:
                    for statement in _SCHEMA.split(";"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {_FORMAT}")
            version = _FORMAT
        if version != _FORMAT:
            raise DataError(
                f"{self.path}: made by another version of this library (format {version}, this is {_FORMAT}); "
                "name another file as the cache, or use that version"
            )

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._reading() as db:
            return db.execute(query, values).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:  # a full disk has ended it already
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def _unusable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: the cache of answers cannot be used ({error}); free space, check that the folder is on a "
            "local disk and may be written to, or name another file"
        )


def _write_ahead(db: sqlite3.Connection) -> None:
    """Let readers and a writer work at once; SQLite does not wait by itself for another process that does the same."""
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _all_but_vector(answer: Answer) -> tuple[Any, ...]:
    """All fields but the last, which is the vector."""
    return tuple(getattr(answer, field.name) for field in fields(answer)[:-1])


def _blob(vector: np.ndarray | None) -> bytes | None:
    return None if vector is None else np.asarray(vector, dtype="<f4").tobytes()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
