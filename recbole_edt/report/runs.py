"""Finished runs found on disk, told apart by what differs between them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_edt.errors import DataError
from recbole_edt.evaluate import significance
from recbole_edt.evaluate.results import ModelResult
from recbole_edt.files import read_json
from recbole_edt.pipeline.manifest import STAGES
from recbole_edt.train import run_files

_RECBOLES_OWN = ("model", "dataset", "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type")
"""Settings that nobody sets."""


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, ``result.json``, resolved settings and ranks."""

    folder: Path
    result: Mapping[str, Any]
    config: Mapping[str, Any]
    shown: ModelResult

    @property
    def name(self) -> str:
        return self.shown.name

    @property
    def dataset(self) -> str:
        """Name of the data set, without what the stage augment puts behind it."""
        return re.sub(r"-edt(-[0-9a-f]{8})?$", "", self.result["dataset"])

    @property
    def made_with(self) -> dict[str, Any]:
        """How the run's data were made, by stage, in their order; empty for a run that has not noted it."""
        noted = self.result.get("made_with", {})
        return {name: noted[name] for name in sorted(noted, key=lambda name: STAGES.index(name.partition(" ")[0]))}


# ---- runs --------------------------------------------------------------------------------------------------------


def names_of(experiments: Sequence[Path]) -> dict[Path, str]:
    """What the first experiment that has a run calls it, by the run's folder.

    Raises: DataError for a damaged table of runs.
    """
    found: dict[Path, str] = {}
    paths = [folder / name for folder in experiments for name in ("ablation.csv", "runs.csv")]
    for path in filter(Path.is_file, paths):
        try:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False)[["run", "variant"]]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not a table of runs ({error}); delete it, or its folder") from error
        for run, variant in rows.itertuples(index=False):
            found.setdefault(Path(run).resolve(), variant)
    return found


def read_runs(
    folders: Sequence[Path], order: Sequence[str] = (), called: Mapping[Path, str] | None = None
) -> list[Run]:
    """All finished runs in these folders, or in folders directly below them, with names that tell them apart.

    Args:
        order: names of models that come first.
        called: names for runs that too many settings tell apart, by their folders.

    Raises: DataError naming every folder without one, and runs that cannot be compared.
    """
    paths: list[Path] = []
    faults = []
    for folder in folders:
        here = [folder] if (folder / "result.json").is_file() else []
        below = here or sorted(path.parent for path in folder.glob("*/result.json"))
        if not below:
            faults.append(f"{folder}: no finished run there or directly below; give folders with a result.json")
        faults += [
            f"{path}: was trained on held-out interactions too, and can be compared with nothing; leave it out"
            for path in below
            if "trained_on" in read_json(path / "result.json")
        ]
        paths += below
    if faults:
        raise DataError("\n".join(faults))
    runs = [_read_run(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    for run in runs[1:]:
        try:
            significance.check_comparable([runs[0].shown.ranks, run.shown.ranks])
        except DataError as error:
            raise DataError(f"{runs[0].folder} and {run.folder}: {error}") from None
    places = {name: place for place, name in enumerate(order)}
    named = _told_apart(runs, called or {})
    return sorted(named, key=lambda run: (places.get(run.result["model"], len(places)), run.name))


def _read_run(folder: Path) -> Run:
    shown, values = run_files.read_result(folder), run_files.values_of(folder)
    own = {key: value for key, value in values.items() if key not in _RECBOLES_OWN}
    return Run(folder, read_json(folder / "result.json"), own, shown)


def _told_apart(runs: Sequence[Run], called: Mapping[Path, str]) -> list[Run]:
    """Runs of one model get a name that says in which settings they differ, or an experiment's, or their folder's."""
    names = []
    for run in runs:
        same = [other for other in runs if other.name == run.name]
        values = ", ".join(f"{key}={value_of(run, key)}" for key in differing_keys(same))
        short = called.get(run.folder, "") if len(values) > 60 else values
        named = f"{run.name} ({short})" if short else run.folder.name
        names.append(named if len(same) > 1 else run.name)
    count = Counter(names)
    for place, run in enumerate(runs):
        if count[names[place]] > 1:  # copies of one run, or of one folder's name
            names[place] = f"{run.folder.parent.name}/{run.folder.name}"
    return [replace(run, shown=replace(run.shown, name=name)) for run, name in zip(runs, names, strict=True)]


READ = {"rows": "dataset", "artefacts": "artefacts_hash"}
"""What a run read beside its settings, by its key in ``result.json``: the data set, and a hash of inserted rows,
vectors and profiles, which several augmentations of one data set may have changed."""


def value_of(run: Run, key: str) -> Any:
    """A setting, or one of `READ`."""
    if key == "artefacts":
        return run.result.get(READ[key], "")[:8] or None
    return run.result[READ[key]] if key in READ else run.config.get(key)


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Keys whose values are not the same in all runs."""
    keys = [*sorted({key for run in runs for key in run.config}), *READ]
    return [key for key in keys if len({repr(value_of(run, key)) for run in runs}) > 1]


def runs_over_seeds(runs: Sequence[Run]) -> dict[str, list[ModelResult]]:
    """Runs that differ in their seed alone, if all models have the same two or more; by model and settings."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key != "seed"}
        read = [value_of(run, key) for key in READ]
        groups.setdefault(repr((run.result["model"], read, sorted(rest.items()))), []).append(run)
    several = [sorted(group, key=lambda run: run.config.get("seed", 0)) for group in groups.values()]
    seeds = {tuple(run.config.get("seed") for run in group) for group in several}
    if len(seeds) > 1 or len(several[0]) < 2 or len(set(*seeds)) < len(several[0]):
        return {}
    models = [group[0].result["model"] for group in several]
    named = [(group[0].result["model"], group[0].folder.name) for group in several]
    names = [model if models.count(model) == 1 else folder for model, folder in named]
    return {name: [run.shown for run in group] for name, group in zip(names, several, strict=True)}
