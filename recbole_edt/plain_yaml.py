"""YAML read with care: plain values alone, no key twice, and errors that name the line."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from recbole_edt.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Plain YAML, except that 1e-3 is a number and that a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)

TOO_DEEP = "a value is nested too deep, or holds itself; write it out without '&' and '*'"


def read_yaml(text: str, where: str = "configuration") -> Any:
    """Parse YAML without building any object but plain ones.

    Raises: ConfigError with the line and column of a syntax error.
    """
    try:
        return copy.deepcopy(_parsed(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {getattr(error, 'problem', error)}") from None
    except ValueError as error:  # a date such as 2020-13-45
        raise ConfigError(f"{where}: {error}; put the text in quotes") from None
    except RecursionError:
        raise ConfigError(f"{where}: {TOO_DEEP}") from None


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # slow, and RecBole's own files are read again for every variant


def read_file(path: Path) -> dict[str, Any]:
    """One configuration file as a mapping.

    Raises: ConfigError if it is missing, not UTF-8 or not a mapping.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found a {type(values).__name__}")
    return values
