"""Item and profile texts to a table of vectors on disk, keyed by token."""

from __future__ import annotations

import html
import importlib.util
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tqdm import tqdm

from recbole_edt.atomic import TwoDomainData, read_table
from recbole_edt.errors import DataError, LLMError
from recbole_edt.files import write_safely

TEXT_TEMPLATE_VERSION = 1
TEXT_COLUMNS = (("title", "name"), ("brand",), ("category", "categories", "class"), ("description",))
"""Parts of an item's text in order; of each group the first column that has something to say."""
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


def item_text(fields: pd.DataFrame) -> list[str]:
    """One text per item from its title, brand, category and description; missing parts are left out.

    Used alike for catalogue and generated items, so that their cosines mean the same thing (eq. 5).
    HTML entities, which shop titles are full of, are resolved.
    """
    parts = [_first_filled(fields, group) for group in TEXT_COLUMNS]
    return [". ".join(part for part in row if part) for row in zip(*parts, strict=True)]


def _first_filled(fields: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    text = [""] * len(fields)
    for column in columns:
        if column in fields:
            text = [old or _clean(new) for old, new in zip(text, fields[column], strict=True)]
    return text


def _clean(text: str) -> str:
    return " ".join(html.unescape(str(text)).split())


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


@dataclass(frozen=True)
class EmbeddingTable:
    """Vectors keyed by token; tokens with the same text share a row of ``vectors``.

    Attributes:
        tokens: ``[n]`` str, distinct.
        rows: ``[n]`` int32, the row of ``vectors`` of each token.
        vectors: ``[n_distinct, D]`` float32, raw; memory-mapped when loaded.
        meta: ``kind`` ("item" or "user"), ``model``, ``template_version``, ``n_without_text``...
    """

    tokens: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def dim(self) -> int:
        """Length D of a vector."""
        return self.vectors.shape[1]

    def has(self, tokens: Sequence[str] | np.ndarray) -> np.ndarray:
        """Which of the tokens are in the table, ``[m]`` bool."""
        return self.find(tokens) >= 0

    def lookup(self, tokens: Sequence[str] | np.ndarray) -> np.ndarray:
        """The raw vectors of the tokens, ``[m, D]`` float32; zeros for a token that is not in the table."""
        found = self.find(tokens)
        vectors = np.zeros((len(found), self.dim), np.float32)
        vectors[found >= 0] = self.vectors[self.rows[found[found >= 0]]]
        return vectors

    def find(self, tokens: Sequence[str] | np.ndarray) -> np.ndarray:
        """Positions of the tokens in ``tokens``, ``[m]``; -1 for a token that is not in the table."""
        return pd.Index(self.tokens, dtype=object).get_indexer(pd.Index(tokens, dtype=object))

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            DataError: a token twice, a vector that is not finite, or a file that cannot be written.
        """
        self.check(path)
        encoded = [str(token).encode() for token in self.tokens]
        arrays: dict[str, np.ndarray] = {
            "token_bytes": np.frombuffer(b"".join(encoded), np.uint8),
            "token_ends": np.cumsum([len(token) for token in encoded], dtype=np.int64),
            "rows": np.ascontiguousarray(self.rows, np.int32),
            "vectors": np.ascontiguousarray(self.vectors, np.float32),
        }
        with write_safely(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # safetensors leaves a file that only its owner can read
            try:
                save_file(arrays, temporary, {"embedding_table": json.dumps(self.meta, sort_keys=True)})
                temporary.chmod(mode)
            except SafetensorError as error:
                raise DataError(f"{path}: could not be written ({error})") from error

    def check(self, path: Path) -> None:
        """Raises: DataError, naming ``path``, if a token is there twice or a vector is not finite."""
        repeated = pd.Index(self.tokens, dtype=object).duplicated()
        if repeated.any():
            raise DataError(f"{path}: token '{self.tokens[repeated][0]}' is there twice; keep one of them")
        finite = np.isfinite(self.vectors).all(axis=1)
        if not finite.all():
            first = next(iter(self.tokens[~finite[self.rows]]), "")
            raise DataError(f"{path}: {(~finite).sum()} vectors are not finite (first: token '{first}'); embed anew")

    @classmethod
    def load(
        cls, path: Path, absent: str = "run the stage embed first", damaged: str = "delete it and embed again"
    ) -> EmbeddingTable:
        """Open a saved table; the vectors stay on disk until they are looked up.

        Args:
            path: the file.
            absent: what to do if it is not there.
            damaged: what to do if it is no such table.

        Raises:
            DataError: no such file, cut short, or not an embedding table.
        """
        path = Path(path)
        try:
            start, header = _read_header(path)
            meta = json.loads(header["__metadata__"]["embedding_table"])
            arrays = {name: _map_array(path, start, header[name], kind) for name, kind in _LAYOUT.items()}
            tokens = _decode_tokens(arrays["token_bytes"], arrays["token_ends"])
            rows, vectors = np.array(arrays["rows"]), arrays["vectors"]
            if not isinstance(meta, dict) or vectors.ndim != 2 or rows.shape != tokens.shape:
                raise ValueError("shapes do not fit together")
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(vectors):
                raise ValueError("rows point outside the vectors")
            if (repeated := pd.Index(tokens, dtype=object).duplicated()).any():
                raise ValueError(f"token '{tokens[repeated][0]}' is there twice")
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; {absent}") from error
        except PermissionError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give yourself the right to") from error
        except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(f"{path}: not a whole embedding table ({error}); {damaged}") from error
        return cls(tokens, rows, vectors, meta)


_LAYOUT = {"token_bytes": "U8", "token_ends": "I64", "rows": "I32", "vectors": "F32"}
_DTYPES = {"U8": "u1", "I64": "<i8", "I32": "<i4", "F32": "<f4"}
_MAX_HEADER = 100_000_000  # the format's own limit


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data starts and the JSON header: safetensors is length (8 bytes), header, data."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise ValueError("no safetensors header")
        return 8 + length, json.loads(file.read(length))


def _map_array(path: Path, start: int, entry: dict[str, Any], dtype: str) -> np.ndarray:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    kind = np.dtype(_DTYPES[dtype])
    if entry["dtype"] != dtype or end - begin != kind.itemsize * int(np.prod(shape)):
        raise ValueError("unexpected type or size of an array")
    if begin < 0:
        raise ValueError("an array before the start of the data")
    if end == begin:  # an empty range cannot be mapped
        return np.zeros(shape, kind)
    return np.memmap(path, kind, "r", start + begin, shape)


def _decode_tokens(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    text, bounds = data.tobytes(), [0, *ends.tolist()]
    if bounds[-1] != len(text) or bounds != sorted(bounds):
        raise ValueError("token offsets are wrong")
    tokens = np.empty(len(ends), object)
    tokens[:] = [text[start:end].decode() for start, end in itertools.pairwise(bounds)]
    return tokens


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


def import_vectors(source: Path, items: np.ndarray, path: Path) -> EmbeddingTable:
    """Write the user's own vectors of the items to ``path`` and open them; an item without one gets zeros.

    Args:
        source: a ``.safetensors`` table of this library, or RecBole's text (any other ending).
        items: ``[N]`` tokens.
        path: where the table goes.

    Raises:
        DataError: the source is faulty, or has no vector for any item.
    """
    if source.suffix == ".safetensors":
        own = EmbeddingTable.load(source, "check embed.vectors", "examples/own_vectors.py makes one")
        own.check(source)
    else:
        own = read_itememb(source)
    vectors = own.lookup(items)
    missing = ~vectors.any(axis=1)
    if missing.all():
        raise DataError(f"{source}: has a vector for none of the {len(items)} items; are its tokens those of .item?")
    meta = {
        "kind": "item",
        "model": own.meta.get("model", source.name),
        "dim": own.dim,
        "n": len(items),
        "n_distinct_texts": int((~missing).sum()),
        "n_without_text": int(missing.sum()),
    }
    EmbeddingTable(items, np.arange(len(items), dtype=np.int32), vectors, meta).save(path)
    return EmbeddingTable.load(path)


def read_itememb(path: Path) -> EmbeddingTable:
    """Vectors from a RecBole text file with a token column and a ``float_seq`` column (any names).

    Raises:
        DataError: other columns, a value that is not a finite number, or vectors of unequal length.
    """
    path = Path(path)
    frame, types = read_table(path)
    token, sequence = _column_of(path, types, "token"), _column_of(path, types, "float_seq")
    vectors = _parse_vectors(path, sequence, frame[sequence].tolist())
    rows = np.arange(len(frame), dtype=np.int32)
    table = EmbeddingTable(frame[token].to_numpy(object), rows, vectors, {"kind": "item", "model": path.name})
    table.check(path)
    return table


def _column_of(path: Path, types: dict[str, str], wanted: str) -> str:
    columns = [name for name, kind in types.items() if kind == wanted]
    if len(columns) != 1:
        found = ", ".join(f"{name}:{kind}" for name, kind in types.items())
        raise DataError(f"{path}: expected one column of type {wanted}; its first line has {found}")
    return columns[0]


def _parse_vectors(path: Path, column: str, texts: Sequence[str]) -> np.ndarray:
    parts = [text.split() for text in texts]
    if not parts[0]:
        raise DataError(f"{path}, line 2, column '{column}': no numbers")
    vectors = np.zeros((len(parts), len(parts[0])), np.float32)
    for row, numbers in enumerate(parts):
        try:
            vectors[row] = np.array(numbers, np.float32).reshape(vectors.shape[1])
        except ValueError as error:
            raise DataError(
                f"{path}, line {row + 2}, column '{column}': {len(numbers)} values, not {vectors.shape[1]} "
                f"numbers separated by spaces as on line 2 ({error})"
            ) from error
    return vectors
