"""The commands and settings that make a run again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from recbole_edt.config.settings import GROUPS, Settings, load_settings
from recbole_edt.experiments import compare
from recbole_edt.pipeline import manifest
from recbole_edt.profile.settings import SRA
from recbole_edt.report.runs import Run


def command_of(run: Run, data: Mapping[str, Any] | None = None) -> list[str]:
    """The arguments of the command that trains this run again, quoted, once the data set's own stages are done.

    Args:
        data: keys of the stages that made the data set (`data_keys`).
    """
    result = run.result
    keys = {"dataset": dataset_of(run), "model": result["model"], "candidates": result["candidates"], **(data or {})}
    given, own = result.get("given"), result.get("given_to_model", {})
    if given is None:  # a run of before these keys were kept
        if variant_of(run):
            return ["python run_edt.py ablate", "# a variant with rows of its own: the tables it was made for name it"]
        given = {**_domains_of(run), **result["settings"]}
    keys |= {key: given[key] for key in sorted(given)}
    if not variant_of(run):
        keys |= {f"model_settings.{result['model']}.{key}": own[key] for key in sorted(own)}
        return ["python run_edt.py train", *_arguments(keys)]
    of_variant = {**result["given_to_data"], **{key: own[key] for key in sorted(own) if key != "seed"}}
    keys |= {"seeds": [keys.pop("seed")], "variants": {"with rows of its own": of_variant}}
    return ["python run_edt.py ablate", *_arguments(keys)]


def _arguments(keys: Mapping[str, Any]) -> list[str]:
    return [shlex.quote(f"--{key}={as_text(value)}") for key, value in keys.items()]


def as_text(value: Any) -> str:
    """A value as the command line reads it."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


_AUGMENTED = re.compile(r"-edt(?:-([0-9a-f]{8}))?$")


def dataset_of(run: Run) -> str:
    return _AUGMENTED.sub("", run.result["dataset"])


def variant_of(run: Run) -> str:
    """What the name of the data set ends in, if a variant has rows or profiles of its own."""
    match = _AUGMENTED.search(run.result["dataset"])
    return match[1] or "" if match else ""


def _domains_of(run: Run) -> dict[str, Any]:
    """The key ``domains``, if the run was given it."""
    return {"domains": run.config["domains"]} if run.config.get("domains") else {}


def made_with_of(run: Run, settings: Settings) -> Mapping[str, Any]:
    """How a run's data were made; of one that did not note it, how those at hand were."""
    return _noted(run, "made_with", replace(settings, data_variant=variant_of(run)))


def _made_from(run: Run, settings: Settings) -> Mapping[str, Any]:
    """The same of the data set's own rows, which a variant with others starts from."""
    return _noted(run, "made_from" if variant_of(run) else "made_with", replace(settings, data_variant=""))


def _noted(run: Run, key: str, settings: Settings) -> Mapping[str, Any]:
    """What a run noted of the stages before it, in their order, which its file has not kept."""
    if key not in run.result:
        return manifest.made_with(settings)
    known = sorted(run.result[key], key=lambda name: list(compare.STAGES).index(name.partition(" ")[0]))
    return {stage: run.result[key][stage] for stage in known}


def runs_by_data(runs: Sequence[Run], settings: Settings) -> list[tuple[dict[str, dict[str, Any]], list[Run]]]:
    """Runs whose data the same commands make, with the keys of these (`data_keys`)."""
    groups: list[tuple[dict[str, dict[str, Any]], list[Run]]] = []
    for run in runs:
        own = data_keys(settings, _made_from(run, settings))
        for made, several in groups:
            # A run may have been trained before there were profiles, or beside those of another method.
            if bool(made) == bool(own) and all(made.get(stage, keys) == keys for stage, keys in own.items()):
                made.update(own)
                several.append(run)
                break
        else:
            groups.append((own, [run]))
    return groups


def shared_keys(run: Run) -> dict[str, Any]:
    """The keys of a run that decide what the stages before training read of the data set."""
    given = run.result.get("given", _domains_of(run))
    return {key: given[key] for key in ("k_core", "domains") if key in given}


def data_commands(
    dataset: str, made: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any] | None = None
) -> list[str]:
    """The commands that make the data set again.

    Args:
        made: `data_keys`.
        shared: keys of all stages.
    """
    every = {"dataset": dataset, **(shared or {})}
    lines = []
    for name, keys in {"prepare": {}, **made}.items():
        stage = name.partition(" ")[0]  # profiles may be of several kinds
        lines.append(" ".join([f"python run_edt.py {stage}", *_arguments({**every, **keys})]))
    return lines


def data_keys(settings: Settings, made: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """By stage, the keys that the data set was made with: all that no command has unless it is given them.

    Args:
        made: what a run's data were made with; none is what they are made with now.
    """
    if made is None:  # a variant starts from the data set's own rows
        made = manifest.made_with(replace(settings, data_variant=""))
    usual = load_settings(settings.dataset, asks=False)
    found = {}
    for stage, values in ((name.partition(" ")[0], one["config"]) for name, one in made.items()):
        if not values:
            continue
        if "domains" in values:  # the first is domain A
            values = {**values, "files": {domain: values["files"][domain] for domain in values["domains"]}}
        # Of the prompts a hash is kept; where they are only the settings know.
        llm = {**values["llm"], "templates": settings.llm.templates} if "llm" in values else {}
        kind = values.get("pipeline", SRA)
        name = stage if kind == SRA else f"{stage} ({kind})"
        found[name] = {**_changed(stage, values, usual), **_changed("llm", llm, usual)}
    return found


def _changed(group: str, made: Mapping[str, Any], usual: Settings) -> dict[str, Any]:
    """Values that are not the default, or not that of the data set's configuration file."""
    defaults = GROUPS[group](), getattr(usual, group)
    known = {key: value for key, value in made.items() if hasattr(defaults[0], key)}
    return {
        f"{group}.{key}": value
        for key, value in known.items()
        if any(value != getattr(default, key) for default in defaults)
    }
