"""What the tests of whole runs with a language model share: a small data set, arguments, and what a run leaves."""

from __future__ import annotations

from pathlib import Path

from conftest import QUICK

KEY = "sk-secret-a1b2c3d4e5f6g7h8"
"""What no file may hold."""

STAGES = ("prepare", "embed", "augment", "profile")


def arguments(base_url: str, dataset: str = "tiny", **keys: object) -> list[str]:
    """A command line for items, profiles and vectors from a server."""
    values = {
        **QUICK,
        "models": "LLMEDT",
        "augment.generator": "llm",
        "augment.n_generated": 3,
        "profile.generator": "llm",
        "embed.embedder": "endpoint",
        "embed.model": "vectors",
        "llm.model": "writer",
        "llm.base_url": base_url,
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    return [f"--dataset={dataset}", *(f"--{key}={value}" for key, value in values.items())]


def left(folder: Path) -> dict[str, bytes]:
    """Every file that the stages before training leave, but for the cache, which holds times and the order of calls."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "llm_cache" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
