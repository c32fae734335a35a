"""YAML files and command-line values to checked settings.

RecBole's keys keep their names; ours stand in groups (``prepare``, ``embed``, ``augment``, ``profile``, ``llm``,
``recommend``, ``tune``, ``experiment``) or beside RecBole's, and every key that nobody knows is an error that names
the nearest right one.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.config.groups import EmbedConfig, ExperimentConfig, RecommendConfig, TuneConfig
from recbole_edt.config.recbole_keys import (
    RUN_DEFAULTS,
    Fault,
    as_list,
    check_values,
    examples_of,
    hyper_parameters,
    is_model,
    keys_of_others,
    near_model,
    properties,
    topk_problem,
    unknown,
    values_of,
    written,
)
from recbole_edt.data.sources import PrepareConfig
from recbole_edt.data.two_domains import OVERALL
from recbole_edt.errors import ConfigError, is_whole
from recbole_edt.evaluate.metrics import METRICS
from recbole_edt.files import TOO_DEEP, read_file, read_yaml
from recbole_edt.llm.settings import LLMConfig, is_near, is_same_server
from recbole_edt.models.registry import DEFAULT, METHODS, NO_PROFILES
from recbole_edt.profile.settings import SRA, ProfileConfig
from recbole_edt.text.embedders import ENDPOINT

GROUPS: dict[str, type] = {
    "prepare": PrepareConfig,
    "embed": EmbedConfig,
    "augment": AugmentConfig,
    "profile": ProfileConfig,
    "llm": LLMConfig,
    "recommend": RecommendConfig,
    "tune": TuneConfig,
    "experiment": ExperimentConfig,
}


@dataclass(frozen=True)
class Settings:
    """Everything a run needs, checked."""

    dataset: str
    """Name of the data set: folder and file names under ``data_path``, and ``dataset_configs/NAME.yaml``."""
    data_path: Path = Path("atomic_files")
    runs_path: Path = Path("runs")
    model: str = DEFAULT
    """The model of the stages ``train`` and ``recommend``."""
    models: tuple[str, ...] = ("GRU4Rec", "BERT4Rec", "SASRec", DEFAULT)
    """The rows of ``compare``."""
    model_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keys for one model only, for example ``{SASRec: {learning_rate: 0.002}}``."""
    variants: Any = None
    """The rows of ``ablate``: names of table 3, or a mapping of names to keys; none is all of table 3."""
    seeds: tuple[int, ...] = (42, 44, 46)
    """Of the trainings of ``ablate`` and ``experiment`` (paper: 42, 44, 46)."""
    candidates: str = "domain"
    """Who competes with the target: ``domain``, ``all`` or ``sampled-N`` (the paper: sampled-100)."""
    seen_items: str = "auto"
    """Whether a user's own earlier items compete with the target: ``masked`` or ``ranked``; ``auto`` masks them where
    no training row repeats an earlier (user, item) pair."""
    domains: tuple[str, str] | None = None
    """Names of domain A and B in order; by default in order of the ``.item`` file."""
    k_core: int = 0
    """Drop items and (user, domain) parts with fewer interactions, per domain, to a fixed point; 0 keeps all."""
    prepare: PrepareConfig = PrepareConfig()
    embed: EmbedConfig = EmbedConfig()
    augment: AugmentConfig = AugmentConfig()
    profile: ProfileConfig = ProfileConfig()
    llm: LLMConfig = LLMConfig()
    recommend: RecommendConfig = RecommendConfig()
    tune: TuneConfig = TuneConfig()
    experiment: ExperimentConfig = ExperimentConfig()
    recbole: dict[str, Any] = field(default_factory=dict)
    """RecBole's own keys and the models' hyper-parameters, for every model alike."""
    command: str = ""
    """The command line that was given, for the report."""
    given: dict[str, Any] = field(default_factory=dict)
    """All keys as they were given, nested; a variant starts from them."""
    data_variant: str = ""
    """Ending of the augmented data set's name, for a variant with rows or profiles of its own."""
    pipelines: tuple[str, ...] = (SRA,)
    """Kinds of profiles to write, those of the methods to train; the first is ``profile.pipeline``."""

    @property
    def folder(self) -> Path:
        """The data set's atomic files."""
        return self.data_path / self.dataset

    @property
    def augmented(self) -> str:
        """Name of the augmented data set."""
        return f"{self.dataset}-edt" + (f"-{self.data_variant}" if self.data_variant else "")

    @property
    def profile_kinds(self) -> list[ProfileConfig]:
        """How each kind of profiles is written."""
        return [replace(self.profile, pipeline=pipeline) for pipeline in self.pipelines]

    @property
    def embedding(self) -> LLMConfig:
        """How the embedding endpoint is asked: as the LLM, but for what the group ``embed`` says.

        The LLM's key goes to no other server than the LLM's.
        """
        url = self.llm.base_url if self.embed.base_url is None else self.embed.base_url
        shared = self.llm.api_key_env if is_same_server(url, self.llm.base_url) else None
        return replace(
            self.llm, model=self.embed.model, base_url=url, api_key_env=self.embed.api_key_env or shared
        )


