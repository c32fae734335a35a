"""Settings of the stages that have no module of their own above the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_edt.config.recbole_keys import as_list, is_model
from recbole_edt.errors import choice_faults, is_whole
from recbole_edt.llm.settings import LLMConfig
from recbole_edt.text.embedders import EMBEDDERS, ENDPOINT


@dataclass(frozen=True)
class EmbedConfig:
    """Item texts to vectors (method, section 2)."""

    embedder: str = "wordllama"
    """``wordllama``: static token vectors, 256 numbers, offline; ``endpoint``: a model behind an API."""
    model: str | None = None
    """Name of the endpoint's embedding model; needed for ``endpoint``."""
    dimensions: int | None = None
    """Length of the endpoint's vectors, for models that offer several; none is the model's own."""
    base_url: str | None = None
    """The endpoint; none is ``llm.base_url``."""
    api_key_env: str | None = None
    """Environment variable with the key; none is ``llm.api_key_env`` on the server of ``llm.base_url``, else no key."""
    vectors: str | None = None
    """Path of your own vectors instead: RecBole's ``.itememb`` text, or a ``.safetensors`` table of this library."""
    missing_text: str = "zero"
    """Items without text or vector: ``zero`` keeps them with a zero vector, ``drop`` removes them and their rows."""

    def faults(self) -> list[str]:
        found = choice_faults(self, {"embedder": (*EMBEDDERS, ENDPOINT), "missing_text": ("zero", "drop")})
        if not isinstance(self.vectors, str | None):
            found.append(f"vectors: {self.vectors!r} is not the path of a file")
        if self.embedder == ENDPOINT and not (isinstance(self.model, str) and self.model):
            found.append(f"model: {self.model!r}; the embedder 'endpoint' needs the name of an embedding model")
        if self.dimensions is not None and (not is_whole(self.dimensions) or self.dimensions < 1):
            found.append(f"dimensions: {self.dimensions!r} is not a whole number of at least 1")
        return found + self._endpoint_faults()

    def _endpoint_faults(self) -> list[str]:
        """What the group ``llm`` says about keys that mean the same there."""
        given = {key: value for key in ("base_url", "api_key_env") if (value := getattr(self, key)) is not None}
        return LLMConfig(**given).faults()


@dataclass(frozen=True)
class RecommendConfig:
    """What the stage ``recommend`` writes."""

    k: int = 10
    """Items per user and domain, above 0."""
    seen: bool = False
    """Whether items of the user's own history may be recommended."""
    domain: str | None = None
    """Items of one domain only; none is both."""
    users: Any = None
    """Ids of known users, as a list, separated by commas, or in a ``.txt`` file, one a line; none is all."""
    histories: str | None = None
    """File of new users' histories instead, ``.csv`` or ``.jsonl`` (see ``recbole_edt.recommend.histories``)."""
    output: str | None = None
    """File to write, ``.csv``, ``.jsonl`` or ``.parquet``; none is `default_output` beside the model."""
    train_on_all: bool = False
    """Whether the model is first trained once more on all interactions, for as many epochs as validation chose."""

    def faults(self) -> list[str]:
        found = []
        if not is_whole(self.k) or self.k < 1:
            found.append(f"k: {self.k!r} is not a whole number above 0")
        for key in ("seen", "train_on_all"):
            if not isinstance(getattr(self, key), bool):
                found.append(f"{key}: {getattr(self, key)!r} is not true or false")
        if not isinstance(self.domain, str | None):
            found.append(f"domain: {self.domain!r} is not a domain's name")
        if self.users is not None and not self.user_list:
            found.append(f"users: expected ids such as [u1, u2], or a .txt file, found {self.users!r}")
        if self.users is not None and self.histories is not None:
            found.append("users: known users and new histories do not go together; give one of the two")
        for key, endings in (("histories", ENDINGS), ("output", (".csv", ".jsonl", ".parquet"))):
            path = getattr(self, key)
            if path is not None and not (isinstance(path, str) and Path(path).suffix in endings):
                found.append(f"{key}: {path!r} is not a file that ends in {', '.join(endings)}")
        paths = [Path(path).resolve() for path in (self.histories, self.output) if path and not found]
        if len(paths) > len(set(paths)):
            found.append(f"output: {self.output!r} is the file of recommend.histories, which it would replace")
        return found + (self._parquet_faults() if str(self.output).endswith(".parquet") else [])

    def _parquet_faults(self) -> list[str]:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:  # not there, or too new for this numpy
            return [f"output: Parquet needs pyarrow ({error}): pip install 'recbole_edt[parquet]', or use .csv"]
        return []

    @property
    def default_output(self) -> str:
        """``recommendations.csv`` for all users, with ``-users`` or ``-histories`` in its name for some or new ones."""
        asked = [key for key in ("users", "histories") if getattr(self, key) is not None]
        return f"{'-'.join(['recommendations', *asked])}.csv"

    @property
    def user_list(self) -> list[str]:
        """The wanted users' ids; those of a file are still in it."""
        users = self.users.split(",") if isinstance(self.users, str) else as_list(self.users)
        texts = [str(user).strip() for user in users if isinstance(user, str | int) and not isinstance(user, bool)]
        return texts if len(texts) == len(users) and all(texts) else []


@dataclass(frozen=True)
class TuneConfig:
    """The search for hyper-parameters, on validation alone."""

    trials: int | None = None
    """Trials of every model: the budget. The stage ``tune`` needs it; other tables state it."""
    space: str = "default"
    """What is searched: ``default`` or ``paper`` (files in ``recbole_edt/spaces/``), or the path of a YAML file."""
    seed: int = 42
    """Of the sampler; training has ``seed``."""
    tuned: Any = None
    """Models whose settings such a search found; written by ``tune`` beside them, for the notes of tables."""

    def faults(self) -> list[str]:
        found = []
        if self.trials is not None and (not is_whole(self.trials) or self.trials < 1):
            found.append(f"trials: {self.trials!r} is not a whole number above 0")
        if not isinstance(self.space, str) or not self.space:
            found.append(f"space: {self.space!r} is not default, paper or the path of a YAML file")
        if not is_whole(self.seed) or self.seed < 0:
            found.append(f"seed: {self.seed!r} is not a whole number of at least 0")
        if self.tuned is not None and (not isinstance(self.tuned, list) or not all(map(is_model, self.tuned))):
            found.append(f"tuned: {self.tuned!r} is not a list of models")
        return found


@dataclass(frozen=True)
class ExperimentConfig:
    """What the stage ``experiment`` cannot know by itself."""

    llms: Any = None
    """Rows of table 8: a name for each language model, and keys of the group ``llm`` below it."""

    def faults(self) -> list[str]:
        if self.llms is None:
            return []
        if not isinstance(self.llms, Mapping) or not all(isinstance(one, Mapping) for one in self.llms.values()):
            return [f"llms: expected names with keys of llm below them, found {self.llms!r}"]
        return []

ENDINGS = (".csv", ".jsonl")
