"""What the studies of the paper share: their rows, the runs behind them, and tables of metrics."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_edt.config.settings import Settings, budget_note, with_keys
from recbole_edt.data.two_domains import OVERALL
from recbole_edt.evaluate import significance
from recbole_edt.evaluate.metrics import domain_metrics
from recbole_edt.evaluate.results import ModelResult
from recbole_edt.experiments import ablation, compare, paper_numbers
from recbole_edt.models.registry import METHODS
from recbole_edt.pipeline import manifest, stages
from recbole_edt.render import figures
from recbole_edt.render.tables import Column, ResultTable
from recbole_edt.report import curves, result_tables
from recbole_edt.train import comparison
from recbole_edt.train.run import run_directory, train_model

METRICS = ("hit@10", "ndcg@10")


@dataclass(frozen=True)
class Row:
    """A model under some keys, written as on the command line."""

    name: str
    model: str = "LLMEDT"
    keys: Mapping[str, Any] = field(default_factory=dict)


Runs = Mapping[str, Sequence[ModelResult]]
"""By row, a run per seed."""


@dataclass(frozen=True)
class Outcome:
    """What a study found: tables by the stem of their files, a figure and the numbers it draws."""

    tables: Mapping[str, ResultTable]
    figure: Any = None
    drawn: pd.DataFrame | None = None


class Bench:
    """Data, split and runs that the studies share.

    Args:
        settings: of the command.
        models: all that any study trains, so that the data that they read are made at once.
        say: for progress.

    Attributes:
        laboratory: opens the experiment of a row.
        rows: one dictionary per run, candidates and domain that were asked for, for ``runs.csv``.
    """

    def __init__(self, settings: Settings, models: Sequence[str], say: stages.Say) -> None:
        self.say = say
        self.settings = with_keys(settings, {"models": list(dict.fromkeys(models))}, "the studies")
        self.laboratory = compare.Laboratory(self.settings, say)
        self._own: dict[str, Settings] = {}
        self.start()

    def start(self) -> None:
        """Before a study: none has asked for runs yet, and the ranks of the last one's are no longer held."""
        self.rows: list[dict[str, Any]] = []
        self._done: dict[str, tuple[Path, dict[str, ModelResult]]] = {}

    @property
    def domains(self) -> tuple[str, str]:
        """Names of domain A and B."""
        return self.laboratory.base.dataset.source.domains

    def written(self, rows: Sequence[Row] = ()) -> str:
        """What a language model wrote, and what was made without one; by row where that differs."""
        notes: dict[str, list[str]] = {}
        for row in rows:
            own = self.own(row, self.settings.seeds[0])
            notes.setdefault(manifest.llm_note(own), []).append(row.name)
        if len(notes) > 1:
            return "; ".join(f"{', '.join(names)}: {note}" for note, names in notes.items())
        return next(iter(notes), manifest.llm_note(self.settings))

    def asked(self, rows: Sequence[Row] = ()) -> bool:
        """Whether a language model wrote items or profiles of any row."""
        return "LLM: " in self.written(rows)

    def own(self, row: Row, seed: int) -> Settings:
        """The settings of a row and seed, read once."""
        key = self._key(row, seed)
        if key not in self._own:
            self._own[key] = settings_of(self.settings, row, seed)
        return self._own[key]

    @staticmethod
    def _key(row: Row, seed: int) -> str:
        return json.dumps([row.model, dict(row.keys), seed], sort_keys=True)

    def experiment(self, row: Row, seed: int) -> comparison.Experiment:
        """The experiment of a row and seed, its data made."""
        return self.laboratory.experiment(self.own(row, seed), row.name)

    def runs(self, rows: Sequence[Row]) -> dict[str, dict[str, list[ModelResult]]]:
        """Train, resume or read every row with every seed; by candidates, then by row, a run per seed.

        Raises: DataError if rows differ in split, targets or candidates.
        """
        found: dict[str, dict[str, list[ModelResult]]] = {}
        pairs = list(itertools.product(rows, self.settings.seeds))
        for n, (row, seed) in enumerate(pairs, 1):
            run_dir, results = self._run(row, seed, f"{n} of {len(pairs)}")
            for candidates, result in results.items():
                named = replace(result, name=row.name)
                found.setdefault(candidates, {}).setdefault(row.name, []).append(named)
                self.rows.extend(ablation.run_rows(row.name, seed, candidates, named, run_dir))
        for runs in found.values():
            for same_seed in zip(*runs.values(), strict=True):
                significance.check_comparable([run.ranks for run in same_seed])
        for note in ablation.alike(found.get(self.settings.candidates, {})):
            self.say(note)
        if ablation.SAMPLED not in found:
            self.say(f"note: {ablation.SAMPLED} is left out, a domain has too few items for it")
        return found

    def _run(self, row: Row, seed: int, place: str) -> tuple[Path, dict[str, ModelResult]]:
        key = self._key(row, seed)
        if key not in self._done:
            experiment = self.experiment(row, seed)
            result = train_model(experiment, row.model)
            score = domain_metrics(result.ranks, (10,))["ndcg@10"].iloc[-1]
            self.say(f"{place}: {row.name}, seed {seed}: ndcg@10 {score:.4f}, ended by {result.status}")
            ranked = ablation.ranked(experiment, row.model, result)
            results = {candidates: replace(result, ranks=ranks) for candidates, ranks in ranked.items()}
            self._done[key] = run_directory(experiment, row.model), results
        return self._done[key]

    def note(self, candidates: str, rows: Sequence[Row]) -> str:
        """What a reader must know of any table of ours: seeds, candidates, split, language model and tuning."""
        models = list(dict.fromkeys(row.model for row in rows))
        seeds = ", ".join(map(str, self.settings.seeds))
        of = f"Mean ± standard deviation over seeds {seeds}" if len(self.settings.seeds) > 1 else f"Seed {seeds}"
        base = self.laboratory.base
        ranked = result_tables.candidates_in_words(candidates, base.seen_items, base.seen_why)
        return (
            f"{of}; test targets, leave-one-out (split {base.split_hash[:8]}), "
            f"candidates: {ranked}. {self.written(rows)}. "
            f"{budget_note(self.settings, models)}{self.unread(rows)}"
        )

    def unread(self, rows: Sequence[Row]) -> str:
        """`ablation.unread` of the models of these rows."""
        keys = {model: [row.keys for row in rows if row.model == model] for model in METHODS}
        return "".join(f" {note}" for model in METHODS if (note := ablation.unread(self.settings, model, keys[model])))

    def titled(self, title: str) -> str:
        """A heading with the data set."""
        return f"{title}: {self.settings.dataset}"


