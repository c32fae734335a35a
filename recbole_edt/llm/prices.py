"""What calls cost: tokens before they are sent, prices by model, and a running account."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from recbole_edt.errors import ConfigError

# Tokens of current models per token of the vocabulary at hand (32,000 tokens of Llama 2, inside wordllama), measured on
# prompts full of product titles; and what the frame of a message and of a whole chat adds.
_TOKEN_RATIO, _PER_MESSAGE, _PER_CHAT = 0.92, 5, 3
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """USD per million tokens; discounts for input that the server remembers are not counted."""

    input: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of a call in USD."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / _MILLION


@dataclass
class Usage:
    """A running account of calls.

    Attributes:
        cost_usd: of the calls whose price is known.
        unpriced: calls whose price is not known.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0

    def add(self, prompt_tokens: int, completion_tokens: int, cost_usd: float | None, calls: int = 1) -> None:
        """Count calls."""
        self.calls += calls
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.cost_usd += cost_usd or 0.0
        self.unpriced += calls if cost_usd is None else 0

    def __str__(self) -> str:
        cost = "cost unknown" if self.unpriced else dollars(self.cost_usd)
        return f"{self.calls:,} calls, {self.prompt_tokens:,} tokens in, {self.completion_tokens:,} out, {cost}"


def dollars(amount: float) -> str:
    """An amount with enough digits to be told from nothing: ``$12.30``, ``$0.000194``."""
    digits = 2 if amount >= 1 or amount <= 0 else 2 - math.floor(math.log10(amount))
    return f"${amount:,.{digits}f}"


# ---- prices ------------------------------------------------------------------------------------------------------


def price_of(model: str, prices: Mapping[str, Price]) -> Price | None:
    """The price of a model, or of the model of which it is a dated snapshot; None if neither is known."""
    return prices.get(model) or prices.get(_SNAPSHOT.sub("", model))


def load_prices(path: str | None = None) -> dict[str, Price]:
    """The prices that come with the library, and over them those of your own file.

    Raises: ConfigError listing every fault of the file.
    """
    packaged = resources.files("recbole_edt.llm").joinpath("prices.yaml").read_text(encoding="utf-8")
    prices = _read_prices(packaged, "prices.yaml")
    if path is not None:
        try:
            own = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"llm.prices: {path} cannot be read ({error})") from error
        prices |= _read_prices(own, path)
    return prices


def _read_prices(text: str, where: str) -> dict[str, Price]:
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({error})") from error
    form = "'NAME: {input: 0.2, output: 1.25}', in USD per million tokens"
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: expected lines such as {form}")
    faults = [f"{where}: {name}: expected {form}" for name, one in found.items() if not _is_price(one)]
    if faults:
        raise ConfigError("\n".join(faults))
    return {str(name): Price(float(one["input"]), float(one.get("output", 0))) for name, one in found.items()}


def _is_price(one: Any) -> bool:
    if not isinstance(one, dict) or "input" not in one or set(one) - {"input", "output", "date", "source"}:
        return False
    numbers = [one[key] for key in ("input", "output") if key in one]
    return all(isinstance(x, (int, float)) and not isinstance(x, bool) and 0 <= x < math.inf for x in numbers)


# ---- tokens ------------------------------------------------------------------------------------------------------


def estimate_chat(chats: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
    """About how many prompt tokens each chat will count, by its messages."""
    counts = _count([str(message["content"]) for messages in chats for message in messages])
    estimates, start = [], 0
    for messages in chats:
        tokens = sum(counts[start : start + len(messages)])
        start += len(messages)
        estimates.append(round(_TOKEN_RATIO * tokens) + _PER_MESSAGE * len(messages) + _PER_CHAT)
    return estimates


def estimate_texts(texts: Sequence[str]) -> list[int]:
    """About how many tokens each text has, at least 1."""
    return [max(1, round(_TOKEN_RATIO * count)) for count in _count(texts)]


def _count(texts: Sequence[str]) -> list[int]:
    encodings = []
    for start in range(0, len(texts), 1024):
        encodings += _tokenizer().encode_batch(list(texts[start : start + 1024]), add_special_tokens=False)
    return [len(encoding.ids) for encoding in encodings]


@functools.lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from recbole_edt.text.embedders import wordllama_tokenizer

    return wordllama_tokenizer()


WORDS = {"chat": "answers", "vectors": "vectors"}
"""What each kind of client gives."""

PAPER_USD = {"embed": 0.00009, "augment": 0.000194, "profile": 0.000477}
"""What the paper paid per user for vectors of items, for generation and for profiles."""


def usage_line(used: Mapping[str, Any], n_users: int, paper: float | None) -> str:
    tokens = f"{used['calls']:,}, {used['prompt_tokens']:,} tokens in, {used['completion_tokens']:,} out"
    if used["cost_usd"] is None:
        return f"{tokens}; price not known (see llm.prices)"
    per_user = f"{dollars(used['cost_usd'])}, {dollars(used['cost_usd'] / n_users)} per user"
    return f"{tokens}; {per_user}" + (f" (paper: {dollars(paper)})" if paper else "")


def paper_usd(stage: str, kind: str) -> float | None:
    """The paper counts the vectors of items alone, and answers of generation and of profiles."""
    return PAPER_USD.get(stage) if (stage == "embed") == (kind == "vectors") else None
