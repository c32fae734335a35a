"""The paper's tables and figures, one command each, with its own numbers beside ours.

A study trains what it needs (a model with some keys, once per seed), or finds it trained, and makes tables, a figure
and the numbers drawn. Every training is a run like any other: done once, resumed, and read by later commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from recbole_edt.config.recbole_config import check_model
from recbole_edt.config.settings import Settings
from recbole_edt.errors import ConfigError, EDTError
from recbole_edt.experiments import paper_figures, paper_tables
from recbole_edt.experiments.rows import (
    alphas,
    backbones,
    baselines,
    cluster_numbers,
    language_models,
    no_rows,
    shares,
    thresholds,
    variants,
    whole,
    with_and_without,
)
from recbole_edt.experiments.trials import Bench, Outcome, Row, settings_of
from recbole_edt.files import write_safely
from recbole_edt.pipeline import stages
from recbole_edt.render import console, figures


@dataclass(frozen=True)
class Study:
    """What it trains, and what it makes of the runs."""

    rows: Callable[[Settings], list[Row]]
    make: Callable[[Bench, Sequence[Row]], Outcome]


STUDIES: dict[str, Study] = {
    "table1": Study(no_rows, paper_tables.table1),
    "table2": Study(baselines, paper_tables.table2),
    "table3": Study(variants, paper_tables.table3),
    "table4": Study(thresholds, paper_tables.table4),
    "table5": Study(cluster_numbers, paper_tables.table5),
    "table6": Study(shares, paper_tables.table6),
    "table7": Study(shares, paper_tables.table7),
    "table8": Study(language_models, paper_tables.table8),
    "table9": Study(backbones, paper_tables.table9),
    "figure1": Study(no_rows, paper_figures.figure1),
    "figure3": Study(with_and_without, paper_figures.figure3),
    "figure4": Study(with_and_without, paper_figures.figure4),
    "figure5": Study(alphas, paper_figures.figure5),
    "figure6": Study(baselines, paper_figures.figure6),
    "cost": Study(no_rows, paper_tables.cost),
    "audit": Study(whole, paper_tables.audited),
}
ALL = "all"


def experiment(settings: Settings, say: stages.Say, name: str) -> None:
    """Run one study, or ``all`` that the settings allow; print its tables and write them.

    Raises: ConfigError for keys that a row does not take, of all rows at once, before any work.
    """
    rows = chosen_rows(settings, name, say)
    check(settings, [row for several in rows.values() for row in several])
    bench = Bench(settings, [row.model for several in rows.values() for row in several] or ["LLMEDT"], say)
    rows = fitting(bench, rows)
    for study, own in rows.items():
        bench.start()
        outcome = STUDIES[study].make(bench, own)
        folder = settings.runs_path / f"{settings.dataset}-experiments" / study
        write(outcome, folder, bench, command_of(settings, name, study))
        for table in outcome.tables.values():
            console.print_result(table)
        say(f"{study}: {folder}")


def chosen_rows(settings: Settings, name: str, say: stages.Say) -> dict[str, list[Row]]:
    """Rows by study; of ``all`` those that lack a setting are left out, and said."""
    rows = {}
    for study in STUDIES if name == ALL else (name,):
        try:
            rows[study] = STUDIES[study].rows(settings)
            _check_names(study, rows[study])
        except ConfigError as error:
            if name != ALL:
                raise
            rows.pop(study, None)
            say(f"note: {study} is left out: {error}")
    return rows


def _check_names(study: str, rows: Sequence[Row]) -> None:
    """Raises: ConfigError for a name that two rows of a study have."""
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{study}: two rows are called {', '.join(twice)}; give each a name of its own")


def fitting(bench: Bench, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Rows by study without those of table 5 that want more clusters than a domain has items, which is said.

    Raises: ConfigError listing the faults of all other rows, before anything is trained.
    """
    found, faults = {}, []
    for study, several in rows.items():
        wrong = {row.name: fault for row in several if (fault := _too_many_clusters(bench, row))}
        found[study] = [row for row in several if row.name not in wrong]
        if study == "table5":
            for name, fault in wrong.items():
                bench.say(f"note: {study}: {name} is left out: {fault}")
        else:
            faults += [f"{study}: {name}: {fault}" for name, fault in wrong.items()]
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def _too_many_clusters(bench: Bench, row: Row) -> str:
    try:
        stages.check_clusters(bench.own(row, bench.settings.seeds[0]), bench.laboratory.base.dataset.source)
    except ConfigError as error:
        return str(error)
    return ""


def check(settings: Settings, rows: Sequence[Row]) -> None:
    """Raises: ConfigError listing the faults of all rows."""
    faults = []
    for row in rows:
        try:
            check_model(settings_of(settings, row, settings.seeds[0]), row.model)
        except EDTError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def command_of(settings: Settings, name: str, study: str) -> str:
    """The command that makes one study again."""
    return settings.command.replace(f"experiment {name}", f"experiment {study}", 1)


def write(outcome: Outcome, folder: Path, bench: Bench, command: str) -> None:
    """Tables, figure, the numbers drawn, and the runs behind them; what an earlier call left besides goes."""
    for stem, table in outcome.tables.items():
        replace(table, command=command).save(folder, stem)
    if outcome.figure is not None:
        figures.save(outcome.figure, folder / "figure.png")
    runs = pd.DataFrame(bench.rows).drop_duplicates() if bench.rows else None
    frames = {"figure.csv": outcome.drawn, "runs.csv": runs}
    for name, frame in frames.items():
        if frame is not None:
            with write_safely(folder / name) as temporary:
                frame.to_csv(temporary, index=False, lineterminator="\n")
    written = {*outcome.tables, *(["figure"] if outcome.figure is not None else [])}
    for path in folder.iterdir():
        ours = re.fullmatch(r"(table|tests|figure)(-.*)?\.(json|md|csv|tex|png|pdf)", path.name)
        if ours and path.stem not in written:
            path.unlink()
