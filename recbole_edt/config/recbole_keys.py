"""Whether a value fits its key: of the type of the default, in range, and supported here."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recbole.utils import argument_list

from recbole_edt import compat
from recbole_edt.errors import ConfigError, is_whole, kind_of, same_kind
from recbole_edt.files import read_file
from recbole_edt.models.registry import METHODS
from recbole_edt.profile.settings import PIPELINES

# Sizes and rates by name, bounds included; the type of a key is that of its default.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "finetune_epochs", "stopping_step", "finetune_stopping_step"), (0, math.inf)),
    **dict.fromkeys(("train_batch_size", "eval_batch_size", "eval_step", "MAX_ITEM_LIST_LENGTH"), (1, math.inf)),
    **dict.fromkeys(("hidden_size", "inner_size", "embedding_size"), (1, math.inf)),
    **dict.fromkeys(("n_layers", "n_heads", "num_layers", "block_num", "kernel_size"), (1, math.inf)),
    **dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "dropout_prob", "adapter_dropout"), (0, 1)),
    **dict.fromkeys(("mask_ratio", "ft_ratio"), (0, 1)),
    "learning_rate": (0, 1e3),
    "finetune_learning_rate": (1e-12, 1e3),
    **dict.fromkeys(("worker", "initializer_range", "loss_decimal_place", "metric_decimal_place"), (0, math.inf)),
    "weight_decay": (0, math.inf),
    "seed": (0, 2**32 - 1),
}

# RecBole takes Adam for every other, and says so in its log alone.
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")

# RecBole's keys that would change rows or columns behind the back of the stages before training, or do nothing.
FIXED = {
    **dict.fromkeys(
        (
            "rm_dup_inter",
            "val_interval",
            "filter_inter_by_user_or_item",
            "user_inter_num_interval",
            "item_inter_num_interval",
        ),
        "rows are filtered by k_core alone, so that every stage sees the same split",
    ),
    **dict.fromkeys(
        ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "field_separator"),
        "the columns are user_id, item_id and timestamp, separated by tabs; convert the files",
    ),
    **dict.fromkeys(
        (
            *("normalize_field", "normalize_all", "discretization", "threshold", "preload_weight"),
            *("load_col", "unload_col", "additional_feat_suffix"),
        ),
        "no column but the ids and the order in time reaches a model",
    ),
    "metrics": "hit, NDCG and MRR are always measured; choose their cut-offs by topk",
    "benchmark_filename": "the split is made here: leave-one-out in time",
    "repeatable": "an item may be met again",
    "checkpoint_dir": "weights lie in the folder of their run, below runs_path",
}

Fault = Callable[[str, str], None]


def unknown(key: Any, known: Iterable[str]) -> str:
    """That nobody knows a key, with the nearest of those that are known."""
    near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.6)
    return f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else "")


def check_values(
    prefix: str, values: Mapping[str, Any], examples: Mapping[str, list[Any]], fault: Fault, others: Iterable[str] = ()
) -> None:
    """RecBole's keys and the models': known, of the type of a default, in range.

    Args:
        examples: the defaults of each key that is known.
        fault: is told the key and what is wrong.
        others: keys that a mistyped one may stand for, too.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in examples:
            fault(name, unknown(name, {f"{prefix}{one}" for one in {*examples, *others}}))
        elif key in FIXED and value not in examples[key]:
            fault(name, f"{name}: {value!r} is not supported here: {FIXED[key]}")
        elif problem := SPECIAL[key](value, values) if key in SPECIAL else _problem(key, value, examples[key]):
            fault(name, f"{name}: {problem}")


