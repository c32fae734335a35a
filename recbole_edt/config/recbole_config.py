"""One model's settings: whether they fit together, and RecBole's ``Config`` of them without its traps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.utils import ModelType, get_model

from recbole_edt import compat
from recbole_edt.config.recbole_keys import RUN_DEFAULTS, SEQUENCE_MODELS, hyper_parameters, values_of
from recbole_edt.config.settings import Settings, profiles_of
from recbole_edt.errors import ConfigError
from recbole_edt.models.registry import METHODS, model_class

# Models that need item features, a knowledge graph, a library that is not here, or training in several stages.
NEED_MORE = ("NCL", "DIEN", "DIN", "FDSA", "FEARec", "GRU4RecF", "GRU4RecKG", "KSR", "S3Rec", "SASRecF", "RaCT")


def check_model(settings: Settings, model: str) -> None:
    """What RecBole's own models would only find out when they are built.

    Raises: ConfigError if the settings of one model do not fit together.
    """
    if model not in METHODS:
        _check_needs(model)
    values = {**hyper_parameters(model), **model_values(settings, model)}
    if model in SEQUENCE_MODELS:
        _check_loss(model, values)
    if values.get("norm_first"):
        _check_norm_first(settings, model, values)
    if values.get("train_neg_sample_args"):
        _check_negatives(model, values)
    if values.get("shuffle") is False and by_sequence(model, values.get("training")):
        raise ConfigError(
            f"{model}: shuffle: false does nothing: whole sequences are always shuffled; for other models alone it "
            "goes under model_settings.MODEL"
        )
    transformer = values["backbone"] if model in METHODS else model
    heads = values["n_heads"] if "n_heads" in hyper_parameters(transformer) else 1
    if values.get("hidden_size", 0) % heads:
        raise ConfigError(f"{model}: hidden_size: {values['hidden_size']} is not a multiple of n_heads, {heads}")


def _check_loss(model: str, values: Mapping[str, Any]) -> None:
    """BERT4Rec and rows of prefixes have RecBole's losses alone."""
    ours = by_sequence(model, values.get("training")) and model != "BERT4Rec"
    known = ("BPR", "CE", "BCE", "SSM") if ours else ("BPR", "CE")
    if values["loss_type"] not in known:
        raise ConfigError(
            f"{model}: loss_type: {values['loss_type']!r} is not one of {', '.join(known)}; "
            "a loss for one model alone goes under model_settings.MODEL"
        )


def _check_norm_first(settings: Settings, model: str, values: Mapping[str, Any]) -> None:
    """Refuses the key where it would do nothing."""
    from recbole_edt.models.parts.backbones import PRE_NORM

    if model in PRE_NORM and values.get("training") == "prefix":
        raise ConfigError(f"{model}: norm_first needs training: sequence; by prefix the model is RecBole's own")
    known = [*PRE_NORM, *METHODS]
    if model not in known and "norm_first" in (settings.model_settings.get(model) or {}):
        raise ConfigError(f"{model}: norm_first is for {', '.join(known[:-1])} and {known[-1]}")


def _check_negatives(model: str, values: Mapping[str, Any]) -> None:
    """Refuses RecBole's sampler where the loss draws negatives itself, or has none."""
    if by_sequence(model, values.get("training")):
        reason = "its loss draws its own negatives, if it has any"
    elif values.get("loss_type") == "CE":
        reason = "with loss_type CE it has none"
    else:
        return
    raise ConfigError(
        f"{model}: train_neg_sample_args does nothing: {reason}; for other models alone it goes under "
        "model_settings.MODEL"
    )


def _check_needs(model: str) -> None:
    """Whether users, items and time are all that a model of RecBole trains on."""
    try:
        kind = get_model(model).type
    except ImportError as error:
        raise ConfigError(f"{model}: {error}; install it, or choose another model") from None
    if model in NEED_MORE or kind not in (ModelType.GENERAL, ModelType.TRADITIONAL, ModelType.SEQUENTIAL):
        raise ConfigError(
            f"{model} needs more than interactions, such as features, a knowledge graph or a further library; "
            "choose a general or sequential model, such as BPR or SASRec"
        )


def by_sequence(model: str, training: str | None) -> bool:
    """Whether a model trains on whole sequences, under a value of ``training`` (None is the default)."""
    return model in METHODS or (model in SEQUENCE_MODELS and (training or RUN_DEFAULTS["training"]) == "sequence")


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
        if model in METHODS:
            self.internal_config_dict.update(METHODS[model].recbole)
        if model_class.type != ModelType.SEQUENTIAL:
            return
        merged = {**self.internal_config_dict, **self.external_config_dict}
        whole = by_sequence(model, merged["training"])
        if whole or merged.get("loss_type") == "CE":
            # Negatives are drawn by the loss, if at all; RecBole refuses CE with a sampler.
            self.internal_config_dict["train_neg_sample_args"] = None
        if whole:
            self.internal_config_dict["transform"] = None  # BERT4Rec masks inside its loss


def model_values(settings: Settings, model: str) -> dict[str, Any]:
    """The settings of one model, as `defaults.values_of`; for a method which profiles it reads, if not its own."""
    values = values_of(model, settings.recbole, settings.model_settings.get(model) or {})
    if model in METHODS and profiles_of(settings, model) != METHODS[model].profiles:
        values["profiles"] = profiles_of(settings, model)
    return values


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
    if values.get("train_neg_sample_args", {}) is None:
        del values["train_neg_sample_args"]  # a model without negatives has none by itself; others need them
    if values.get("use_gpu") is False:
        values["gpu_id"] = ""  # RecBole picks its device by gpu_id alone
    return EDTConfig(model_class(model) if model in METHODS else model, dataset, config_dict=values)
