"""The methods of this library by name; each says in its own file what it is, reads and does in training.

Everything that treats a method unlike a model of RecBole asks here; nothing else names one.
"""

from __future__ import annotations

from recbole_edt.models.base import TwoDomainModel
from recbole_edt.models.llm4cdsr import LLM4CDSR
from recbole_edt.models.llmedt import LLMEDT

METHODS: dict[str, type[TwoDomainModel]] = {method.__name__: method for method in (LLM4CDSR, LLMEDT)}

DEFAULT = LLMEDT.__name__
"""The model where none is named."""
