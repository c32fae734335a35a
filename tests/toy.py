"""Small two-domain data sets, an embedder whose vectors are known and a model whose answers are, for tests."""

import json

import numpy as np
import pandas as pd

from recbole_edt.data.two_domains import TwoDomainData, offsets_of
from recbole_edt.llm import templates
from recbole_edt.llm.questions import ChatAnswer
from recbole_edt.text.vectors import EmbeddingTable


def dataset(rows, items=(), titles=None):
    """Data from one text per user, such as ``"f1 k1 *f2"``: f is food, k kitchen, a star a generated row.

    ``items`` adds catalogue items that nobody has; ``titles`` maps items to their text (default: the token).
    """
    texts = [text.split() for text in rows]
    user = np.repeat(np.arange(len(texts)), [len(text) for text in texts]).astype(np.int64)
    words = [word for text in texts for word in text]
    tokens = [word.lstrip("*") for word in words]
    catalogue = np.array(sorted({*tokens, *items}), dtype=object)
    return TwoDomainData(
        name="toy",
        users=np.array([f"u{i}" for i in range(len(texts))], dtype=object),
        items=catalogue,
        domains=("food", "kitchen"),
        item_domain=np.array([token[0] == "k" for token in catalogue], dtype=np.int8),
        item_fields=pd.DataFrame(
            {"title": [(titles or {}).get(item, item) for item in catalogue]}, dtype=object
        ),
        virtual=np.zeros(len(catalogue), dtype=bool),
        user=user,
        item=np.array([list(catalogue).index(token) for token in tokens], dtype=np.int64),
        time=np.arange(len(words), dtype=np.float64),
        generated=np.array([word.startswith("*") for word in words], dtype=bool),
        offsets=offsets_of(user, len(texts)),
    )


def sequences(data):
    """The inverse of ``dataset``: one text per user."""
    words = [
        ("*" if new else "") + data.items[item] for item, new in zip(data.item, data.generated, strict=True)
    ]
    return [" ".join(words[a:b]) for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)]


def table_of(data, vectors):
    """A table with these vectors, one per item in catalogue order."""
    vectors = np.asarray(vectors, np.float32)
    return EmbeddingTable(data.items, np.arange(len(data.items), dtype=np.int32), vectors, {"kind": "item"})


class LetterEmbedder:
    """Counts the letters a to d of a text, so that vectors can be worked out by hand."""

    name = "letters"
    dim = 4

    def __init__(self):
        self.asked = []

    def embed(self, texts):
        self.asked += texts
        return np.array([[text.count(letter) for letter in "abcd"] for text in texts], np.float32).reshape(
            -1, 4
        )


class ScriptedWriter:
    """A language model whose answers the test decides; it notes what it was asked."""

    max_tokens = 500

    def __init__(self, answer, embedder=None, folder=None):
        """``answer(request)`` gives the value, or a text that says why there is none."""
        self.templates = templates.load(folder)
        self.asked, self.waves = [], []
        self._answer, self._embedder = answer, embedder

    def ask(self, requests, desc):
        self.asked += requests
        self.waves.append(len(requests))
        return [self._one(self._answer(request)) for request in requests]

    def _one(self, value):
        if isinstance(value, str):
            return ChatAnswer(None, "", value, False, 0, 0, 0.0, 1)
        return ChatAnswer(value, json.dumps(value), None, False, 0, 0, 0.0, 1)

    def embed(self, texts):
        return self._embedder.embed(texts)
