"""Finished runs and experiments as one page that loads nothing, and as Markdown, CSV, LaTeX, PNG and PDF.

What can be compared stands in one table; runs that differ in split or candidates are refused. Names, texts and files
of experiments may come from data or from a model, and are escaped wherever they are shown.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import yaml

from recbole_edt import config, figures, pipeline, provenance, report, stages, training
from recbole_edt.config import GROUPS, Settings
from recbole_edt.errors import DataError
from recbole_edt.evaluation import OVERALL, domains_of, per_user
from recbole_edt.files import read_bytes, read_json, write_text
from recbole_edt.frame import png_uri, render
from recbole_edt.profiles import SRA
from recbole_edt.report import ModelResult
from recbole_edt.tables import ResultTable, code, escape_markdown, groups_of
from recbole_edt.tables import read as read_table

METRIC = "ndcg@10"
_RECBOLES_OWN = ("model", "dataset", "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type")
"""Settings that nobody sets."""
EXPERIMENTS = r"experiments|(tuning|ablation)-[0-9a-f]{8}"
"""What follows the data set's name in the folders of its experiments."""


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


@dataclass(frozen=True)
class Picture:
    """A figure that stands as ``PATH.png``, and perhaps as ``PATH.pdf``."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Listing:
    """Lines of text that open on demand."""

    title: str
    text: str
    opened: bool = False


@dataclass(frozen=True)
class Section:
    """One heading and what stands below it: texts, tables, pictures and listings."""

    title: str
    parts: Sequence[str | ResultTable | Picture | Listing]
    name: str = ""
    """For its address, if not the title."""

    @property
    def anchor(self) -> str:
        return _slug(self.name or self.title)


def make(settings: Settings, say: stages.Say, runs: str = "", output: str = "") -> None:
    """Write the report of a data set's run directory, or of the named ones.

    Args:
        runs: folders separated by commas, each of one run or of several; none is that of the data set.
        output: folder to write into; none is ``report`` in the run directory.

    Raises: DataError for folders without finished runs, and for runs that cannot be compared.
    """
    if runs:
        folders, own = [Path(one.strip()) for one in runs.split(",")], Path()
        place = Path(output or settings.runs_path / "report")
    else:
        experiment = training.open_experiment(settings)
        if not any(experiment.folder.glob("*/result.json")):
            raise DataError(
                f"{experiment.folder}: no finished run: run `python run_edt.py compare --dataset={settings.dataset}` "
                "(or train) first; with other candidates or another seed, give their options again"
            )
        folders, own = [experiment.folder], training.run_directory(experiment, settings.model)
        place = Path(output or experiment.folder / "report")
    experiments = [] if runs else experiment_folders(settings)
    found = read_runs(folders, settings.models, names_of(experiments))
    reference = _reference(found, own, settings.model)
    settings = _settings_of(settings, found[0]) if runs else settings
    lines, sections = contents(found, reference, settings, experiments, place / "figures")
    title = f"{settings.dataset}: {_several(len(found), 'run')}"
    write_text(place / "report.html", html_report(title, lines, sections))
    write_text(place / "report.md", markdown(title, lines, sections, place))
    for table in _tables(sections):
        table.save(place / "tables", table.name)
    _remove_others(place / "tables", {table.name for table in _tables(sections)})
    say(f"report: {place / 'report.html'} (also report.md, tables/ and figures/ there)")


def _remove_others(folder: Path, names: set[str]) -> None:
    """Delete the tables of an earlier report that this one does not have."""
    for path in _table_files(folder):
        for form in () if path.stem in names else ("json", "md", "csv", "tex"):
            path.with_name(f"{path.stem}.{form}").unlink(missing_ok=True)


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
            report.check_comparable([runs[0].shown.ranks, run.shown.ranks])
        except DataError as error:
            raise DataError(f"{runs[0].folder} and {run.folder}: {error}") from None
    places = {name: place for place, name in enumerate(order)}
    named = _told_apart(runs, called or {})
    return sorted(named, key=lambda run: (places.get(run.result["model"], len(places)), run.name))


def _read_run(folder: Path) -> Run:
    shown, values = training.read_result(folder), training.values_of(folder)
    own = {key: value for key, value in values.items() if key not in _RECBOLES_OWN}
    return Run(folder, read_json(folder / "result.json"), own, shown)


def _told_apart(runs: Sequence[Run], called: Mapping[Path, str]) -> list[Run]:
    """Runs of one model get a name that says in which settings they differ, or an experiment's, or their folder's."""
    names = []
    for run in runs:
        same = [other for other in runs if other.name == run.name]
        values = ", ".join(f"{key}={_value(run, key)}" for key in _differing(same))
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


def _value(run: Run, key: str) -> Any:
    """A setting, or one of `READ`."""
    if key == "artefacts":
        return run.result.get(READ[key], "")[:8] or None
    return run.result[READ[key]] if key in READ else run.config.get(key)


def _differing(runs: Sequence[Run]) -> list[str]:
    """Keys whose values are not the same in all runs."""
    keys = [*sorted({key for run in runs for key in run.config}), *READ]
    return [key for key in keys if len({repr(_value(run, key)) for run in runs}) > 1]


def _over_seeds(runs: Sequence[Run]) -> dict[str, list[ModelResult]]:
    """Runs that differ in their seed alone, if all models have the same two or more; by model and settings."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key != "seed"}
        read = [_value(run, key) for key in READ]
        groups.setdefault(repr((run.result["model"], read, sorted(rest.items()))), []).append(run)
    several = [sorted(group, key=lambda run: run.config.get("seed", 0)) for group in groups.values()]
    seeds = {tuple(run.config.get("seed") for run in group) for group in several}
    if len(seeds) > 1 or len(several[0]) < 2 or len(set(*seeds)) < len(several[0]):
        return {}
    models = [group[0].result["model"] for group in several]
    named = [(group[0].result["model"], group[0].folder.name) for group in several]
    names = [model if models.count(model) == 1 else folder for model, folder in named]
    return {name: [run.shown for run in group] for name, group in zip(names, several, strict=True)}


