"""Stopped at any moment, by a kill, Ctrl-C or a second process: no paid answer is lost, and the files end the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_tiny
from llm_runs import KEY, arguments, left

from recbole_edt.cli import run

CONCURRENCY = 4
LATENCY_S = 0.03

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")

# The stages run in processes forked from one that has everything imported, in milliseconds instead of seconds.
PROCESSES = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
PROCESSES.set_forkserver_preload(
    ["recbole_edt.experiments.compare", "recbole_edt.pipeline.dry_run", "recbole_edt.pipeline.doctor"]
)


def work(given: list[str], stages: Sequence[str], place: str, output: str) -> None:
    """What the child process does; it ends with the status of the first stage that fails."""
    os.chdir(place)
    os.environ["OPENAI_API_KEY"] = KEY
    signal.signal(signal.SIGINT, signal.default_int_handler)  # off in whatever runs in the background of a shell
    sys.stdout = sys.stderr = open(output, "a", encoding="utf-8")
    for stage in stages:
        if status := run([stage, *given]):
            sys.stdout.flush()
            os._exit(status)


def start(place: Path, given: list[str], *stages: str) -> multiprocessing.Process:
    process = PROCESSES.Process(target=work, args=(given, stages, str(place), str(place / "output.txt")))
    process.start()
    return process


def finish(process: multiprocessing.Process) -> int | None:
    process.join(180)
    assert process.exitcode is not None, "still running"
    return process.exitcode


@contextmanager
def server(*options: str) -> Iterator[str]:
    """The base URL of a server in a process of its own, which outlives every kill."""
    command = [sys.executable, str(Path(__file__).parent / "faulty_server.py"), f"--latency={LATENCY_S}", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def stats(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A server, arguments that ask it, what a run leaves that nobody disturbs, and the calls it takes."""
    with server() as url:
        place = tmp_path_factory.mktemp("undisturbed")
        write_tiny(place / "atomic_files", "tiny")
        given = arguments(url, llm__concurrency=CONCURRENCY)
        assert finish(start(place, given, "prepare", "embed")) == 0
        before = stats(url)["calls"]
        assert finish(start(place, given, "augment", "profile")) == 0
        n_calls = stats(url)["calls"] - before
        yield SimpleNamespace(url=url, given=given, left=files(place), place=place, n_calls=n_calls)


def files(place: Path) -> dict[str, bytes]:
    """What a run leaves, without what it printed."""
    return {name: content for name, content in left(place).items() if name != "output.txt"}


def fresh(undisturbed: SimpleNamespace, place: Path) -> None:
    """The files before augment, and no answers."""
    shutil.copytree(undisturbed.place / "atomic_files/tiny", place / "atomic_files/tiny")


N_KILLS = int(os.environ.get("RECBOLE_EDT_KILLS", "6"))
"""More of them take longer and strike more moments."""


def test_killed_again_and_again_it_ends_the_same_and_repeats_only_what_was_in_flight(undisturbed, tmp_path):
    fresh(undisturbed, tmp_path)
    chance, before = random.Random(N_KILLS), stats(undisturbed.url)
    struck = 0
    for kill in range(N_KILLS):
        # Somewhere in this part of all calls, and then between two of them or while files are written.
        n_calls = before["calls"] + (kill + chance.random()) * undisturbed.n_calls / N_KILLS
        process = start(tmp_path, undisturbed.given, "augment", "profile")
        while process.exitcode is None and stats(undisturbed.url)["calls"] < n_calls:
            time.sleep(0.003)
        process.join(chance.uniform(0, 3 * LATENCY_S))
        struck += process.exitcode is None
        process.kill()
        process.join()
    assert struck > N_KILLS / 2
    assert finish(start(tmp_path, undisturbed.given, "augment", "profile")) == 0
    after = stats(undisturbed.url)
    assert after["distinct"] == before["distinct"], "something was asked that an undisturbed run never asks"
    assert after["calls"] - before["calls"] - undisturbed.n_calls <= struck * CONCURRENCY
    assert files(tmp_path) == undisturbed.left
    assert "Traceback" not in (tmp_path / "output.txt").read_text(encoding="utf-8")


def test_after_ctrl_c_nothing_that_came_back_is_asked_again(undisturbed, tmp_path):
    fresh(undisturbed, tmp_path)
    before = stats(undisturbed.url)["calls"]
    process = start(tmp_path, undisturbed.given, "augment")
    while stats(undisturbed.url)["calls"] < before + 8:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130
    output = (tmp_path / "output.txt").read_text(encoding="utf-8")
    assert "the same command goes on from here" in output
    assert not (tmp_path / "atomic_files/tiny-edt/augment.json").exists()
    assert finish(start(tmp_path, undisturbed.given, "augment", "profile")) == 0
    assert stats(undisturbed.url)["calls"] - before == undisturbed.n_calls
    assert files(tmp_path) == undisturbed.left


def test_two_processes_share_one_cache(undisturbed, tmp_path):
    given = [*undisturbed.given, f"--llm.cache={tmp_path / 'shared.sqlite'}"]
    processes = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        fresh(undisturbed, tmp_path / name)
        processes.append(start(tmp_path / name, given, "augment", "profile"))
    assert [finish(process) for process in processes] == [0, 0]
    for name in ("one", "other"):
        assert files(tmp_path / name) == undisturbed.left