def settings_of(settings: Settings, row: Row, seed: int) -> Settings:
    """The settings of a row and seed.

    Raises: ConfigError naming the row, for keys that it does not take.
    """
    own = with_keys(settings, {"model": row.model}, "the studies")
    return ablation.settings_of(own, row.name, row.keys, seed)


def metric_table(runs: Runs, name: str, title: str, note: str, label: str) -> ResultTable:
    """Mean and deviation over seeds, a row per model, columns per domain and for all users; names under ``label``."""
    shown = result_tables.mean_table(runs, title=title)
    keep = [0, *(place for place, column in enumerate(shown.columns) if column.name in METRICS)]
    columns = [Column(label), *(replace(shown.columns[place], best="max") for place in keep[1:])]
    rows = [tuple(row[place] for place in keep) for row in shown.rows]
    capped = f" † in at least one seed {curves.CAP_LEGEND}." if any("†" in str(row[0]) for row in rows) else ""
    return ResultTable(name, title, columns, rows, note + capped)


def tests_table(runs: Runs, reference: str, title: str, metric: str = "ndcg@10") -> ResultTable:
    """One row per other model and domain: the difference, and both tests, over users and over seeds."""
    found = significance.paired_tests_over_seeds(runs, reference, metric)
    table = result_tables.significance_table(found, reference, metric, runs)
    over_seeds = significance.tests_over_seeds(runs, reference, metric)
    columns = [Column(name, "over seeds", 4, form="p") for name in ("p", "p (Holm)")]
    pairs = over_seeds[["p", "p_holm"]].itertuples(index=False)
    rows = [(*row, *pair) for row, pair in zip(table.rows, pairs, strict=True)]
    note = (
        f"{reference} against the others, {metric}, each user's mean over seeds. {table.note} Over seeds: one-sided "
        f"Welch t-test of the means, whether {reference} is higher; Holm over all rows."
    )
    return ResultTable("tests", title, [*table.columns, *columns], rows, note)