OWN = {f.name for f in fields(Settings)} - {"recbole", "command", "given", "data_variant", "pipelines"}


def load_settings(
    dataset: str,
    config_files: Iterable[Path] = (),
    overrides: Mapping[str, Any] | None = None,
    asks: bool = True,
) -> Settings:
    """Settings from ``dataset_configs/NAME.yaml`` if there is one, then the files in order, then ``overrides``.

    Args:
        overrides: keys as on the command line; ``augment.tau`` reaches into a group.
        asks: whether a language model may be asked, so that one must be named.

    Raises: ConfigError listing every unknown key and every value of another type or out of range.
    """
    _check_name(dataset)
    own = own_file(dataset)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in [*([own] if own.is_file() else []), *config_files]:
        _add(values, read_file(path), origin, str(path))
    for key, value in (overrides or {}).items():
        _add(values, _nested(key, value), origin, "command line")
    named = values.setdefault("dataset", dataset)
    if named != dataset:
        raise ConfigError(
            f"{origin['dataset']}: dataset: {named!r}, but this run is for {dataset!r}; "
            "the data set is named on the command line alone: --dataset=NAME"
        )
    return _settings(values, origin, asks)


def topk_of(settings: Settings) -> list[int]:
    """The cut-offs of metrics."""
    return as_list(settings.recbole.get("topk", RUN_DEFAULTS["topk"]))


def own_file(dataset: str) -> Path:
    """The data set's configuration, which need not be there."""
    return Path("dataset_configs") / f"{dataset}.yaml"


def with_keys(settings: Settings, keys: Mapping[str, Any], where: str) -> Settings:
    """The settings with some keys given anew, written as on the command line.

    Raises: ConfigError that names ``where`` as their origin.
    """
    values = copy.deepcopy(settings.given)
    origin: dict[str, str] = {}
    for key, value in keys.items():
        _add(values, _nested(key, value), origin, where)
    return replace(_settings(values, origin), command=settings.command)


def _check_name(dataset: str) -> None:
    if not re.fullmatch(r"[\w.-]+", dataset) or dataset.startswith("."):
        raise ConfigError(f"dataset: {dataset!r} is not a plain name (letters, digits, '-', '_', '.')")
    if dataset == "ml-100k":
        raise ConfigError(
            "dataset: RecBole always reads 'ml-100k' from its own folder; give your data another name "
            "(its films in two domains are 'ml-100k-cross')"
        )


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: _nested(rest, value)} if rest else {head: value}


def _add(values: dict[str, Any], new: Mapping[str, Any], origin: dict[str, str], where: str) -> None:
    """Merge keys into ``values``, which they overrule, and note where they came from."""
    try:
        _merge(values, new, origin, where)
    except RecursionError:
        raise ConfigError(f"{where}: {TOO_DEEP}") from None


def _merge(
    values: dict[str, Any], new: Mapping[str, Any], origin: dict[str, str], where: str, prefix: str = ""
) -> None:
    for key, value in new.items():
        name = f"{prefix}{key}"
        origin[name] = where
        if isinstance(value, Mapping):
            if not isinstance(values.get(key), dict):
                values[key] = {}
            _merge(values[key], value, origin, where, f"{name}.")
        else:
            values[key] = value


