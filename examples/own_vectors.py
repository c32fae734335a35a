"""Bring your own item vectors: any model that turns a text into numbers can take the embedder's place.

    python examples/own_vectors.py NAME [--data-path=atomic_files]

Here tf-idf and a singular value decomposition stand for your model. The vectors go into `NAME.own.safetensors` beside
the data; the printed command trains on them. A vector per item is all that is needed; an item without one gets zeros.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_edt.data import atomic
from recbole_edt.errors import EDTError
from recbole_edt.text.item_text import item_text
from recbole_edt.text.vectors import EmbeddingTable


def vectors_of(texts: list[str], size: int = 64) -> np.ndarray:
    """``[n, D]`` float32; put your own model here."""
    counts = TfidfVectorizer(min_df=1, token_pattern=r"\w+").fit_transform(texts)
    svd = TruncatedSVD(min(size, *(n - 1 for n in counts.shape)), random_state=0)
    return svd.fit_transform(counts).astype(np.float32)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--data-path", type=Path, default=Path("atomic_files"))
    given = parser.parse_args(arguments)
    try:
        data = atomic.read(given.data_path / given.name, given.name)
        path = given.data_path / given.name / f"{given.name}.own.safetensors"
        vectors = vectors_of(item_text(data.item_fields))
        rows = np.arange(len(data.items), dtype=np.int32)
        EmbeddingTable(data.items, rows, vectors, {"kind": "item", "model": "tf-idf"}).save(path)
    except EDTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(rows)} vectors of {vectors.shape[1]} numbers: {path}")
    print(f"python run_edt.py --dataset={given.name} --data_path={given.data_path} --embed.vectors={path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