def compared(
    bench: Bench, name: str, title: str, label: str, rows: Sequence[Row], reference: str | None, numbers: str | None
) -> dict[str, ResultTable]:
    """Tables of metrics and of tests for all candidates; those of the settings come first, as ``table``.

    Args:
        label: what stands over the names.
        reference: the row to test against all others; None leaves the tests out.
        numbers: the paper's table to stand beside ours.
    """
    found: dict[str, ResultTable] = {}
    for candidates, runs in bench.runs(rows).items():
        ending = "" if candidates == bench.settings.candidates else f"-{candidates}"
        heading = bench.titled(title) + (f", {candidates}" if ending else "")
        table = metric_table(runs, name + ending, heading, bench.note(candidates, rows), label)
        if numbers:
            theirs = paper_numbers.printed(numbers, bench.domains)
            why = paper_numbers.difference(bench.settings, theirs, candidates, bench.asked(rows))
            table = paper_numbers.beside(table, theirs, why)
        found[f"table{ending}"] = table
        if reference is not None and len(runs) > 1:
            found[f"tests{ending}"] = tests_table(runs, reference, f"{heading}, significance")
    return found


def long(table: ResultTable, label: str) -> pd.DataFrame:
    """Our part of a table of metrics with a row per cell: ``label``, ``domain``, ``metric``, mean, deviation."""
    rows = []
    for row in table.rows:
        for column, value in zip(table.columns, row, strict=True):
            if column.pair == "deviation" and value is not None:
                about = {label: str(row[0]).removesuffix("†"), "domain": column.group, "metric": column.name}
                mean, deviation = value if isinstance(value, tuple) else (value, None)
                rows.append({**about, "mean": mean, "deviation": deviation})
    return pd.DataFrame(rows).astype({"mean": float, "deviation": float})


def bars_of(table: ResultTable, label: str) -> tuple[Any, pd.DataFrame]:
    """Bars of ndcg@10 by domain, and the numbers they draw."""
    drawn = long(table, label)
    drawn = drawn[drawn["metric"] == "ndcg@10"].reset_index(drop=True)
    return figures.bars(drawn, label, "mean", "domain", f"ndcg@10 ({of_seeds(drawn)})"), drawn


def curves_of(table: ResultTable, label: str) -> tuple[Any, pd.DataFrame]:
    """Both metrics over the values tried, and the numbers drawn."""
    drawn = long(table, label)
    drawn[label] = drawn[label].str.rpartition(" ")[2]
    drawn = drawn[drawn["domain"] != OVERALL].reset_index(drop=True)
    return figures.curves(drawn, label, "metric", of_seeds(drawn)), drawn


def of_seeds(drawn: pd.DataFrame) -> str:
    """What the axis of means says of them."""
    return "mean over seeds" if drawn["deviation"].notna().any() else "one seed"


def with_column(table: ResultTable, column: Column, values: Mapping[str, Any]) -> ResultTable:
    """The table with one more column after the names."""
    rows = [(row[0], values.get(str(row[0]).removesuffix("†")), *row[1:]) for row in table.rows]
    return replace(table, columns=[table.columns[0], column, *table.columns[1:]], rows=rows)