def _origin(key: str, origin: Mapping[str, str]) -> str:
    """Where a key, or the nearest one above it, was set."""
    while key and key not in origin:
        key = key.rpartition(".")[0]
    return origin.get(key, "configuration")


def _settings(values: dict[str, Any], origin: Mapping[str, str], asks: bool = True) -> Settings:
    faults: list[str] = []
    given = copy.deepcopy(values)

    def fault(key: str, message: str) -> None:
        faults.append(f"{_origin(key, origin)}: {message}")

    kwargs: dict[str, Any] = {"recbole": {}}
    for key, value in values.items():
        if key in GROUPS:
            kwargs[key] = _group(key, GROUPS[key], value, fault)
        elif key in OWN:
            kwargs[key] = value
        else:
            kwargs["recbole"][key] = value
    _check_own(kwargs, fault)
    _check_generators(kwargs, fault, asks)
    _check_models(kwargs, fault)
    examples = examples_of([*kwargs["models"], kwargs.get("model"), *METHODS])
    check_values("", kwargs["recbole"], examples, fault, (*OWN, *GROUPS))
    _check_profiles(values, fault)
    for model, own in kwargs.get("model_settings", {}).items():
        known = examples_of([model])
        shared = {} if model in METHODS else {key: examples[key] for key in examples.keys() - keys_of_others(model)}
        for key in [one for one in own if one in {*OWN, *GROUPS, "topk", "metrics"}]:  # in the order they were given
            fault(f"model_settings.{model}.{key}", f"model_settings.{model}.{key}: {key} is one for all models")
            del own[key]
        check_values(f"model_settings.{model}.", own, {**shared, **known}, fault)
    _check_valid_metrics(kwargs, fault)
    if not faults:
        _check_methods(kwargs, fault)
        _check_embedding_key(kwargs, fault, asks)
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return _with_pipelines(Settings(**kwargs, given=given))


def _with_pipelines(settings: Settings) -> Settings:
    """The settings with the kinds of profiles that their methods need; the first is ``profile.pipeline``."""
    given = settings.given
    models = [settings.model] if "model" in given else []
    # LLM-EDT's before other methods': "profile", beside which the paper's cost stands, is then its own.
    others = settings.models if "models" in given or not models else []
    models += sorted(others, key=lambda model: model != DEFAULT)
    methods = [model for model in models if model in METHODS]
    kinds = [profiles_of(settings, model) for model in methods] or [settings.profile.pipeline]
    kinds = [kind for kind in dict.fromkeys(kinds) if kind != NO_PROFILES]
    first = kinds[0] if kinds else settings.profile.pipeline
    return replace(settings, pipelines=tuple(kinds), profile=replace(settings.profile, pipeline=first))


def profiles_of(settings: Settings, model: str) -> str:
    """The kind of profiles that a method reads: that of its key ``profiles``, of ``profile.pipeline``, or its own."""
    if METHODS[model].profiles == NO_PROFILES:
        return NO_PROFILES
    chosen = {**settings.recbole, **(settings.model_settings.get(model) or {})}.get("profiles")
    given = "pipeline" in (settings.given.get("profile") or {})
    return chosen or (settings.profile.pipeline if given else METHODS[model].profiles)


def _group(name: str, cls: type, value: Any, fault: Fault) -> Any:
    if not isinstance(value, Mapping | None):
        fault(name, f"{name}: expected keys below it, found {value!r}")
        return cls()
    allowed = {f.name for f in fields(cls)}
    given = value or {}
    for key in [one for one in given if one not in allowed]:
        fault(f"{name}.{key}", unknown(f"{name}.{key}", {f"{name}.{one}" for one in allowed}))
    group = cls(**{key: one for key, one in given.items() if key in allowed})
    for message in group.faults():
        fault(f"{name}.{message.partition(':')[0]}", f"{name}.{message}")
    return group


def _check_generators(kwargs: Mapping[str, Any], fault: Fault, asks: bool) -> None:
    """Whether groups say enough for what other groups want."""
    groups = {name: kwargs.get(name) or cls() for name, cls in GROUPS.items()}
    asking = [name for name in ("augment", "profile") if groups[name].generator == "llm"]
    if asks and asking and not groups["llm"].model:
        fault("llm", f"llm.model: {asking[0]}.generator is 'llm', which needs the name of a model")
    if "augment" in asking and groups["embed"].vectors and groups["embed"].embedder != ENDPOINT:
        fault(
            "embed.vectors",
            "embed.vectors: items that an LLM writes need vectors of the same model as yours; name it with "
            "embed.embedder: endpoint and embed.model, or leave your vectors out",
        )


