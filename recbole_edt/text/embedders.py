"""Item and profile texts to a table of vectors on disk, keyed by token."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tqdm import tqdm

from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.errors import DataError, LLMError
from recbole_edt.text.item_text import TEXT_TEMPLATE_VERSION, item_text
from recbole_edt.text.vectors import EmbeddingTable

MAX_CHARACTERS = 8000
"""Longest text sent to an endpoint: common models refuse more than 8,191 tokens, and hardly any text has a token for
less than one character."""


class Embedder(Protocol):
    """What turns texts into vectors; an empty text must give a zero vector."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Raw (not normalised) float32 vectors ``[n, dim]``."""


class WordLlama:
    """Static token vectors (l2_supercat_256) averaged over a text: no network, no torch, fast."""

    name = "wordllama-l2-supercat-256"
    dim = 256

    def __init__(self) -> None:
        weights = _of_wordllama("weights/l2_supercat_256.safetensors", load_file)
        self._weights = weights["embedding.weight"].astype(np.float32)
        self._tokenizer = wordllama_tokenizer()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Mean token vector of each text, ``[n, 256]`` float32; an empty text gives zeros."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        with tqdm(
            total=len(texts), desc="embedding", unit="text", delay=1, leave=False, disable=None
        ) as progress:
            for start in range(0, len(texts), 1024):
                batch = list(texts[start : start + 1024])
                for row, encoding in enumerate(
                    self._tokenizer.encode_batch(batch, add_special_tokens=False), start
                ):
                    if encoding.ids:
                        vectors[row] = self._weights[encoding.ids].mean(axis=0)
                progress.update(len(batch))
        return vectors


class EmbeddingClient(Protocol):
    """What asks an endpoint for vectors; ``llm.Client`` does."""

    def embed(self, texts: Sequence[str], desc: str, dimensions: int | None = None) -> np.ndarray:
        """``[n, D]`` float32; zeros for an empty text, NaN in the rows that could not be had."""


class EndpointEmbedder:
    """Vectors from an OpenAI-compatible endpoint; each distinct text is paid for once, whatever happens.

    Attributes:
        name: of the model.
        dim: length of the vectors; 0 until the first have come, unless it was chosen.
        failed: texts so far that got zeros because no vector could be had.
    """

    def __init__(self, client: EmbeddingClient, model: str, dimensions: int | None = None) -> None:
        self.name, self.dim = model, dimensions or 0
        self.failed: set[str] = set()
        self._client, self._dimensions = client, dimensions

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """``[n, D]`` float32; zeros for an empty text, and for one whose vector could not be had.

        Raises: LLMError for what stops a run, such as a wrong key, or if not one vector came.
        """
        asked = self.shortened(texts)
        if not any(asked):
            return np.zeros((len(texts), self.dim), np.float32)
        vectors = self._client.embed(asked, "vectors", self._dimensions)
        missing = np.isnan(vectors).any(axis=1)
        if missing.all() or not vectors.shape[1]:
            raise LLMError(
                f"embed.model: {self.name} gave no vector for any of {len(texts)} texts; "
                "check the name of the model, and that it is one that embeds texts"
            )
        self.failed |= {text for text, is_missing in zip(texts, missing, strict=True) if is_missing}
        self.dim = vectors.shape[1]
        return np.where(missing[:, None], 0, vectors).astype(np.float32)

    @staticmethod
    def shortened(texts: Sequence[str]) -> list[str]:
        """What is sent of each text."""
        return [text[:MAX_CHARACTERS] for text in texts]


EMBEDDERS = {"wordllama": WordLlama}
"""Embedders that need no endpoint, by name."""
ENDPOINT = "endpoint"
"""The name of the embedder that needs one."""


def wordllama_tokenizer() -> Tokenizer:
    """What cuts a text into wordllama's tokens, for its vectors and for counting.

    Raises: DataError if its file is not there or damaged.
    """
    tokenizer = _of_wordllama("tokenizers/l2_supercat_tokenizer_config.json", Tokenizer.from_file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _of_wordllama(file: str, read: Callable[[str], Any]) -> Any:
    """What is in a data file of wordllama; its own loader wants to download."""
    folder = _package_folder("wordllama")
    try:
        return read(str(folder / file))
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(
            f"{folder}: the files of wordllama could not be read ({error}). "
            'Reinstall them: pip install --force-reinstall --no-deps "wordllama>=0.3.3"'
        ) from error


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"embedding texts and counting tokens need the files of {name}, which are not installed: "
            f'pip install --no-deps "{name}>=0.3.3"'
        )
    return Path(spec.submodule_search_locations[0])


def embed_texts(
    tokens: np.ndarray, texts: Sequence[str], embedder: Embedder, path: Path, kind: str
) -> EmbeddingTable:
    """Embed each distinct text once, write the table to ``path`` and open it.

    Args:
        tokens: ``[n]`` distinct keys.
        texts: ``[n]``; an empty one gets a zero vector. Zero vectors count as without text.
        embedder: an ``EndpointEmbedder``, or one of ``EMBEDDERS``.
        path: where the table goes.
        kind: "item" or "user", kept in ``meta`` with the counts.
    """
    rows, distinct = pd.factorize(np.asarray(texts, dtype=object))
    vectors = embedder.embed(list(distinct))
    meta = {
        "kind": kind,
        "model": embedder.name,
        "dim": vectors.shape[1],
        "template_version": TEXT_TEMPLATE_VERSION,
        "n": len(tokens),
        "n_distinct_texts": len(distinct),
        "n_without_text": int((~vectors.any(axis=1))[rows].sum()),  # an endpoint may have failed, too
    }
    EmbeddingTable(tokens, rows.astype(np.int32), vectors, meta).save(path)
    return EmbeddingTable.load(path)


def embed_items(data: TwoDomainData, embedder: Embedder, path: Path) -> EmbeddingTable:
    """Vectors of all items (virtual ones too) by their texts; coverage is in the table's ``meta``."""
    return embed_texts(data.items, item_text(data.item_fields), embedder, path, "item")