def command_of(run: Run, data: Mapping[str, Any] | None = None) -> list[str]:
    """The arguments of the command that trains this run again, quoted, once the data set's own stages are done.

    Args:
        data: keys of the stages that made the data set (`data_keys`).
    """
    result = run.result
    keys = {"dataset": _dataset_of(run), "model": result["model"], "candidates": result["candidates"], **(data or {})}
    given, own = result.get("given"), result.get("given_to_model", {})
    if given is None:  # a run of before these keys were kept
        if _variant_of(run):
            return ["python run_edt.py ablate", "# a variant with rows of its own: the tables it was made for name it"]
        given = {**_domains_of(run), **result["settings"]}
    keys |= {key: given[key] for key in sorted(given)}
    if not _variant_of(run):
        keys |= {f"model_settings.{result['model']}.{key}": own[key] for key in sorted(own)}
        return ["python run_edt.py train", *_arguments(keys)]
    of_variant = {**result["given_to_data"], **{key: own[key] for key in sorted(own) if key != "seed"}}
    keys |= {"seeds": [keys.pop("seed")], "variants": {"with rows of its own": of_variant}}
    return ["python run_edt.py ablate", *_arguments(keys)]


def _arguments(keys: Mapping[str, Any]) -> list[str]:
    return [shlex.quote(f"--{key}={_as_text(value)}") for key, value in keys.items()]


