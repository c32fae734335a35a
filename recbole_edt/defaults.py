"""What models there are, RecBole's and ours, and the default of every key that they understand."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recbole.utils import argument_list

from recbole_edt import compat
from recbole_edt.errors import ConfigError, is_whole
from recbole_edt.methods import METHODS
from recbole_edt.plain_yaml import read_file

# Keys of EDTDataset, for RecBole's comparison of cached data sets.
DATASET_KEYS = (
    "domains",
    "k_core",
    "use_generated",
    "training",
    "inserted_as_targets",
    "item_embeddings",
    "user_profiles",
    "profiles",
)

# Models that baselines.py trains by whole sequences.
SEQUENCE_MODELS = ("SASRec", "GRU4Rec", "BERT4Rec")

# Ours instead of RecBole's defaults, for every model alike.
RUN_DEFAULTS: dict[str, Any] = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "metrics": ["Hit", "NDCG", "MRR"],
    "topk": [5, 10, 20],
    "valid_metric": "NDCG@10",
    "show_progress": False,
    "seed": 42,
    "epochs": 300,
    "stopping_step": 20,
    "train_batch_size": 512,
    "eval_batch_size": 512,
    "training": "sequence",
    "inserted_as_targets": True,
    "metric_decimal_place": 6,
    "compile": False,
}


def properties() -> Path:
    """Folder of RecBole's property files.

    Raises: ConfigError if RecBole is not there.
    """
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        compat.check()
        raise ConfigError("RecBole cannot be found")
    return Path(spec.submodule_search_locations[0]) / "properties"


def hyper_parameters(model: str) -> dict[str, Any]:
    """Hyper-parameters of one model: those in its RecBole property file, or a method's own and its backbones'."""
    from recbole_edt.backbones import BACKBONES

    if model in METHODS:
        backbones = [hyper_parameters(backbone) for backbone in BACKBONES]
        return {key: value for one in [*backbones, METHODS[model].defaults()] for key, value in one.items()}
    values = written(model)
    if model in BACKBONES:
        return values
    # Elsewhere RecBole writes 1 for 1.0.
    return {key: float(value) if is_whole(value) else value for key, value in values.items()}


def written(model: str) -> dict[str, Any]:
    """RecBole's property file of one of its models."""
    path = properties() / "model" / f"{model}.yaml"
    return read_file(path) if path.is_file() else {}


def defaults_of(model: str, backbone: str = "") -> dict[str, Any]:
    """Hyper-parameters of one model; of a method those of the chosen backbone and its own."""
    if model not in METHODS:
        return hyper_parameters(model)
    own = METHODS[model].defaults()
    return {**hyper_parameters(backbone or str(own["backbone"])), **own}


def examples_of(models: Iterable[Any]) -> dict[str, list[Any]]:
    """Every key that RecBole or one of ``models`` understands, with its defaults."""
    arguments = (
        argument_list.general_arguments,
        argument_list.training_arguments,
        argument_list.evaluation_arguments,
        argument_list.dataset_arguments,
    )
    free = dict.fromkeys([*DATASET_KEYS, *(key for keys in arguments for key in keys)])
    files = [read_file(properties() / f"{name}.yaml") for name in ("overall", "dataset/sample")]
    general = {key: value for one in [free, *files, RUN_DEFAULTS] for key, value in one.items()}
    general["use_generated"] = True
    found: dict[str, list[Any]] = {}
    for one in [general, *map(hyper_parameters, dict.fromkeys(filter(is_model, models)))]:
        for key, value in one.items():
            found.setdefault(key, []).append(value)
    return found


def is_model(name: Any) -> bool:
    """Whether RecBole or this library has a model of this name."""
    return isinstance(name, str) and name in _model_names()


def _model_names() -> list[str]:
    return [*sorted(path.stem for path in (properties() / "model").glob("*.yaml")), *METHODS]


def near_model(name: str) -> str:
    """A hint for a mistyped model name."""
    names = {n.lower(): n for n in _model_names()}
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    return f" (did you mean '{names[near[0]]}'?)" if near else ""


SHARED_WITH_BASELINES = ("norm_first", "n_negatives")
"""Keys of the methods that `SEQUENCE_MODELS` have here, too."""


@cache
def keys_of_others(model: str) -> frozenset[str]:
    """Keys that are those of methods alone, and not of this model."""
    known = {*hyper_parameters(model), *(SHARED_WITH_BASELINES if model in SEQUENCE_MODELS else ())}
    known |= {"profiles"} if model in METHODS else set()
    return frozenset(("profiles", *(key for method in METHODS.values() for key in method.defaults()))) - known


def values_of(model: str, shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one model: of those for all the ones that it knows, then its own.

    A key that only other models know would name another run of the same numbers. So would ``norm_first`` for all
    models, where the backbone of this one has no layers to normalise.
    """
    from recbole_edt.backbones import PRE_NORM

    foreign = keys_of_others(model)
    values = {**{key: value for key, value in shared.items() if key not in foreign}, **own}
    if model in METHODS and "norm_first" not in own:
        backbone = values.get("backbone", METHODS[model].defaults()["backbone"])
        if backbone not in PRE_NORM:
            values.pop("norm_first", None)
    return values