def _check_embedding_key(kwargs: Mapping[str, Any], fault: Fault, asks: bool) -> None:
    """Whether it is said which key another server than the LLM's gets; one nearby may need none."""
    embed, llm = kwargs.get("embed") or EmbedConfig(), kwargs.get("llm") or LLMConfig()
    if not asks or embed.embedder != ENDPOINT or embed.api_key_env or embed.base_url is None:
        return
    if not is_same_server(embed.base_url, llm.base_url) and not is_near(embed.base_url):
        fault(
            "embed.base_url",
            "embed.api_key_env: embed.base_url is another server than llm.base_url, whose key goes nowhere else; name "
            "the environment variable with its own key (an empty one, if it needs none)",
        )


def _check_own(kwargs: dict[str, Any], fault: Fault) -> None:
    for key in ("data_path", "runs_path"):
        if key in kwargs:
            if not isinstance(kwargs[key], str | Path) or not str(kwargs[key]):
                fault(key, f"{key}: {kwargs[key]!r} is not a folder")
            kwargs[key] = Path(str(kwargs[key]))
    candidates = str(kwargs.get("candidates", "domain"))
    if not re.fullmatch(r"domain|all|sampled-[1-9]\d*", candidates):
        fault("candidates", f"candidates: {candidates!r} is not one of domain, all, sampled-N")
    if (seen := kwargs.get("seen_items", "auto")) not in ("auto", "masked", "ranked"):
        fault("seen_items", f"seen_items: {seen!r} is not one of auto, masked, ranked")
    domains = kwargs.get("domains")
    if domains is not None:
        if OVERALL in as_list(domains):
            fault("domains", f"domains: {OVERALL!r} is the name for all users in every table; give the domain another")
        if isinstance(domains, list | tuple) and len(set(map(str, domains))) == 2 == len(domains):
            kwargs["domains"] = tuple(map(str, domains))
        else:
            fault("domains", f"domains: expected two names such as [food, kitchen], found {domains!r}")
    seeds = kwargs.get("seeds", Settings.seeds)
    seeds = [read_yaml(one) for one in seeds.replace(",", " ").split()] if isinstance(seeds, str) else as_list(seeds)
    if not seeds or not all(is_whole(seed) and 0 <= seed < 2**32 for seed in seeds) or len(set(seeds)) < len(seeds):
        fault("seeds", f"seeds: expected different whole numbers such as [42, 44, 46], found {kwargs.get('seeds')!r}")
    kwargs["seeds"] = tuple(seeds)
    k_core = kwargs.get("k_core", 0)
    if not is_whole(k_core) or k_core < 0:
        fault("k_core", f"k_core: {k_core!r} is not a whole number of at least 0")


def _check_models(kwargs: dict[str, Any], fault: Fault) -> None:
    """Names in ``models``, ``model`` and ``model_settings``; leaves only what the later checks can read."""
    models = kwargs.get("models", Settings.models)
    models = models.replace(",", " ").split() if isinstance(models, str) else models
    if not isinstance(models, list | tuple) or not models:
        fault("models", f"models: expected names such as [SASRec, {DEFAULT}], found {models!r}")
        models = Settings.models
    for place, model in enumerate(models):
        _check_model_name("models", model, fault)
        if model in models[:place]:
            fault("models", f"models: '{model}' is there more than once")
    _check_model_name("model", kwargs.get("model", DEFAULT), fault)
    own = kwargs.get("model_settings") or {}
    if not isinstance(own, Mapping):
        fault("model_settings", f"model_settings: expected models below it, found {own!r}")
        own = {}
    for model, values in own.items():
        _check_model_name(f"model_settings.{model}", model, fault)
        if not isinstance(values, Mapping | None):
            fault(f"model_settings.{model}", f"model_settings.{model}: expected keys below it, found {values!r}")
    kwargs["models"] = tuple(model for model in models if is_model(model))
    kwargs["model_settings"] = {m: dict(v or {}) for m, v in own.items() if isinstance(v, Mapping | None)}