def _as_text(value: Any) -> str:
    """A value as the command line reads it."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


_AUGMENTED = re.compile(r"-edt(?:-([0-9a-f]{8}))?$")


def _dataset_of(run: Run) -> str:
    return _AUGMENTED.sub("", run.result["dataset"])


def _variant_of(run: Run) -> str:
    """What the name of the data set ends in, if a variant has rows or profiles of its own."""
    match = _AUGMENTED.search(run.result["dataset"])
    return match[1] or "" if match else ""


def _domains_of(run: Run) -> dict[str, Any]:
    """The key ``domains``, if the run was given it."""
    return {"domains": run.config["domains"]} if run.config.get("domains") else {}


def _settings_of(settings: Settings, run: Run) -> Settings:
    """Where the data of a run are."""
    path = Path(run.result["data_path"])
    return replace(settings, dataset=_dataset_of(run), data_path=path, data_variant=_variant_of(run))


# ---- contents ----------------------------------------------------------------------------------------------------


def contents(
    runs: Sequence[Run], reference: str | None, settings: Settings, experiments: Sequence[Path], folder: Path
) -> tuple[list[str], list[Section]]:
    """What the report says: lines below its title, and sections.

    Args:
        runs: that can be compared.
        reference: name of the run that is tested against the others; None leaves the tests out.
        settings: where the data are.
        experiments: folders with tables and figures.
        folder: where new pictures go.
    """
    results = [run.shown for run in runs]
    tables = {table.name: table for table in report.report_tables(results)}
    several = _over_seeds(runs)
    groups = several or {result.name: [result] for result in results}
    against = next((name for name, group in groups.items() if reference in [run.name for run in group]), None)
    chosen = {name: groups[name] for name in report.highest(groups, against, METRIC)}
    # A curve per seed would be too many; the first seed stands for the others.
    shown = results if len(results) <= report.MOST else [group[0] for group in chosen.values()]
    bars, curves = folder / "results", folder / "curves"
    plot_results(shown, bars.with_suffix(".png"))
    report.plot_curves(shown, curves.with_suffix(".png"))
    drawn = [
        Picture(bars, f"{METRIC} by domain; lines are 95 % intervals over users (bootstrap)"),
        Picture(curves, f"Validation {report.curves_metric(shown)} and training loss by epoch"),
    ]
    means = [replace(report.mean_table(several), title="Means over seeds")] if several else []
    sections = [
        Section("Results", [tables["results"], *means, drawn[0]]),
        Section("Groups of users", [tables["groups"]] if "groups" in tables else []),
        Section("Significance", _tests(chosen, against, len(groups))),
        Section("Training", [tables["models"], drawn[1]]),
        *map(_experiment, experiments),
        Section("Data", list(provenance.data_parts(settings))),
        Section("Cost", list(_cost(runs, settings))),
        Section("Settings", list(_settings_parts(runs))),
        Section("How to reproduce", list(_reproduce(runs, settings))),
        Section("Versions", [_versions(runs)]),
    ]
    ranks = results[0].ranks
    lines = [f"{report.what_was_ranked(ranks)}; split {ranks.attrs['split_hash'][:8]}", _written(runs, settings)]
    lines.append(_left_out(len(runs), len(groups), against))
    return list(filter(None, lines)), [section for section in sections if section.parts]


def _reference(runs: Sequence[Run], own: Path, model: str) -> str | None:
    """The run under the settings as they are, or else the first of the model that they name."""
    of_model = [run for run in runs if run.result["model"] == model]
    exact = [run for run in of_model if run.folder == own.resolve()]
    return next((run.name for run in [*exact, *of_model]), None)


def _tests(chosen: Mapping[str, Sequence[ModelResult]], against: str | None, n_groups: int) -> list[ResultTable]:
    """Paired tests of one with the others that were chosen, of each user's mean over seeds where there are several."""
    if against is None or len(chosen) < 2:
        return []
    found = report.paired_tests_over_seeds(chosen, against, METRIC)
    table = report.significance_table(found, against, METRIC, chosen)
    over_seeds = ", each user's mean over seeds" * (len(chosen[against]) > 1)
    # The table is also a file of its own.
    left_out = f" The others are the {len(chosen) - 1} of {n_groups - 1} with the highest {METRIC}."
    return [replace(table, title=table.title + over_seeds, note=table.note + left_out * (len(chosen) < n_groups))]


