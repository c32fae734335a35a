"""The files of one run: its settings, its epochs and its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from recbole_edt.config.recbole_keys import defaults_of
from recbole_edt.errors import DataError
from recbole_edt.evaluate import results
from recbole_edt.evaluate.ranking import read_ranks
from recbole_edt.files import faults_of, read_file, read_json
from recbole_edt.models.registry import METHODS, phases_of


def chosen_epochs(run_dir: Path) -> dict[str, int]:
    """Epochs of each phase up to the best validation, by key; a later phase that did not help has none.

    Of equals the last counts, as in RecBole's early stopping. Empty for a model without epochs.
    """
    result, epochs = read_json(run_dir / "result.json"), read_epochs(run_dir)
    metric, always = result["valid_metric"], _keeps_last_phase(result)
    if epochs is None or metric not in epochs:
        return {}
    phases = {phase.name: phase for phase in phases_of(result["model"])}
    best, found = -np.inf, {}
    for phase, rows in epochs.dropna(subset=[metric]).groupby("phase", sort=False):
        top = rows[metric].max()
        n_epochs = int(rows.loc[rows[metric] == top, "epoch"].iloc[-1]) + 1
        found[phases[str(phase)].key("epochs")] = n_epochs if top >= best or always else 0
        best = max(best, top)
    return found


def _keeps_last_phase(result: Mapping[str, Any]) -> bool:
    """Whether a run's weights are those of its last phase, even if an earlier one was better."""
    return bool(result.get("settings", {}).get(phases_of(result["model"])[-1].new_scores))


def read_epochs(run_dir: Path) -> pd.DataFrame | None:
    """The log of a run's epochs; None for a model without epochs.

    Raises: DataError if it is damaged.
    """
    path = run_dir / "epochs.csv"
    try:
        return pd.read_csv(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        problem = str(error).strip().partition("\n")[0]
        raise DataError(f"{path}: no table of epochs ({problem}); delete its folder to train it anew") from error


def resolved_config(config: Any) -> dict[str, Any]:
    """Every setting of a run as plain values, without paths and the machine's device."""
    hidden = {"data_path", "checkpoint_dir", "device", "gpu_id", "use_gpu", "state", "show_progress"}
    if config["model"] in METHODS:
        hidden.add("training")  # they always train on whole sequences
    plain = {key: value for key, value in config.final_config_dict.items() if key not in hidden}
    return json.loads(json.dumps(plain, default=lambda value: getattr(value, "name", str(value)), sort_keys=True))


def as_yaml(config: Any) -> str:
    """Every setting of a run, those that were not given, too."""
    values = {**defaults_of(config["model"], config["backbone"]), **resolved_config(config)}
    return str(yaml.safe_dump(values, allow_unicode=True))

_NEEDED: dict[str, type | tuple[type, ...]] = {
    **{"model": str, "dataset": str, "data_path": str, "settings": dict, "phases": list},
    **dict.fromkeys(("seconds", "parameters", "targets_per_epoch"), (int, float)),
    **{"valid_metric": str, "candidates": str, "versions": dict},
}
"""What every ``result.json`` has had since there are any."""


def read_result(run_dir: Path) -> results.ModelResult:
    """A finished run from its folder.

    Raises: DataError if a file is missing, damaged or no such file.
    """
    result = read_json(run_dir / "result.json")
    if problem := faults_of(result, _NEEDED):
        problem = f"{problem}, so it is damaged or no run of this library"
        raise DataError(f"{run_dir / 'result.json'}: {problem}; leave it out, or delete its folder to train it anew")
    epochs, metric = read_epochs(run_dir), result["valid_metric"]
    endings = [phase["ended_by"] for phase in result["phases"]]
    return results.ModelResult(
        name=result["model"],
        ranks=read_ranks(run_dir / "ranks.csv"),
        epochs=epochs,
        status=results.EPOCH_CAP if results.EPOCH_CAP in endings else endings[-1],
        best_epoch=_best_epoch(epochs, metric, _keeps_last_phase(result)),
        seconds=result["seconds"],
        n_parameters=result["parameters"],
        note=f"{result['targets_per_epoch']} targets per epoch",
        max_epochs=values_of(run_dir).get("epochs"),
        valid_metric=metric,
    )


def _best_epoch(epochs: pd.DataFrame | None, metric: str, of_last_phase: bool) -> int | None:
    """The row, from 1, whose weights were tested: of equals the last, as RecBole; not every epoch is validated."""
    if epochs is None or metric not in epochs:
        return None
    scores = epochs[metric]
    if of_last_phase:
        scores = scores.where(epochs["phase"] == epochs["phase"].iloc[-1])
    best = np.flatnonzero(scores == scores.max())
    return int(best[-1]) + 1 if len(best) else None


def values_of(run_dir: Path) -> dict[str, Any]:
    """Every setting of a finished run by its key, those that were not given, too.

    Raises: ConfigError if its ``config.yaml`` is damaged.
    """
    path, model = run_dir / "config.yaml", read_json(run_dir / "result.json")["model"]
    given = read_file(path) if path.is_file() else {}
    return {**defaults_of(model, given.get("backbone", "")), **given}
EVERYTHING = "all interactions, held-out ones included: for production, never to be evaluated"
"""What ``result.json`` says of a model that was trained on everything."""
