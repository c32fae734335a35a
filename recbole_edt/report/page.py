"""Finished runs and experiments as one page that loads nothing, and as Markdown, CSV, LaTeX, PNG and PDF.

What can be compared stands in one table; runs that differ in split or candidates are refused. Names, texts and files
of experiments may come from data or from a model, and are escaped wherever they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from recbole_edt.config.settings import Settings, budget_note
from recbole_edt.errors import DataError
from recbole_edt.evaluate import significance
from recbole_edt.evaluate.ranking import with_seen_items
from recbole_edt.evaluate.results import METRIC, ModelResult
from recbole_edt.files import read_json, write_text
from recbole_edt.pipeline import manifest, stages
from recbole_edt.render import html
from recbole_edt.render.sections import Listing, Page, Picture, Section, slug
from recbole_edt.render.tables import ResultTable
from recbole_edt.render.tables import read as read_table
from recbole_edt.report import result_tables
from recbole_edt.report.curves import curves_metric, plot_curves, plot_results
from recbole_edt.report.runs import Run, differing_keys, names_of, read_runs, runs_over_seeds, value_of
from recbole_edt.train import comparison
from recbole_edt.train.run import run_directory

EXPERIMENTS = r"experiments|(tuning|ablation)-[0-9a-f]{8}"
"""What follows the data set's name in the folders of its experiments."""


def make(settings: Settings, say: stages.Say, runs: str = "", output: str = "") -> None:
    """Write the report of a data set's run directory, or of the named ones.

    Args:
        runs: folders separated by commas, each of one run or of several; none is that of the data set. With
            ``seen_items`` they are shown with own earlier items masked or ranked, however they were trained.
        output: folder to write into; none is ``report`` in the run directory.

    Raises: DataError for folders without finished runs, and for runs that cannot be compared.
    """
    if runs:
        folders, own = [Path(one.strip()) for one in runs.split(",")], Path()
        place = Path(output or settings.runs_path / "report")
    else:
        experiment = comparison.open_experiment(settings)
        if not any(experiment.folder.glob("*/result.json")):
            raise DataError(
                f"{experiment.folder}: no finished run: run `python run_edt.py compare --dataset={settings.dataset}` "
                "(or train) first; with other candidates or another seed, give their options again"
            )
        folders, own = [experiment.folder], run_directory(experiment, settings.model)
        place = Path(output or experiment.folder / "report")
    experiments = [] if runs else experiment_folders(settings)
    found = read_runs(folders, settings.models, names_of(experiments))
    if runs and settings.seen_items != "auto":
        found = [_with_seen_items(run, settings.seen_items) for run in found]
    of_model = [run for run in found if run.result["model"] == settings.model]
    exact = [run for run in of_model if run.folder == own.resolve()]  # under the settings as they are
    reference = next((run.name for run in [*exact, *of_model]), None)
    if runs:
        settings = replace(settings, dataset=found[0].dataset, data_path=Path(found[0].result["data_path"]))
    page = contents(found, reference, settings, experiments, place / "figures")
    write_text(place / "report.html", html.page(page))
    write_text(place / "report.md", page.markdown(place))
    for table in page.tables:
        table.save(place / "tables", table.name)
    for path in _table_files(place / "tables"):  # those that only an earlier report had
        for form in () if path.stem in {table.name for table in page.tables} else ("json", "md", "csv", "tex"):
            path.with_name(f"{path.stem}.{form}").unlink(missing_ok=True)
    say(f"report: {place / 'report.html'} (also report.md, tables/ and figures/ there)")


def _with_seen_items(run: Run, seen_items: str) -> Run:
    try:
        ranks = with_seen_items(run.shown.ranks, seen_items)
    except DataError as error:
        raise DataError(f"{run.folder}: {error}; train it anew") from None
    return replace(run, shown=replace(run.shown, ranks=ranks))


# ---- contents ----------------------------------------------------------------------------------------------------