def _left_out(n_runs: int, n_groups: int, against: str | None) -> str:
    """What figures and tests leave out, in a sentence; empty if they leave out nothing."""
    if n_runs <= report.MOST:
        return ""
    which = f"figures show the {report.MOST} with the highest {METRIC}"
    if against is not None:
        which = f"figures and tests show {against} and the {report.MOST - 1} others with the highest {METRIC}"
    if n_groups <= report.MOST:
        said = f"Of {n_runs} runs, figures show those with the first seed"
    elif n_groups < n_runs:
        said = f"Of {n_groups} groups of seeds, {which}, figures the first seed alone"
    else:
        said = f"Of {n_runs} runs, {which}"
    return f"{said}; tables of results have all. Name folders (--runs=DIR,DIR) to choose others."


def plot_results(results: Sequence[ModelResult], path: Path, metric: str = METRIC, seed: int = 42) -> None:
    """Bars of a metric by domain and model, each with its bootstrap 95 % interval over users."""
    domains = [*domains_of(results[0].ranks), OVERALL]
    name, k = report.parse_metric(metric)
    figure, axes = figures.new(min(10, max(7, 1.5 + 0.35 * len(domains) * (len(results) + 1))), 4.2)
    width = 0.8 / len(results)
    for number, result in enumerate(results):
        values = per_user(result.ranks["higher"], result.ranks["tied"], name, k)
        parts = [values if one == OVERALL else values[(result.ranks["domain"] == one).to_numpy()] for one in domains]
        x = np.arange(len(domains)) + (number - (len(results) - 1) / 2) * width
        axes.bar(x, list(map(_mean, parts)), width, label=figures.plain(result.name), **figures.bar(number))
        for place, part in zip(x, parts, strict=True):
            if len(part):
                axes.plot([place, place], report.bootstrap_interval(part, seed), color="#333333", linewidth=1.4)
    axes.set_xticks(range(len(domains)), [figures.plain(domain) for domain in domains])
    axes.grid(visible=False, axis="x")
    figures.label(axes, "domain of the held-out item", f"{metric} (0 to 1)")
    figures.legend_below(figure, axes)
    figures.save(figure, path)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def experiment_folders(settings: Settings) -> list[Path]:
    """Folders of the data set's experiments, tunings and ablations that hold tables."""
    name = re.compile(rf"{re.escape(settings.dataset)}-({EXPERIMENTS})")
    tops = sorted(path for path in settings.runs_path.glob(f"{settings.dataset}-*") if name.fullmatch(path.name))
    folders = [folder for top in tops for folder in (top, *sorted(path for path in top.iterdir() if path.is_dir()))]
    return [folder for folder in folders if _table_files(folder)]


def _table_files(folder: Path) -> list[Path]:
    """The JSON files of a folder that hold tables of results."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stem)  # a table before the same of other candidates
    return [path for path in paths if _is_table(read_json(path))]


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and {"columns", "rows", "title"} <= set(value)


def _experiment(folder: Path) -> Section:
    paths = _table_files(folder)
    found = [read_table(path) for path in paths]
    # By the files' names, which differ: tables of one study may share a name of their own.
    names = [_slug(f"{folder.name}-{path.stem}") for path in paths]
    parts: list[Any] = [replace(table, name=name) for table, name in zip(found, names, strict=True)]
    parts += [Picture(path.with_suffix(""), f"{folder.name}: {path.stem}") for path in sorted(folder.glob("*.png"))]
    commands = dict.fromkeys(table.command for table in found if table.command)
    parts += [Listing("How to reproduce", command) for command in commands]
    return Section(found[0].title, parts, f"experiment-{folder.name}")


def _made_with(run: Run, settings: Settings) -> Mapping[str, Any]:
    """How a run's data were made; of one that did not note it, how those at hand were."""
    return _noted(run, "made_with", replace(settings, data_variant=_variant_of(run)))