def _problem(key: str, value: Any, examples: list[Any]) -> str | None:
    """What is wrong with a value, by RecBole's own default and by the key's range."""
    if None not in examples and not any(same_kind(value, example) for example in examples):
        return f"{value!r} is not {kind_of(examples[0])}"
    low, high = RANGES.get(key, (-math.inf, math.inf))
    if isinstance(value, int | float) and not (low <= value <= high and math.isfinite(value)):
        least = f" of at least {low}" if low > -math.inf else " that is finite"
        return f"{value!r} is not a number{least}" + (f" and at most {high}" if high < math.inf else "")
    return None


def topk_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    """What is wrong with a list of cut-offs; None if nothing is."""
    if all(is_whole(k) and k > 0 for k in as_list(value)) and value != []:
        return None
    return f"{value!r} is not a list of whole numbers above 0"


def _eval_args_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    fixed = RUN_DEFAULTS["eval_args"]
    if isinstance(value, Mapping) and all(fixed.get(key) == one for key, one in value.items()):
        return None
    return f"fixed to {fixed}; who is ranked is chosen by the key 'candidates'"


def _one_of(*known: str) -> Callable[[Any, Mapping[str, Any]], str | None]:
    return lambda value, values: None if value in known else f"{value!r} is not one of {', '.join(known)}"


def _learner_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    return None if str(value).lower() in LEARNERS else f"{value!r} is not one of {', '.join(LEARNERS)}"


def _gpu_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    return None if re.fullmatch(r"[\d, ]*", str(value)) else f"{value!r} is not a list of numbers such as 0 or '0,1'"


def _negatives_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    known = ("uniform", "popularity")
    if value is None or (isinstance(value, Mapping) and value.get("distribution", known[0]) in known):
        return None
    return f"{value!r} is not a mapping such as {{distribution: uniform, sample_num: 1}}, uniform or popularity"


def _clip_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    keys = set(value) if isinstance(value, Mapping) else set()
    fits = {"max_norm"} <= keys <= {"max_norm", "norm_type"} and all(same_kind(one, 1.0) for one in value.values())
    return None if value is None or fits else f"{value!r} is not a mapping such as {{max_norm: 5, norm_type: 2}}"


def _dropouts_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    if len(as_list(value)) > 1 and all(same_kind(one, 1.0) and 0 <= one <= 1 for one in value):
        return None
    return f"{value!r} is not a list of two numbers of at least 0 and at most 1"


def _file_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    return None if isinstance(value, str | None) else f"{value!r} is not the path of a file"


def _wandb_problem(value: Any, values: Mapping[str, Any]) -> str | None:
    if not isinstance(value, bool):
        return f"{value!r} is not true or false"
    return "needs a package that is not here: pip install wandb" if value and not find_spec("wandb") else None


SPECIAL: dict[str, Callable[[Any, Mapping[str, Any]], str | None]] = {
    "topk": topk_problem,
    "dilations": topk_problem,
    "eval_args": _eval_args_problem,
    "training": _one_of("sequence", "prefix"),
    "profiles": _one_of(*PIPELINES),
    "hidden_act": _one_of("gelu", "relu", "swish", "tanh", "sigmoid"),
    "learner": _learner_problem,
    "train_neg_sample_args": _negatives_problem,
    "clip_grad_norm": _clip_problem,
    "dropout_probs": _dropouts_problem,
    "item_embeddings": _file_problem,
    "user_profiles": _file_problem,
    "log_wandb": _wandb_problem,
    "gpu_id": _gpu_problem,
}


def as_list(value: Any) -> list[Any]:
    """A list of what is one already, or of one value."""
    return list(value) if isinstance(value, list | tuple) else [value]

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
    from recbole_edt.models.parts.backbones import BACKBONES

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
    from recbole_edt.models.parts.backbones import PRE_NORM

    foreign = keys_of_others(model)
    values = {**{key: value for key, value in shared.items() if key not in foreign}, **own}
    if model in METHODS and "norm_first" not in own:
        backbone = values.get("backbone", METHODS[model].defaults()["backbone"])
        if backbone not in PRE_NORM:
            values.pop("norm_first", None)
    return values
