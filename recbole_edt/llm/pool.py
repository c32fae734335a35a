"""A stretch of many calls at a time: workers, progress, answers committed in groups, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from tqdm import tqdm

from recbole_edt.llm.endpoint import Endpoint
from recbole_edt.llm.settings import LLMConfig
from recbole_edt.llm.store import Answer, AnswerStore

_T = TypeVar("_T")


class Session:
    """An open endpoint and the store that its answers go to; lives inside one event loop.

    Attributes:
        way: the endpoint.
    """

    def __init__(
        self,
        config: LLMConfig,
        store: AnswerStore,
        before_each: Callable[[], None],
        backoff_s: float,
        say: Callable[[str], None],
    ) -> None:
        """``before_each``, ``backoff_s`` and ``say`` are those of ``Endpoint``."""
        self.way = Endpoint(config, before_each, backoff_s, say)
        self._config, self._store = config, store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._waiting: list[tuple[Sequence[Answer], asyncio.Future[None]]] = []
        self._rejected: list[str] = []
        self._flushing: asyncio.Task[None] | None = None

    async def share_out(
        self, items: Sequence[_T], work: Callable[[_T], Awaitable[None]], desc: str, unit: str, total: Callable[[], str]
    ) -> None:
        """Work on all items, as many at a time as calls may be in flight.

        Args:
            total: the running total, shown beside the progress bar.
        """
        queue, shown = iter(items), 0.0
        with tqdm(total=len(items), desc=desc, unit=unit, delay=1, leave=False, disable=None) as bar:

            async def worker() -> None:
                nonlocal shown
                for item in queue:
                    await work(item)
                    bar.update()
                    if not bar.disable and time.monotonic() > shown + 0.5:
                        shown = time.monotonic()
                        bar.set_postfix_str(total())

            await asyncio.gather(*(worker() for _ in range(min(self._config.concurrency, len(items)))))

    async def keep(self, answers: Sequence[Answer]) -> None:
        """Store answers; they are safe when this returns."""
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((answers, stored))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        await stored

    def reject(self, key: str) -> None:
        """Mark an answer as unusable with the next group; should that never come, it will be judged anew."""
        self._rejected.append(key)

    async def run(self, main: Callable[[Session], Awaitable[None]], halt: threading.Event, patience_s: float) -> None:
        """Run ``main`` to its end, or until ``halt``; then wait for what is in flight, and store it."""
        task = asyncio.ensure_future(main(self))
        try:
            while not task.done() and not halt.is_set():
                await asyncio.wait({task}, timeout=0.2)
            if task.done():
                task.result()
        finally:
            self.way.closing = True
            end = time.monotonic() + (patience_s if halt.is_set() else self._config.timeout_s)
            while self.way.in_flight and time.monotonic() < end:
                await asyncio.sleep(0.01)
            task.cancel()
            # An answer that has come is among those that wait to be stored before its call is no longer in flight.
            while self._waiting or self._rejected or (self._flushing and not self._flushing.done()):
                await (self._flushing if self._flushing and not self._flushing.done() else self._flush())
            self._pool.shutdown()
            await self.way.close()

    async def _flush(self) -> None:
        while self._waiting or self._rejected:
            group, self._waiting = self._waiting, []
            rejected, self._rejected = self._rejected, []
            answers = [answer for several, _ in group for answer in several]
            problem: Exception | None = None
            try:
                await asyncio.get_running_loop().run_in_executor(self._pool, self._write, answers, rejected)
            except Exception as error:
                problem = error
            for _, stored in group:
                if stored.done():  # whoever waited was cancelled
                    continue
                stored.set_result(None) if problem is None else stored.set_exception(problem)

    def _write(self, answers: list[Answer], rejected: list[str]) -> None:
        if answers:
            self._store.put(answers)
        if rejected:
            self._store.reject(rejected)


def run(
    make: Callable[[], Session],
    main: Callable[[Session], Awaitable[None]],
    patience_s: float,
    say: Callable[[str], None],
) -> None:
    """Run ``main`` on a new session, in a thread of its own.

    There Ctrl-C cannot tear the event loop apart, and a notebook's own loop is not in the way.

    Raises: what ``main`` raises; KeyboardInterrupt after at most ``patience_s`` for the calls in flight.
    """
    done: Future[None] = Future()
    halt = threading.Event()

    async def session() -> None:
        await make().run(main, halt, patience_s)

    def go() -> None:
        try:
            asyncio.run(session())
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=go, daemon=True, name="llm").start()
    try:
        done.result()
    except KeyboardInterrupt:
        halt.set()
        say(f"interrupted: waiting up to {patience_s:g} s for the calls in flight (Ctrl-C again: do not wait)")
        with contextlib.suppress(FutureTimeout):
            done.exception(patience_s + 5)
        raise
