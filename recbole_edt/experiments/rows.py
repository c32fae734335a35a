"""The rows of each study: a model under some keys."""

from __future__ import annotations

from typing import Any

from recbole_edt.config.recbole_config import model_values
from recbole_edt.config.settings import Settings, with_keys
from recbole_edt.errors import ConfigError
from recbole_edt.experiments import ablation
from recbole_edt.experiments.trials import Row
from recbole_edt.models.registry import METHODS

LLM_EDT = "LLM-EDT"
BASELINES = ("Pop", "GRU4Rec", "BERT4Rec", "SASRec")
NO_PARTS: dict[str, Any] = {"use_generated": False, "alpha": 0, "finetune_epochs": 0}
"""LLM-EDT without its three parts: its backbone on item texts."""
FROM_TEXT: dict[str, Any] = {**NO_PARTS, "item_representation": "id", "item_ids": "pca"}
"""Its backbone on ids that start from the texts and never read them again."""
WITHOUT = {"augment.insertion": "none"}
QUANTILES = ("q0.10", "q0.50", "q0.90")
THRESHOLDS = (0.85, 0.9, 0.95)
"""The paper's, for tau given as a cosine."""
CLUSTERS = (5, 10, 15)
ALPHAS = (0.1, 0.3, 0.5, 0.7, 1.0)
SHARES = (0.3, 0.6, 1.0)


def _other_methods() -> list[str]:
    return [name for name in METHODS if name != "LLMEDT"]


def baselines(settings: Settings) -> list[Row]:
    """All models of table 2: those of ``models`` if it was given, else every baseline and method known here."""
    if "models" in settings.given:
        names = settings.models
    else:
        names = (*BASELINES, *_other_methods(), "LLMEDT")
    rows = [Row(METHODS[name].title if name in METHODS else name, name) for name in names if name != "LLMEDT"]
    if "LLMEDT" not in names:
        return rows
    own = model_values(settings, "LLMEDT")
    backbone = own.get("backbone", "SASRec")
    text = {"item_representation": "llm+id"} if own.get("item_representation") == "id" else {}  # ids alone have none
    with_text = [(f"{backbone} from text", FROM_TEXT), (f"{backbone} + text", {**NO_PARTS, **text})]
    return [*rows, *(Row(name, "LLMEDT", keys) for name, keys in with_text), Row(LLM_EDT)]


def variants(settings: Settings) -> list[Row]:
    """Table 3, or the variants that were given."""
    found = ablation.variants_of(with_keys(settings, {"model": "LLMEDT"}, "table 3"))
    return [Row(name, "LLMEDT", keys) for name, keys in found.items()]


def thresholds(settings: Settings) -> list[Row]:
    """Tau as given among the paper's cosines, or among quantiles where a quantile is given."""
    tau = settings.augment.tau
    if isinstance(tau, str):  # q0.5 is q0.50
        others = [one for one in QUANTILES if float(one[1:]) != float(tau[1:])]
        values: list[Any] = sorted([*others, tau], key=lambda one: float(one[1:]))
    else:
        values = sorted({*THRESHOLDS, float(tau)})
    return [Row(f"tau {one}", "LLMEDT", {} if one == tau else {"augment.tau": one}) for one in values]


def cluster_numbers(settings: Settings) -> list[Row]:
    """K of the augmenter, the given one among the paper's."""
    given = settings.augment.n_clusters
    values = sorted({*CLUSTERS, given})
    return [Row(f"K {one}", "LLMEDT", {} if one == given else {"augment.n_clusters": one}) for one in values]


def alphas(settings: Settings) -> list[Row]:
    """The weight of the alignment, the given one among the paper's."""
    given = float(model_values(settings, "LLMEDT").get("alpha", 0.7))
    others = [one for one in ALPHAS if f"{one:g}" != f"{given:g}"]  # a search gives 0.30000000000000004 for 0.3
    values = sorted([*others, given])
    return [Row(f"alpha {one:g}", "LLMEDT", {} if one == given else {"alpha": one}) for one in values]


def shares(settings: Settings) -> list[Row]:
    """The kept items of which only a share goes in."""
    given = settings.augment.injection_ratio
    return [
        Row(f"injected {one:.0%}", "LLMEDT", {} if one == given else {"augment.injection_ratio": one}) for one in SHARES
    ]


def language_models(settings: Settings) -> list[Row]:
    """One row per entry of ``experiment.llms``, items and profiles both written by it.

    Raises: ConfigError if there is none.
    """
    if not settings.experiment.llms:
        raise ConfigError(
            "experiment table8 needs experiment.llms: a name for each language model, and keys of llm below it, "
            "such as {DeepSeek: {model: deepseek-chat, base_url: https://api.deepseek.com}}"
        )
    writes = {"augment.generator": "llm", "profile.generator": "llm"}
    return [
        Row(str(name), "LLMEDT", {**writes, **{f"llm.{key}": value for key, value in keys.items()}})
        for name, keys in settings.experiment.llms.items()
    ]


def backbones(settings: Settings) -> list[Row]:
    """Two more backbones, alone, in LLM-EDT, and in the other methods known here."""
    rows = []
    for backbone, own in {"GRU4Rec": {"norm_first": False}, "BERT4Rec": {}}.items():  # GRU4Rec has no such layers
        rows.append(Row(backbone, backbone))
        for model in (*_other_methods(), "LLMEDT"):
            rows.append(Row(f"{METHODS[model].title} ({backbone})", model, {"backbone": backbone, **own}))
    return rows


def with_and_without(settings: Settings) -> list[Row]:
    """LLM-EDT with and without augmentation."""
    return [Row(LLM_EDT), Row("w/o Aug.", "LLMEDT", WITHOUT)]


def whole(settings: Settings) -> list[Row]:
    """LLM-EDT alone."""
    return [Row(LLM_EDT)]


def no_rows(settings: Settings) -> list[Row]:
    """For studies of data alone."""
    return []