def contents(
    runs: Sequence[Run],
    reference: str | None,
    settings: Settings,
    experiments: Sequence[Path],
    folder: Path,
    title: str = "",
) -> Page:
    """What is said of runs; the pictures are drawn.

    Args:
        runs: that can be compared.
        reference: name of the run that is tested against the others; None leaves the tests out.
        settings: where the data are.
        experiments: folders with tables and figures.
        folder: where new pictures go.
        title: none is the data set and the number of runs.
    """
    results = [run.shown for run in runs]
    several = runs_over_seeds(runs)
    groups = several or {result.name: [result] for result in results}
    against = next((name for name, group in groups.items() if reference in [run.name for run in group]), None)
    chosen = {name: groups[name] for name in result_tables.highest(groups, against, METRIC)}
    # A curve per seed would be too many; the first seed stands for the others.
    shown = results if len(results) <= result_tables.MOST else [group[0] for group in chosen.values()]
    bars, curves = folder / "results", folder / "curves"
    plot_results(shown, bars.with_suffix(".png"))
    plot_curves(shown, curves.with_suffix(".png"))
    intervals = Picture(bars, f"{METRIC} by domain; lines are 95 % intervals over users (bootstrap)")
    training = Picture(curves, f"Validation {curves_metric(shown)} and training loss by epoch")
    means = [result_tables.mean_table(several, title="Means over seeds")] if several else []
    sections = [
        Section("Results", [result_tables.results_table(results), *means, intervals]),
        Section("Groups of users", result_tables.groups_tables(results)),
        Section("Significance", _tests(chosen, against, len(groups))),
        Section("Training", [result_tables.models_table(results), training]),
        *map(_experiment, experiments),
        Section("Data", list(manifest.data_parts(settings))),
        Section("Cost", list(_cost(runs, settings))),
        Section("Settings", list(_settings_parts(runs))),
        Section("How to reproduce", list(_reproduce(runs))),
        Section("Versions", [_versions(runs)]),
    ]
    ranks = results[0].ranks
    lines = [f"{result_tables.what_was_ranked(ranks)}; split {ranks.attrs['split_hash'][:8]}", _written(runs, settings)]
    lines.append(budget_note(settings, [run.result["model"] for run in runs]) if settings.tune.tuned else "")
    lines.append(_left_out(len(runs), len(groups), against))
    return Page(title or f"{settings.dataset}: {len(runs)} run{'s' * (len(runs) != 1)}", lines, sections)


def _tests(chosen: Mapping[str, Sequence[ModelResult]], against: str | None, n_groups: int) -> list[ResultTable]:
    """Paired tests of one with the others that were chosen, of each user's mean over seeds where there are several."""
    if against is None or len(chosen) < 2:
        return []
    found = significance.paired_tests_over_seeds(chosen, against, METRIC)
    table = result_tables.significance_table(found, against, METRIC, chosen)
    over_seeds = ", each user's mean over seeds" * (len(chosen[against]) > 1)
    # The table is also a file of its own.
    left_out = f" The others are the {len(chosen) - 1} of {n_groups - 1} with the highest {METRIC}."
    return [replace(table, title=table.title + over_seeds, note=table.note + left_out * (len(chosen) < n_groups))]


def _left_out(n_runs: int, n_groups: int, against: str | None) -> str:
    """What figures and tests leave out, in a sentence; empty if they leave out nothing."""
    if n_runs <= result_tables.MOST:
        return ""
    which = f"figures show the {result_tables.MOST} with the highest {METRIC}"
    if against is not None:
        which = f"figures and tests show {against} and the {result_tables.MOST - 1} others with the highest {METRIC}"
    if n_groups <= result_tables.MOST:
        said = f"Of {n_runs} runs, figures show those with the first seed"
    elif n_groups < n_runs:
        said = f"Of {n_groups} groups of seeds, {which}, figures the first seed alone"
    else:
        said = f"Of {n_runs} runs, {which}"
    return f"{said}; tables of results have all. Name folders (--runs=DIR,DIR) to choose others."


def experiment_folders(settings: Settings) -> list[Path]:
    """Folders of the data set's experiments, tunings and ablations that hold tables."""
    name = re.compile(rf"{re.escape(settings.dataset)}-({EXPERIMENTS})")
    tops = sorted(path for path in settings.runs_path.glob(f"{settings.dataset}-*") if name.fullmatch(path.name))
    folders = [folder for top in tops for folder in (top, *sorted(path for path in top.iterdir() if path.is_dir()))]
    return [folder for folder in folders if _table_files(folder)]


