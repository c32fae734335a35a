"""One model in several variants, each trained with several seeds: which part of the method earns what.

A variant is a set of keys over the settings as they are. Those that change augmented rows or profiles get data
files of their own, named by a hash; item vectors are shared by all, and pre-training by those that differ in
fine-tuning alone. Every training is a run like any other: done once, resumed, and read by later commands.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_edt.config.recbole_config import check_model, model_values
from recbole_edt.config.settings import GROUPS, OWN, Settings, with_keys
from recbole_edt.errors import ConfigError, TooFewItems
from recbole_edt.evaluate import results
from recbole_edt.evaluate.metrics import TOPK, domain_metrics
from recbole_edt.files import library_versions, sha256_of, write_safely, write_text
from recbole_edt.llm.prices import Usage
from recbole_edt.models.registry import METHODS
from recbole_edt.pipeline import manifest, stages
from recbole_edt.pipeline.model_access import LiveWriter, llm_identity
from recbole_edt.render import console
from recbole_edt.report import result_tables
from recbole_edt.train import comparison
from recbole_edt.train.run import ranks_under, run_directory, train_model

AUGMENTATION: dict[str, dict[str, Any]] = {
    "raw rows": {"use_generated": False},
    "augmented rows": {"use_generated": True},
}
"""The variants of any other model: does the augmentation help it?"""
SAMPLED = "sampled-100"
"""The paper's candidates, beside those that the settings name."""

_DATA_GROUPS = ("augment", "profile", "llm")
_NO_SETTINGS = ("data_path", "runs_path", "variants", "models")


def variants_of(settings: Settings) -> dict[str, dict[str, Any]]:
    """Keys by variant, written as on the command line; the first is the one that all others are tested against.

    Raises: ConfigError for a name that nobody defined, or keys that no variant may have.
    """
    method = METHODS.get(settings.model)
    known = method.variants if method else AUGMENTATION
    first: dict[str, dict[str, Any]] = {method.title if method else settings.model: {}}
    wanted = settings.variants
    if wanted is None:
        return first | known if method else dict(known)
    if isinstance(wanted, str):
        wanted = [name.strip() for name in wanted.split(",")]
    if isinstance(wanted, list) and all(isinstance(name, str) for name in wanted):
        wanted = dict.fromkeys(wanted)
    if not isinstance(wanted, Mapping) or not wanted:
        raise ConfigError(f"variants: expected names such as 'w/o DFT', or names with keys, found {wanted!r}")
    found, faults = dict(first), []
    for name, keys in wanted.items():
        if keys is None and name in known:
            found[name] = known[name]
        elif name in first and keys:
            faults.append(f"variants: {name!r} is the first row, {settings.model} as it is; give yours another name")
        elif isinstance(keys, Mapping):
            found[str(name)] = dict(flat(keys))
        else:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            faults.append(f"variants: {name!r} has no keys and is not one of {', '.join(known)}{hint}")
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def flat(
    keys: Mapping[str, Any], prefix: str = "", stop: Callable[[Any], bool] = lambda value: False
) -> Iterator[tuple[str, Any]]:
    """Nested keys as on the command line; a mapping that ``stop`` recognises is a value."""
    for key, value in keys.items():
        if isinstance(value, Mapping) and not stop(value):
            yield from flat(value, f"{prefix}{key}.", stop)
        else:
            yield f"{prefix}{key}", value


def settings_of(settings: Settings, name: str, keys: Mapping[str, Any], seed: int) -> Settings:
    """The settings of one variant and seed.

    Raises: ConfigError naming the variant, for keys that all variants share, and for faults of its keys.
    """
    own: dict[str, Any] = {"seed": seed, f"model_settings.{settings.model}.seed": seed}
    for key, value in keys.items():
        group = key.partition(".")[0]
        if group in {*OWN, *GROUPS, "seed"} - set(_DATA_GROUPS):
            raise ConfigError(f"variants: {name}: {key} is the same for all variants")
        # A model's own settings win over those for all.
        own[key if group in GROUPS else f"model_settings.{settings.model}.{key}"] = value
    chosen = with_keys(settings, own, f"variant {name!r}")
    data = [[asdict(one.augment), asdict(one.profile), llm_identity(one)] for one in (settings, chosen)]
    if data[0] == data[1]:
        return chosen
    # No other model reads rows or profiles of a variant's own, so profiles of its kind are enough.
    return replace(chosen, data_variant=sha256_of(data[1])[:8], pipelines=(chosen.profile.pipeline,))