def _made_from(run: Run, settings: Settings) -> Mapping[str, Any]:
    """The same of the data set's own rows, which a variant with others starts from."""
    return _noted(run, "made_from" if _variant_of(run) else "made_with", replace(settings, data_variant=""))


def _noted(run: Run, key: str, settings: Settings) -> Mapping[str, Any]:
    """What a run noted of the stages before it, in their order, which its file has not kept."""
    if key not in run.result:
        return provenance.made_with(settings)
    known = sorted(run.result[key], key=lambda name: list(pipeline.STAGES).index(name.partition(" ")[0]))
    return {stage: run.result[key][stage] for stage in known}


def _written(runs: Sequence[Run], settings: Settings) -> str:
    """What a language model wrote; by run where that differs."""
    notes: dict[str, list[str]] = {}
    for run in runs:
        notes.setdefault(provenance.llm_note(settings, _made_with(run, settings)), []).append(run.name)
    if len(notes) == 1:
        return next(iter(notes))
    return "; ".join(f"{', '.join(names)}: {note}" for note, names in notes.items())


def _cost(runs: Sequence[Run], settings: Settings) -> Iterator[ResultTable | str]:
    """What the data of the runs cost, by run where that differs."""
    several: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for run in runs:
        made = _made_with(run, settings)
        counts = repr(sorted((stage, one["counts"]) for stage, one in made.items()))
        several.setdefault(counts, (made, []))[1].append(run.name)
    for number, (made, names) in enumerate(several.values(), 1):
        of = f" of {', '.join(names)}" if len(several) > 1 else ""
        for part in provenance.cost_parts(settings, made):
            if isinstance(part, str):
                yield f"{', '.join(names)}: {part}" if of else part
            else:
                yield replace(part, title=part.title + of, name=f"{part.name}-{number}" if of else part.name)


def _settings_parts(runs: Sequence[Run]) -> Iterator[ResultTable | Listing]:
    if len(runs) > 1 and (keys := _differing(runs)):
        rows = [(key, *(_shown_value(run, key) for run in runs)) for key in keys]
        note = "n/a: the model has no such key; artefacts: a hash of inserted rows, vectors and profiles that it reads"
        yield ResultTable("settings", "Settings that differ", ["key", *(run.name for run in runs)], rows, note)
    for run in runs:
        yield Listing(f"All settings of {run.name}", yaml.safe_dump(dict(run.config), allow_unicode=True))


def _shown_value(run: Run, key: str) -> str | None:
    value = _value(run, key)
    return _as_text(value) if key in run.config or (key in READ and value is not None) else None


def _reproduce(runs: Sequence[Run], settings: Settings) -> Iterator[Listing | str]:
    yield "First the data, then each run by a command of its own. What is done already is read, not repeated."
    groups = _by_data(runs, settings)
    for made, several in groups:
        title = f"Data of {', '.join(run.name for run in several)}" if len(groups) > 1 else "Data"
        shared = next((found for run in several if (found := _shared_keys(run))), {})
        yield Listing(title, "\n".join(data_commands(settings.dataset, made, shared)), opened=True)
        # Which profiles a model reads is among its own keys; what the files were made of, it need not know.
        others = [keys for stage, keys in made.items() if stage != "prepare"]
        data = {key: value for one in others for key, value in one.items() if key != "profile.pipeline"}
        for run in several:
            yield Listing(run.name, " \\\n  ".join(command_of(run, data)), opened=True)


def _by_data(runs: Sequence[Run], settings: Settings) -> list[tuple[dict[str, dict[str, Any]], list[Run]]]:
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


