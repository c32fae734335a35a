"""Finished runs and experiments as one page that loads nothing, and as Markdown, CSV, LaTeX, PNG and PDF.

What can be compared stands in one table; runs that differ in split or candidates are refused. Names, texts and files
of experiments may come from data or from a model, and are escaped wherever they are shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from recbole_edt.config.settings import Settings
from recbole_edt.errors import DataError
from recbole_edt.evaluate import significance
from recbole_edt.evaluate.results import METRIC, ModelResult
from recbole_edt.files import read_bytes, read_json, write_text
from recbole_edt.pipeline import manifest, stages
from recbole_edt.render.html import png_uri, render
from recbole_edt.render.tables import ResultTable, code, escape_markdown, groups_of
from recbole_edt.render.tables import read as read_table
from recbole_edt.report import result_tables
from recbole_edt.report.curves import curves_metric, plot_curves, plot_results
from recbole_edt.report.reproduce import (
    as_text,
    command_of,
    data_commands,
    dataset_of,
    made_with_of,
    runs_by_data,
    shared_keys,
    variant_of,
)
from recbole_edt.report.runs import READ, Run, differing_keys, names_of, read_runs, runs_over_seeds, value_of
from recbole_edt.train import comparison
from recbole_edt.train.run import run_directory

EXPERIMENTS = r"experiments|(tuning|ablation)-[0-9a-f]{8}"
"""What follows the data set's name in the folders of its experiments."""


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


def _settings_of(settings: Settings, run: Run) -> Settings:
    """Where the data of a run are."""
    path = Path(run.result["data_path"])
    return replace(settings, dataset=dataset_of(run), data_path=path, data_variant=variant_of(run))


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
    tables = {table.name: table for table in result_tables.report_tables(results)}
    several = runs_over_seeds(runs)
    groups = several or {result.name: [result] for result in results}
    against = next((name for name, group in groups.items() if reference in [run.name for run in group]), None)
    chosen = {name: groups[name] for name in result_tables.highest(groups, against, METRIC)}
    # A curve per seed would be too many; the first seed stands for the others.
    shown = results if len(results) <= result_tables.MOST else [group[0] for group in chosen.values()]
    bars, curves = folder / "results", folder / "curves"
    plot_results(shown, bars.with_suffix(".png"))
    plot_curves(shown, curves.with_suffix(".png"))
    drawn = [
        Picture(bars, f"{METRIC} by domain; lines are 95 % intervals over users (bootstrap)"),
        Picture(curves, f"Validation {curves_metric(shown)} and training loss by epoch"),
    ]
    means = [replace(result_tables.mean_table(several), title="Means over seeds")] if several else []
    sections = [
        Section("Results", [tables["results"], *means, drawn[0]]),
        Section("Groups of users", [tables["groups"]] if "groups" in tables else []),
        Section("Significance", _tests(chosen, against, len(groups))),
        Section("Training", [tables["models"], drawn[1]]),
        *map(_experiment, experiments),
        Section("Data", list(manifest.data_parts(settings))),
        Section("Cost", list(_cost(runs, settings))),
        Section("Settings", list(_settings_parts(runs))),
        Section("How to reproduce", list(_reproduce(runs, settings))),
        Section("Versions", [_versions(runs)]),
    ]
    ranks = results[0].ranks
    lines = [f"{result_tables.what_was_ranked(ranks)}; split {ranks.attrs['split_hash'][:8]}", _written(runs, settings)]
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


def _written(runs: Sequence[Run], settings: Settings) -> str:
    """What a language model wrote; by run where that differs."""
    notes: dict[str, list[str]] = {}
    for run in runs:
        notes.setdefault(manifest.llm_note(settings, made_with_of(run, settings)), []).append(run.name)
    if len(notes) == 1:
        return next(iter(notes))
    return "; ".join(f"{', '.join(names)}: {note}" for note, names in notes.items())


def _cost(runs: Sequence[Run], settings: Settings) -> Iterator[ResultTable | str]:
    """What the data of the runs cost, by run where that differs."""
    several: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for run in runs:
        made = made_with_of(run, settings)
        counts = repr(sorted((stage, one["counts"]) for stage, one in made.items()))
        several.setdefault(counts, (made, []))[1].append(run.name)
    for number, (made, names) in enumerate(several.values(), 1):
        of = f" of {', '.join(names)}" if len(several) > 1 else ""
        for part in manifest.cost_parts(settings, made):
            if isinstance(part, str):
                yield f"{', '.join(names)}: {part}" if of else part
            else:
                yield replace(part, title=part.title + of, name=f"{part.name}-{number}" if of else part.name)


def _settings_parts(runs: Sequence[Run]) -> Iterator[ResultTable | Listing]:
    if len(runs) > 1 and (keys := differing_keys(runs)):
        rows = [(key, *(_shown_value(run, key) for run in runs)) for key in keys]
        note = "n/a: the model has no such key; artefacts: a hash of inserted rows, vectors and profiles that it reads"
        yield ResultTable("settings", "Settings that differ", ["key", *(run.name for run in runs)], rows, note)
    for run in runs:
        yield Listing(f"All settings of {run.name}", yaml.safe_dump(dict(run.config), allow_unicode=True))


def _shown_value(run: Run, key: str) -> str | None:
    value = value_of(run, key)
    return as_text(value) if key in run.config or (key in READ and value is not None) else None


def _reproduce(runs: Sequence[Run], settings: Settings) -> Iterator[Listing | str]:
    yield "First the data, then each run by a command of its own. What is done already is read, not repeated."
    groups = runs_by_data(runs, settings)
    for made, several in groups:
        title = f"Data of {', '.join(run.name for run in several)}" if len(groups) > 1 else "Data"
        shared = next((found for run in several if (found := shared_keys(run))), {})
        yield Listing(title, "\n".join(data_commands(settings.dataset, made, shared)), opened=True)
        # Which profiles a model reads is among its own keys; what the files were made of, it need not know.
        others = [keys for stage, keys in made.items() if stage != "prepare"]
        data = {key: value for one in others for key, value in one.items() if key != "profile.pipeline"}
        for run in several:
            yield Listing(run.name, " \\\n  ".join(command_of(run, data)), opened=True)


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