def check(settings: Settings) -> None:
    """Everything that can be known before any work.

    Raises: ConfigError listing the faults of all variants.
    """
    faults = []
    for name, keys in variants_of(settings).items():
        try:
            check_model(settings_of(settings, name, keys, settings.seeds[0]), settings.model)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def _check_clusters(settings: Settings, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises: ConfigError for every variant with more clusters than a domain has items."""
    data, faults = stages.read(settings), []
    for name, keys in variants.items():
        try:
            stages.check_clusters(settings_of(settings, name, keys, settings.seeds[0]), data)
        except ConfigError as error:
            faults.append(f"variants: {name}: {error}")
    if faults:
        raise ConfigError("\n".join(faults))


def ablate(settings: Settings, say: stages.Say) -> None:
    """Train every variant with every seed; print and write means, deviations and paired tests."""
    # It alone says which profiles are written, whatever other models are named.
    settings = with_keys(settings, {"model": settings.model, "models": [settings.model]}, "the stage ablate")
    check(settings)
    opened = partial(LiveWriter, spent=Usage())  # one account for all variants
    stages.prepare(settings, say, goes_on=True)
    variants = variants_of(settings)
    _check_clusters(settings, variants)
    stages.embed(settings, say, opened)
    found: dict[str, dict[str, list[results.ModelResult]]] = {}
    rows = []
    for name, keys in variants.items():
        for seed, experiment, result in _trained(settings, name, keys, say, opened):
            run = run_directory(experiment, settings.model)
            for candidates, ranks in ranked(experiment, settings.model, result).items():
                named = replace(result, name=name, ranks=ranks)
                found.setdefault(candidates, {}).setdefault(name, []).append(named)
                rows += run_rows(name, seed, candidates, named, run)
    folder = settings.runs_path / f"{settings.dataset}-ablation-{sha256_of([row['run'] for row in rows])[:8]}"
    with write_safely(folder / "ablation.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")
    tables = {}
    for candidates, runs in found.items():
        tables[candidates] = result_tables.variant_tables(runs, f"Variants of {_title(settings)}")
        console.print_result(tables[candidates]["means"])
        ending = "" if candidates == settings.candidates else f"-{candidates}"
        for stem, table in tables[candidates].items():
            replace(table, command=settings.command).save(folder, f"{stem}{ending}")
    note = unread(settings, settings.model, variants.values()) if settings.model in METHODS else ""
    text = result_tables.variants_report(
        tables.values(),
        f"Variants of {_title(settings)}",
        manifest.about(settings, [settings.model]),
        [*(f"{name}: {_changes(keys)}" for name, keys in variants.items()), *filter(None, [note])],
        _settings_lines(settings),
        library_versions(),
        settings.command,
    )
    write_text(folder / "ablation.md", text)
    for line in [*alike(found[settings.candidates]), *filter(None, [note and f"note: {note}"])]:
        say(line)
    if len(found) == 1 and SAMPLED not in found:
        say(f"note: {SAMPLED} is left out, a domain has too few items for it")
    say(f"report: {folder / 'ablation.md'}")


def _trained(
    settings: Settings, name: str, keys: Mapping[str, Any], say: stages.Say, opened: stages.Opener
) -> Iterator[tuple[int, comparison.Experiment, results.ModelResult]]:
    """Each seed with its experiment and finished run; the data are made, and loaded, once."""
    dataset = None
    for seed in settings.seeds:
        own = settings_of(settings, name, keys, seed)
        if dataset is None:
            for stage in (stages.augment_data, stages.profile):
                stage(own, lambda line: say(f"{name}: {line}"), opened)
            dataset = comparison.open_experiment(own).dataset
        experiment = replace(comparison.experiment_on(dataset, own), share_pretraining=True)
        result = train_model(experiment, settings.model)
        metrics = domain_metrics(result.ranks, (10,))
        say(f"{name}, seed {seed}: ndcg@10 {metrics['ndcg@10'].iloc[-1]:.4f}, ended by {result.status}")
        yield seed, experiment, result


def ranked(
    experiment: comparison.Experiment, model: str, result: results.ModelResult
) -> dict[str, pd.DataFrame]:
    """Rank tables of a run by candidates: its own, and the paper's sampled ones where there are enough items."""
    own = {experiment.settings.candidates: result.ranks}
    if SAMPLED in own:
        return own
    try:
        comparison.under(experiment, SAMPLED)
    except TooFewItems:
        return own
    return {**own, SAMPLED: ranks_under(experiment, model, SAMPLED)}


def alike(runs: Mapping[str, Sequence[results.ModelResult]]) -> list[str]:
    """A note for every row whose ranks are, with each seed, those of a row before it."""
    notes, seen = [], dict[str, str]()
    for name, several in runs.items():
        key = sha256_of(*(run.ranks[column].to_numpy() for run in several for column in ("higher", "tied")))
        if key in seen:
            notes.append(f"note: {name} ranks every target as {seen[key]} does")
        seen.setdefault(key, name)
    return notes


def unread(settings: Settings, model: str, variants: Iterable[Mapping[str, Any]]) -> str:
    """A sentence where variants change inserted rows, which a method has been told not to read; else nothing."""
    told = METHODS[model].use_generated and model_values(settings, model).get("use_generated") is False
    if not told or not any(key.startswith("augment.") for keys in variants for key in keys):
        return ""
    return f"{METHODS[model].title} reads no inserted rows (use_generated: false); they reach its profiles alone."


def run_rows(name: str, seed: int, candidates: str, result: results.ModelResult, run: Path) -> list[dict[str, Any]]:
    """One row per domain for a table of runs: what was trained, how it ended, and its metrics."""
    about = {"variant": name, "seed": seed, "candidates": candidates, "ended_by": result.status, "run": run.as_posix()}
    metrics = domain_metrics(result.ranks, TOPK)
    return [{**about, "domain": domain, **dict(values)} for domain, values in metrics.iterrows()]


def _title(settings: Settings) -> str:
    seeds = ("seeds " if len(settings.seeds) > 1 else "seed ") + ", ".join(map(str, settings.seeds))
    return f"{settings.model} on {settings.dataset}, leave-one-out, test targets, {seeds}"


def _changes(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items()) or "the settings below"


def _settings_lines(settings: Settings) -> list[str]:
    values = dict(flat({key: value for key, value in settings.given.items() if key not in _NO_SETTINGS}))
    return [f"{key}: {values[key]}" for key in sorted(values)]