def _table_files(folder: Path) -> list[Path]:
    """The JSON files of a folder that hold tables of results."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stem)  # a table before the same of other candidates
    found = {path: read_json(path) for path in paths}
    return [path for path, one in found.items() if isinstance(one, dict) and {"columns", "rows", "title"} <= set(one)]


def _experiment(folder: Path) -> Section:
    paths = _table_files(folder)
    found = [read_table(path) for path in paths]
    # By the files' names, which differ: tables of one study may share a name of their own.
    names = [slug(f"{folder.name}-{path.stem}") for path in paths]
    parts: list[Any] = [replace(table, name=name) for table, name in zip(found, names, strict=True)]
    parts += [Picture(path.with_suffix(""), f"{folder.name}: {path.stem}") for path in sorted(folder.glob("*.png"))]
    commands = dict.fromkeys(table.command for table in found if table.command)
    parts += [Listing("How to reproduce", command) for command in commands]
    return Section(found[0].title, parts, f"experiment-{folder.name}")


def _written(runs: Sequence[Run], settings: Settings) -> str:
    """What a language model wrote; by run where that differs."""
    notes = _told_of(runs, lambda run: manifest.llm_note(settings, run.made_with))
    return notes[0][0] if len(notes) == 1 else "; ".join(f"{names}: {note}" for note, names in notes)


def _cost(runs: Sequence[Run], settings: Settings) -> Iterator[ResultTable | str]:
    """What the data of the runs cost, by run where that differs."""
    counted = _told_of(runs, lambda run: {stage: one["counts"] for stage, one in run.made_with.items()})
    for number, (counts, names) in enumerate(counted, 1):
        for part in manifest.cost_parts(settings, counts):
            if len(counted) == 1:
                yield part
            elif isinstance(part, str):
                yield f"{names}: {part}"
            else:
                yield replace(part, title=f"{part.title} of {names}", name=f"{part.name}-{number}")


def _settings_parts(runs: Sequence[Run]) -> Iterator[ResultTable | Listing]:
    if len(runs) > 1 and (keys := differing_keys(runs)):
        rows = [(key, *(_as_text(run, key) for run in runs)) for key in keys]
        note = "n/a: the model has no such key; artefacts: a hash of inserted rows, vectors and profiles that it reads"
        yield ResultTable("settings", "Settings that differ", ["key", *(run.name for run in runs)], rows, note)
    for run in runs:
        yield Listing(f"All settings of {run.name}", yaml.safe_dump(dict(run.config), allow_unicode=True))


def _as_text(run: Run, key: str) -> str | None:
    """A value as the command line reads it; None if the model has no such key."""
    value = value_of(run, key)
    if isinstance(value, str) or (value is None and key not in run.config):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _reproduce(runs: Sequence[Run]) -> Iterator[Listing | str]:
    """The commands that made the runs, as they were given, and what the data were made with."""
    yield (
        "What is done already is read, not repeated. Where the data are gone, too, the stages before training come "
        "first, with the same options."
    )
    for command, names in _told_of(runs, lambda run: run.result.get("command")):
        if command:
            yield Listing(f"Command of {names}", command, opened=True)
        elif command is None:
            yield f"{names}: trained before runs kept their command; all settings stand above."
    given = _told_of(runs, lambda run: run.result.get("given") if "command" in run.result else None)
    made = _told_of(runs, lambda run: {stage: one["config"] for stage, one in run.made_with.items()})
    keys = "Keys given, those of files included (as a file: --config_files)"
    for title, told in ((keys, given), ("Settings of the stages before training", made)):
        for values, names in told:
            if values:
                yield Listing(f"{title}: {names}", yaml.safe_dump(values, allow_unicode=True, sort_keys=False))


def _told_of(runs: Sequence[Run], what: Callable[[Run], Any]) -> list[tuple[Any, str]]:
    """What is to be said of runs, each thing once, with the names of the runs of which it is true."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for run in runs:
        told = what(run)
        found.setdefault(repr(told), (told, []))[1].append(run.name)
    return [(told, ", ".join(names)) for told, names in found.values()]


def _versions(runs: Sequence[Run]) -> ResultTable:
    libraries = dict.fromkeys(library for run in runs for library in run.result["versions"])
    rows = []
    for library in libraries:
        found = dict.fromkeys(str(run.result["versions"].get(library, "not there")) for run in runs)
        rows.append((library, ", ".join(found)))
    note = "Runs were made with different versions." if any(", " in version for _, version in rows) else ""
    return ResultTable("versions", "Versions", ["library", "version"], rows, note)
