"""Vectors on disk, one per token, memory-mapped; and vectors made elsewhere, brought into that form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import save_file

from recbole_edt.data.atomic import read_table
from recbole_edt.errors import DataError
from recbole_edt.files import write_safely


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