def _check_model_name(key: str, model: Any, fault: Fault) -> None:
    if not is_model(model):
        fault(key, f"{key}: unknown model '{model}'{near_model(model)}")


def _check_valid_metrics(kwargs: Mapping[str, Any], fault: Fault) -> None:
    """Whether what is validated by is measured, of all models and of each with one of its own."""
    shared = {**RUN_DEFAULTS, **kwargs["recbole"]}
    if topk_problem(shared["topk"], {}):
        return
    topk = as_list(shared["topk"])
    found = {"valid_metric": shared["valid_metric"]}
    for model, own in kwargs["model_settings"].items():
        found |= {f"model_settings.{model}.{key}": value for key, value in own.items() if key == "valid_metric"}
    for name, value in found.items():
        metric, _, k = str(value).lower().partition("@")
        if metric not in METRICS or k not in map(str, topk):
            said = f"is not Hit, NDCG or MRR at one of topk, {topk}, such as 'NDCG@{topk[0]}'"
            by_topk = name == "valid_metric" and name not in kwargs["recbole"]
            fault("topk" if by_topk else name, f"{name}: {value!r} {said}")


def _check_profiles(values: Mapping[str, Any], fault: Fault) -> None:
    """A kind of profiles to write that no method would read, since all are told to read another, is a fault."""
    group, read = values.get("profile"), values.get("profiles")
    written = group.get("pipeline") if isinstance(group, Mapping) else None
    if read is not None and written is not None and read != written:
        said = f"{written!r} does nothing beside profiles: {read}; give one of the two"
        fault("profile.pipeline", f"profile.pipeline: {said}")


def _check_methods(kwargs: Mapping[str, Any], fault: Fault) -> None:
    """What the methods to train say about their keys."""
    for model in dict.fromkeys([DEFAULT, kwargs.get("model"), *kwargs["models"], *kwargs["model_settings"]]):
        if model not in METHODS:
            continue
        shared, own = kwargs["recbole"], kwargs["model_settings"].get(model, {})
        values = values_of(model, shared, own)
        for message in METHODS[model].faults(values):
            key, _, said = message.partition(":")
            name = f"model_settings.{model}.{key}" if key in own else key
            fault(name, f"{name}:{said}")
        for key in shared.keys() & own.keys():
            # Overruled here, and yet wrong for every model: by itself, and among the values that count.
            alone, among = (METHODS[model].faults({**one, key: shared[key]}) for one in ({}, values))
            for message in set(alone) & set(among):
                fault(key, message)


def default_of(model: str, key: str) -> Any:
    """The default of a key as its group, RecBole or a method writes it; None if there is none."""
    group, _, name = key.partition(".")
    if group in GROUPS:
        return getattr(GROUPS[group](), name)
    own = hyper_parameters(model) if model in METHODS else written(model)
    return {**read_file(properties() / "overall.yaml"), **RUN_DEFAULTS, **own}.get(key)


def overruled(settings: Settings, given: Collection[str], models: Iterable[str]) -> list[str]:
    """A note for every key ``given`` for all models that does not count for one of ``models``, which has its own."""
    notes = []
    for model in models:
        own = settings.model_settings.get(model) or {}
        for key in given:
            loses = key in own and key in settings.recbole and own[key] != settings.recbole[key]
            if loses and f"model_settings.{model}.{key}" not in given:
                notes.append(
                    f"note: --{key}={settings.recbole[key]} does not count for {model}, whose own is {own[key]}: "
                    f"give --model_settings.{model}.{key}"
                )
    return notes


BEST_OF = "best of {} trials per model, chosen on validation"


def budget_note(settings: Settings, models: Sequence[str]) -> str:
    """How the hyper-parameters of these models were found, for the note of a table."""
    tuned = [model for model in models if model in (settings.tune.tuned or [])]
    if not tuned:
        return "Hyper-parameters: as given, no search."
    others = [model for model in models if model not in tuned]
    note = f"Hyper-parameters: {BEST_OF.format(settings.tune.trials)}"
    return f"{note} ({', '.join(tuned)}); as given: {', '.join(others)}." if others else f"{note}."
