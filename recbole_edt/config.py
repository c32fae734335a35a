"""YAML files and command-line values to checked settings, and RecBole's ``Config`` without its traps.

RecBole's keys keep their names; ours stand in groups (``prepare``, ``embed``, ``augment``, ``profile``) or beside
RecBole's, and every key that nobody knows is an error that names the nearest right one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config
from recbole.utils import ModelType, argument_list

from recbole_edt import compat
from recbole_edt.augment import AugmentConfig
from recbole_edt.embeddings import EMBEDDERS
from recbole_edt.errors import ConfigError
from recbole_edt.profiles import ProfileConfig

# Keys of EDTDataset, for RecBole's comparison of cached data sets.
DATASET_KEYS = (
    "domains",
    "k_core",
    "use_generated",
    "training",
    "inserted_as_targets",
    "item_embeddings",
    "user_profiles",
)

# Models that baselines.py trains by whole sequences.
SEQUENCE_MODELS = ("SASRec", "GRU4Rec", "BERT4Rec")

# Ours instead of RecBole's defaults, for every model alike.
RUN_DEFAULTS: dict[str, Any] = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "metrics": ["Hit", "NDCG", "MRR"],
    "topk": [5, 10, 20],
    "valid_metric": "NDCG@10",
    "repeatable": True,
    "show_progress": False,
    "seed": 42,
    "epochs": 300,
    "stopping_step": 20,
    "train_batch_size": 512,
    "eval_batch_size": 512,
    "training": "sequence",
    "inserted_as_targets": True,
    "metric_decimal_place": 6,
}


@dataclass(frozen=True)
class PrepareConfig:
    """How the two-domain atomic files come about."""

    source: str | None = None
    """A reader of ``recbole_edt.raw``; none means that the files are there already."""

    def faults(self) -> list[str]:
        from recbole_edt.raw import READERS

        if self.source is None or self.source in READERS:
            return []
        return [f"source: {self.source!r} is not one of {', '.join(READERS)}"]


@dataclass(frozen=True)
class EmbedConfig:
    """Item texts to vectors (method, section 2)."""

    embedder: str = "wordllama"
    """``wordllama``: static token vectors, 256 numbers, offline."""
    missing_text: str = "zero"
    """Items without any text: ``zero`` keeps them with a zero vector, ``drop`` removes them and their interactions."""

    def faults(self) -> list[str]:
        found = []
        if self.embedder not in EMBEDDERS:
            found.append(f"embedder: {self.embedder!r} is not one of {', '.join(EMBEDDERS)}")
        if self.missing_text not in ("zero", "drop"):
            found.append(f"missing_text: {self.missing_text!r} is not one of zero, drop")
        return found


@dataclass(frozen=True)
class RecommendConfig:
    """What the stage ``recommend`` writes."""

    k: int = 10
    """Items per user and domain, above 0."""
    seen: bool = False
    """Whether items of the user's own history may be recommended."""

    def faults(self) -> list[str]:
        return [] if isinstance(self.k, int) and self.k > 0 else [f"k: {self.k!r} is not a whole number above 0"]


GROUPS: dict[str, type] = {
    "prepare": PrepareConfig,
    "embed": EmbedConfig,
    "augment": AugmentConfig,
    "profile": ProfileConfig,
    "recommend": RecommendConfig,
}


@dataclass(frozen=True)
class Settings:
    """Everything a run needs, checked."""

    dataset: str
    """Name of the data set: folder and file names under ``data_path``, and ``dataset_configs/NAME.yaml``."""
    data_path: Path = Path("atomic_files")
    runs_path: Path = Path("runs")
    model: str = "LLMEDT"
    """The model of the stages ``train`` and ``recommend``."""
    models: tuple[str, ...] = ("GRU4Rec", "BERT4Rec", "SASRec", "LLMEDT")
    """The rows of ``compare``."""
    model_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keys for one model only, for example ``{SASRec: {learning_rate: 0.002}}``."""
    candidates: str = "domain"
    """Who competes with the target: ``domain``, ``all`` or ``sampled-N`` (the paper: sampled-100)."""
    domains: tuple[str, str] | None = None
    """Names of domain A and B in order; by default in order of the ``.item`` file."""
    k_core: int = 0
    """Drop items and (user, domain) parts with fewer interactions, per domain, to a fixed point; 0 keeps all."""
    prepare: PrepareConfig = PrepareConfig()
    embed: EmbedConfig = EmbedConfig()
    augment: AugmentConfig = AugmentConfig()
    profile: ProfileConfig = ProfileConfig()
    recommend: RecommendConfig = RecommendConfig()
    recbole: dict[str, Any] = field(default_factory=dict)
    """RecBole's own keys and the models' hyper-parameters, for every model alike."""

    @property
    def folder(self) -> Path:
        """The data set's atomic files."""
        return self.data_path / self.dataset

    @property
    def augmented(self) -> str:
        """Name of the augmented data set."""
        return f"{self.dataset}-edt"


