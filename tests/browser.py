"""A real browser for tests: headless Chromium, driven through a pipe by its own protocol, without further packages."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page of one Chromium.

    Args:
        program: the executable.
        profile: folder for what it writes.
    """

    def __init__(self, program: str, profile: Path) -> None:
        here, there = os.pipe(), os.pipe()  # commands and answers

        def as_three_and_four() -> None:
            for number, end in ((3, here[0]), (4, there[1])):
                os.dup2(end, number)
                os.set_inheritable(number, True)

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [program, *options, f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=as_three_and_four,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(here[0])
        os.close(there[1])
        self.write, self.read, self.buffer = here[1], there[0], b""
        self.events: list[dict[str, Any]] = []
        self.number, self.session = 0, ""
        (target,) = [one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        found = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Log", "Network", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens in between is kept in ``events``."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready = select.select([self.read], [], [], 60)[0]
            part = os.read(self.read, 2**16) if ready else b""
            assert part, "the browser ended, or says nothing any more"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """Load a file, in a window of a size and a colour scheme, and wait until it is there."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        while not any(one.get("method") == "Page.loadEventFired" for one in self.events):
            self.events.append(self._next())

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, such as Enter or Tab."""
        codes = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " ")}
        code, text = codes[key]
        for kind in ("keyDown", "keyUp"):
            options = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **options)

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened."""
        sent = [one for one in self.events if one.get("method") == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in sent]

    def complaints(self) -> list[str]:
        """Errors and warnings of the browser about the page, and uncaught exceptions in it."""
        logged = [one["params"]["entry"]["text"] for one in self.events if one.get("method") == "Log.entryAdded"]
        return logged + [str(one) for one in self.events if one.get("method") == "Runtime.exceptionThrown"]

    def close(self) -> None:
        self.session = ""
        self.ask("Browser.close")
        os.close(self.write)
        os.close(self.read)
        self.process.wait(20)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One browser for all tests, which are skipped where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser found ({', '.join(NAMES)})")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
