"""The settings of a language model's endpoint, and what its address tells."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from recbole_edt.errors import ConfigError, choice_faults, whole_number_faults

OPENAI = "https://api.openai.com/v1"
MODES = ("json_schema", "json_object", "text")


@dataclass(frozen=True)
class LLMConfig:
    """Which endpoint is asked, how fast, and for how much money at most."""

    base_url: str | None = None
    """The endpoint, such as ``http://localhost:8000/v1``; none is OpenAI's."""
    model: str | None = None
    """Name of the chat model; needed where a generator is ``llm``."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key, which may be empty for a server of your own; none sends no key."""
    temperature: float | None = 0.7
    """Randomness of the answers, 0 to 2 (the paper: not given); none leaves it to the server."""
    seed: int | None = 42
    """Sent with every question, for servers that heed it; none sends none."""
    max_tokens: int = 2000
    """Most tokens of one answer, at least 1."""
    concurrency: int = 16
    """Calls in flight at a time, 1 to 1000."""
    requests_per_minute: float | None = None
    """Most calls per minute, above 0; none is no limit of ours."""
    tokens_per_minute: float | None = None
    """Most tokens per minute, prompts and answers together, above 0; none is no limit of ours."""
    timeout_s: float = 60.0
    """Seconds until a call is given up, however lively its connection; above 0."""
    retries: int = 6
    """How often a call that failed in passing (429, 5xx, time-out, cut connection) is sent again, 0 or more."""
    structured: str = "auto"
    """How a form is demanded: ``json_schema``, ``json_object``, ``text``, or ``auto``: the first that works."""
    max_cost: float | None = None
    """USD after which no call is sent any more; those in flight still count. None is no limit."""
    prices: str | None = None
    """A YAML file of prices (``MODEL: {input: 0.2, output: 1.25}``, USD per million tokens) over those known."""
    replay: bool = False
    """Whether only stored answers are used, without any network."""
    cache: str | None = None
    """File of stored answers; none is ``llm_cache.sqlite`` under ``data_path``."""
    templates: str | None = None
    """Folder with prompt templates of your own, in the place of those that come with the library."""

    def faults(self) -> list[str]:
        """What is wrong with the values, one ``key: message`` each."""
        found = choice_faults(self, {"structured": ("auto", *MODES)})
        found += whole_number_faults(self, {"max_tokens": 1, "concurrency": 1, "retries": 0})
        if isinstance(self.concurrency, int) and self.concurrency > 1000:
            found.append(f"concurrency: {self.concurrency} is more than 1000 calls at a time")
        if self.seed is not None:
            found += whole_number_faults(self, {"seed": 0})
        if self.temperature is not None and not _is_number(self.temperature, 0, 2):
            found.append(f"temperature: {self.temperature!r} is not in [0, 2]")
        for name in ("requests_per_minute", "tokens_per_minute", "max_cost", "timeout_s"):
            value = getattr(self, name)
            if not (value is None and name != "timeout_s") and not (_is_number(value, 0, math.inf) and value > 0):
                found.append(f"{name}: {value!r} is not a number above 0")
        for name in ("model", "prices", "cache", "templates"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.strip()):
                found.append(f"{name}: {value!r} is not a text")
        if not isinstance(self.replay, bool):
            found.append(f"replay: {self.replay!r} is not true or false")
        variable = self.api_key_env
        if variable is not None and not (isinstance(variable, str) and re.fullmatch(r"[A-Za-z_]\w*", variable)):
            found.append("api_key_env: not the name of an environment variable; the key itself belongs into one")
        return found + _url_faults(self.base_url)

    def validate(self) -> None:
        """Raises: ConfigError listing every fault."""
        if found := self.faults():
            raise ConfigError("\n".join(f"llm.{fault}" for fault in found))


def _is_number(value: Any, low: float, high: float) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and low <= value <= high


def _url_faults(url: Any) -> list[str]:
    if url is None:
        return []
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:
        return [f"base_url: {url!r} is not a URL"]
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good:
        return [f"base_url: {url!r} is not a URL such as https://api.deepseek.com/v1"]
    if parts.username or parts.password or not {name for name, _ in parse_qsl(parts.query)} <= {"api-version"}:
        return ["base_url: holds a user, a password or a parameter; put the key into an environment variable"]
    return []


def is_near(url: str) -> bool:
    """Whether a URL is on this machine or in its private network."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".localhost", ".local"))
    return address.is_loopback or address.is_private or address.is_link_local


def is_same_server(url: str | None, other: str | None) -> bool:
    """Whether two base URLs, of which none is OpenAI's, name one server, so that one key is for both."""
    return urlsplit(url or OPENAI)[:2] == urlsplit(other or OPENAI)[:2]


def shown(variable: str | None) -> str:
    """The name of a variable, unless it looks like the key itself, put there by mistake; empty for none."""
    variable = variable or ""
    is_name = variable in os.environ or variable == variable.upper()
    return variable if is_name else f"{variable[:4]}..."


def is_loopback(url: str) -> bool:
    """Whether a URL is on this machine, where calls cost nothing."""
    return (urlsplit(url).hostname or "") in ("localhost", "127.0.0.1", "::1")