OWN = {f.name for f in fields(Settings)} - {"recbole"}


class _Loader(yaml.SafeLoader):
    """Plain YAML, except that 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, where: str = "configuration") -> Any:
    """Parse YAML without building any object but plain ones.

    Raises: ConfigError with the line and column of a syntax error.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {getattr(error, 'problem', error)}") from None


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
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(values).__name__}")
    return values


def load(dataset: str, config_files: Iterable[Path] = (), overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from ``dataset_configs/NAME.yaml`` if there is one, then the files in order, then ``overrides``.

    Args:
        overrides: keys as on the command line; ``augment.tau`` reaches into a group.

    Raises: ConfigError listing every unknown key and every value out of range.
    """
    if not re.fullmatch(r"[\w.-]+", dataset) or dataset.startswith("."):
        raise ConfigError(f"dataset: {dataset!r} is not a plain name (letters, digits, '-', '_', '.')")
    own = Path("dataset_configs") / f"{dataset}.yaml"
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in [*([own] if own.is_file() else []), *config_files]:
        _merge(values, read_file(path), origin, str(path))
    for key, value in (overrides or {}).items():
        _merge(values, _nested(key, value), origin, "command line")
    values["dataset"] = dataset
    return _settings(values, origin)


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: _nested(rest, value)} if rest else {head: value}


def _merge(values: dict[str, Any], new: Mapping[str, Any], origin: dict[str, str], where: str, prefix: str = "") -> None:
    for key, value in new.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value, origin, where, f"{name}.")
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value
            origin[name] = where
            if isinstance(value, Mapping):
                origin.update({f"{name}.{inner}": where for inner in value})


def _settings(values: dict[str, Any], origin: Mapping[str, str]) -> Settings:
    faults: list[str] = []
    known = known_keys(values)

    def fault(key: str, message: str) -> None:
        faults.append(f"{origin.get(key, origin.get(key.partition('.')[0], 'configuration'))}: {message}")

    kwargs: dict[str, Any] = {"recbole": {}}
    for key, value in values.items():
        if key in GROUPS:
            group, found = _group(key, GROUPS[key], value)
            for name, message in found:
                fault(name, message)
            kwargs[key] = group
        elif key in OWN:
            kwargs[key] = value
        elif key in known:
            kwargs["recbole"][key] = value
        else:
            fault(key, _unknown(key, known | OWN | set(GROUPS)))
    _check_own(kwargs, fault)
    for model, own in kwargs.get("model_settings", {}).items():
        for key in own or {}:
            if key not in known | model_keys(model):
                fault(f"model_settings.{model}", _unknown(f"model_settings.{model}.{key}", known | model_keys(model)))
    if faults:
        raise ConfigError("\n".join(faults))
    return Settings(**kwargs)


def _group(name: str, cls: type, value: Any) -> tuple[Any, list[tuple[str, str]]]:
    if not isinstance(value, Mapping):
        return cls(), [(name, f"{name}: expected keys below it, found {value!r}")]
    allowed = {f.name for f in fields(cls)}
    found = [
        (f"{name}.{key}", _unknown(f"{name}.{key}", {f"{name}.{one}" for one in allowed}))
        for key in value
        if key not in allowed
    ]
    group = cls(**{key: one for key, one in value.items() if key in allowed})
    found += [(f"{name}.{fault.partition(':')[0]}", f"{name}.{fault}") for fault in group.faults()]
    return group, found


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else "")


def _check_own(kwargs: dict[str, Any], fault: Any) -> None:
    for key in ("data_path", "runs_path"):
        if key in kwargs:
            kwargs[key] = Path(str(kwargs[key]))
    if "models" in kwargs:
        models = kwargs["models"]
        kwargs["models"] = tuple(models.replace(",", " ").split() if isinstance(models, str) else models)
    for model in {*kwargs.get("models", ()), kwargs.get("model", "LLMEDT")}:
        if not _is_model(model):
            fault("models", f"unknown model '{model}'" + near_model(model))
    candidates = str(kwargs.get("candidates", "domain"))
    if not re.fullmatch(r"domain|all|sampled-[1-9]\d*", candidates):
        fault("candidates", f"candidates: {candidates!r} is not one of domain, all, sampled-N")
    domains = kwargs.get("domains")
    if domains is not None:
        if isinstance(domains, (list, tuple)) and len(set(map(str, domains))) == 2 == len(domains):
            kwargs["domains"] = tuple(map(str, domains))
        else:
            fault("domains", f"domains: expected two names, found {domains!r}")
    k_core = kwargs.get("k_core", 0)
    if not isinstance(k_core, int) or k_core < 0:
        fault("k_core", f"k_core: {k_core!r} is not a whole number of at least 0")
    training = kwargs["recbole"].get("training", "sequence")
    if training not in ("sequence", "prefix"):
        fault("training", f"training: {training!r} is not one of sequence, prefix")


# ---- RecBole -----------------------------------------------------------------------------------------------------


def _properties() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        compat.check()
        raise ConfigError("RecBole cannot be found")
    return Path(spec.submodule_search_locations[0]) / "properties"


def model_keys(model: str) -> set[str]:
    """Hyper-parameters of one model: those in its RecBole property file, or LLM-EDT's own."""
    if model == "LLMEDT":
        from recbole_edt.model import BACKBONES, ModelSettings
        from recbole_edt.trainer import PhaseConfig

        own = {f.name for cls in (ModelSettings, PhaseConfig) for f in fields(cls)}
        return own.union(*(model_keys(backbone) for backbone in BACKBONES))
    path = _properties() / "model" / f"{model}.yaml"
    return set(read_file(path)) if path.is_file() else set()


def known_keys(values: Mapping[str, Any]) -> set[str]:
    """Every key that RecBole or one of the models in ``values`` understands."""
    keys = set(DATASET_KEYS) | set(RUN_DEFAULTS)
    for names in (
        argument_list.general_arguments,
        argument_list.training_arguments,
        argument_list.evaluation_arguments,
        argument_list.dataset_arguments,
    ):
        keys.update(names)
    for name in ("overall", "dataset/sample", "quick_start_config/sequential"):
        keys.update(read_file(_properties() / f"{name}.yaml"))
    models = values.get("models", Settings.models)
    models = models.replace(",", " ").split() if isinstance(models, str) else models
    for model in {*models, values.get("model", "LLMEDT"), "LLMEDT"}:
        if isinstance(model, str) and re.fullmatch(r"\w+", model):
            keys |= model_keys(model)
    return keys


def _is_model(name: Any) -> bool:
    return name == "LLMEDT" or (isinstance(name, str) and name in _model_names())


def _model_names() -> list[str]:
    return sorted(path.stem for path in (_properties() / "model").glob("*.yaml"))


def near_model(name: str) -> str:
    """A hint for a mistyped model name."""
    near = difflib.get_close_matches(str(name).lower(), [n.lower() for n in _model_names()] + ["llmedt"], n=1)
    names = {n.lower(): n for n in [*_model_names(), "LLMEDT"]}
    return f" (did you mean '{names[near[0]]}'?)" if near else ""


class EDTConfig(Config):
    """RecBole's ``Config`` without command-line parsing, ``eval`` and lists shared between runs."""

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        self.parameters = {name: list(keys) for name, keys in self.parameters.items()}

    def _load_cmd_line(self) -> dict:
        return {}  # RecBole would evaluate sys.argv, whoever's it is

    def _convert_config_dict(self, config_dict: dict) -> dict:
        return config_dict  # values are typed already; RecBole would eval() strings

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        self.internal_config_dict.update(RUN_DEFAULTS)
        if model_class.type != ModelType.SEQUENTIAL:
            return
        merged = {**self.internal_config_dict, **self.external_config_dict}
        by_sequence = model == "LLMEDT" or (merged["training"] == "sequence" and model in SEQUENCE_MODELS)
        if by_sequence or merged.get("loss_type") == "CE":
            # Negatives are drawn by the loss, if at all; RecBole refuses CE with a sampler.
            self.internal_config_dict["train_neg_sample_args"] = None
        if by_sequence:
            self.internal_config_dict["transform"] = None  # BERT4Rec masks inside its loss


def model_values(settings: Settings, model: str) -> dict[str, Any]:
    """The settings of one model: those for all, then its own."""
    return {**settings.recbole, **(settings.model_settings.get(model) or {})}


def recbole_config(settings: Settings, model: str, dataset: str, checkpoint_dir: Path) -> Any:
    """RecBole's configuration for one model on one set of atomic files.

    Precedence: RecBole's defaults, ours, the settings, the model's own settings.
    """
    compat.check()
    compat.apply()
    values = model_values(settings, model)
    values.update(
        data_path=str(settings.data_path), checkpoint_dir=str(checkpoint_dir), domains=settings.domains
    )
    if values.get("use_gpu") is False:
        values["gpu_id"] = ""  # RecBole picks its device by gpu_id alone
    from recbole_edt.model import LLMEDT

    return EDTConfig(LLMEDT if model == "LLMEDT" else model, dataset, config_dict=values)