def _shared_keys(run: Run) -> dict[str, Any]:
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
        made = provenance.made_with(replace(settings, data_variant=""))
    usual = config.load(settings.dataset, asks=False)
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


def _versions(runs: Sequence[Run]) -> ResultTable:
    libraries = dict.fromkeys(library for run in runs for library in run.result["versions"])
    rows = []
    for library in libraries:
        found = dict.fromkeys(str(run.result["versions"].get(library, "not there")) for run in runs)
        rows.append((library, ", ".join(found)))
    note = "Runs were made with different versions." if any(", " in version for _, version in rows) else ""
    return ResultTable("versions", "Versions", ["library", "version"], rows, note)


# ---- forms -------------------------------------------------------------------------------------------------------


def html_report(title: str, lines: Sequence[str], sections: Sequence[Section]) -> str:
    """One file that loads nothing; its only script sorts tables."""
    shown = [
        {"title": one.title, "anchor": one.anchor, "parts": [_for_page(part) for part in one.parts]} for one in sections
    ]
    return render("report.html", title=title, lines=list(filter(None, lines)), sections=shown)


def _for_page(part: str | ResultTable | Picture | Listing) -> dict[str, Any]:
    if isinstance(part, str):
        return {"kind": "text", "text": part}
    if isinstance(part, Listing):
        return {"kind": "listing", "title": part.title, "text": part.text, "opened": part.opened}
    if isinstance(part, Picture):
        content = read_bytes(part.path.with_name(part.path.name + ".png"))
        return {"kind": "picture", "caption": part.caption, "uri": png_uri(content)}
    groups = groups_of(part.columns)
    numeric = [part.is_numeric(place) for place in range(len(part.columns))]
    rows = zip(part.rows, part.shown(), part.best(), strict=True)
    return {
        "kind": "table",
        "title": part.title,
        "anchor": f"table-{_slug(part.name)}",
        "note": part.note,
        "groups": groups if any(name for name, _ in groups) else [],
        "headings": [(column.name, number) for column, number in zip(part.columns, numeric, strict=True)],
        "rows": [[_cell(*cell) for cell in zip(*row, numeric, strict=True)] for row in rows],
        "forms": [("LaTeX", part.latex()), ("Markdown", part.markdown()), ("CSV", part.csv())],
    }


def _cell(value: Any, text: str, best: Any, numeric: bool) -> dict[str, Any]:
    number = value[0] if isinstance(value, tuple) else value
    sorts = isinstance(number, int | float) and not isinstance(number, bool)
    shown = {"text": text, "numeric": numeric, "best": bool(best)}
    return {**shown, "value": repr(number) if sorts else None, "missing": number is None}


def markdown(title: str, lines: Sequence[str], sections: Sequence[Section], folder: Path) -> str:
    """The same as Markdown, with pictures as files relative to ``folder``."""
    blocks = [f"# {escape_markdown(title)}", *map(escape_markdown, lines)]
    for section in sections:
        blocks.append(f"## {escape_markdown(section.title)}")
        for part in section.parts:
            if isinstance(part, str):
                blocks.append(escape_markdown(part))
            elif isinstance(part, ResultTable):
                heading = [f"### {escape_markdown(part.title)}"] if part.title != section.title else []
                blocks += [*heading, part.markdown()]
            elif isinstance(part, Picture):
                blocks.append(f"![{escape_markdown(part.caption)}]({_link(part.path, folder)}.png)")
            else:
                blocks += [f"### {escape_markdown(part.title)}", code(part.text.splitlines())]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _link(path: Path, folder: Path) -> str:
    """Path as seen from the report, with what Markdown would obey written as in an address."""
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def _tables(sections: Sequence[Section]) -> list[ResultTable]:
    return [part for section in sections for part in section.parts if isinstance(part, ResultTable)]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "table"


def _several(n: int, word: str) -> str:
    return f"{n} {word}" + "s" * (n != 1)
