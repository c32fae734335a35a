"""Tables, figures and paired tests from saved ranks: which model ranks better, where, and how sure that is.

Needs neither torch nor RecBole. Names of models, domains and groups may come from data and are never trusted:
they are escaped wherever the output has a syntax of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from recbole_edt.evaluate.metrics import GROUP_LABELS, TOPK, domain_metrics, group_metrics
from recbole_edt.evaluate.results import EARLY_STOPPING, EPOCH_CAP, ModelResult, marked_names
from recbole_edt.evaluate.significance import (
    RESAMPLES,
    check_comparable,
    paired_tests_over_seeds,
    parse_metric,
    runs_by_name,
    values_by_user,
)
from recbole_edt.files import write_json, write_safely
from recbole_edt.render.console import print_result
from recbole_edt.render.tables import Column, ResultTable, code, escape_markdown
from recbole_edt.report.curves import CAP_LEGEND

DECIMALS = 4
MOST = 10
"""Most runs that a figure can tell apart, and that are tested as one family."""
GROUP_NAMES = {
    "history": "length of history",
    "popularity": "popularity of the target",
    "ratio": "domain ratio",
    "target_domain_history": "history in the target's domain",
}
"""What the groupings of ``evaluation.standard_groups`` are called in a table."""


# ---- tables --------------------------------------------------------------------------------------------------


def comparison_table(runs: Sequence[ModelResult], k: int = 10) -> pd.DataFrame:
    """One row per model; columns (domain, metric), the domains in their order and then all users.

    Raises: DataError if the models were not ranked on the same targets and candidates.
    """
    check_comparable([run.ranks for run in runs])
    tables = [domain_metrics(run.ranks, (k,)).drop(columns="users") for run in runs]
    columns = pd.MultiIndex.from_product([tables[0].index, tables[0].columns], names=["domain", "metric"])
    names = pd.Index([run.name for run in runs], name="model")
    return pd.DataFrame(np.stack([table.to_numpy().ravel() for table in tables]), names, columns)


def results_table(runs: Sequence[ModelResult], k: int = 10, title: str = "Results") -> ResultTable:
    """`comparison_table` to be shown, the best of each column marked, and models that were ended by their cap."""
    table = comparison_table(runs, k)
    headings: list[Any] = table.columns.to_list()
    columns = [Column(metric, domain, DECIMALS, "max") for domain, metric in headings]
    rows = [(name, *row) for name, row in zip(marked_names(runs), table.to_numpy(), strict=True)]
    note = f"† {CAP_LEGEND}" if any(run.status == EPOCH_CAP for run in runs) else ""
    return ResultTable("results", title, ["model", *columns], rows, note)


def print_table(
    runs: Sequence[ModelResult], title: str, offline: str = "", k: int = 10, file: IO[str] | None = None
) -> None:
    """Print the comparison for a reader at a terminal, or as plain text into a pipe.

    Args:
        runs: the models.
        title: what was tested, such as the data set and the part.
        offline: what stood in for a language model; a second line.
        k: the cut-off.
        file: where to print; None is the standard output.
    """
    print_result(results_table(runs, k, f"{title}: {what_was_ranked(runs[0].ranks)}"), offline, file)


def what_was_ranked(ranks: pd.DataFrame) -> str:
    """Users and candidates of a rank table in words."""
    mode, seen, why = (str(ranks.attrs.get(key, "unknown")) for key in ("candidates", "seen_items", "seen_why"))
    return f"{len(ranks):,} users, candidates: {candidates_in_words(mode, seen, why)}"


def candidates_in_words(mode: str, seen_items: str, why: str) -> str:
    """Who competes with the target: by the key ``candidates``, and whether own earlier items do, and why."""
    words = {"domain": "all real items of the target's domain", "all": "all real items of both domains"}
    if mode.startswith("sampled-"):
        return f"{mode.removeprefix('sampled-')} stored negatives of the target's domain"
    own = {"masked": "without the user's own earlier items", "ranked": "the user's own earlier items among them"}
    return f"{words.get(mode, mode)}, {own[seen_items]} ({why})" if seen_items in own else words.get(mode, mode)


def group_table(runs: Sequence[ModelResult], metric: str = "ndcg@10") -> pd.DataFrame:
    """A metric by group: columns ``group``, ``label``, ``users`` and one per model; empty without labels."""
    _, k = parse_metric(metric)
    columns = {}
    for name, run in runs_by_name(runs).items():
        labels = {group: run.ranks[group] for group in GROUP_LABELS if group in run.ranks}
        columns[name] = group_metrics(run.ranks, labels, (k,)).set_index(["group", "label", "users"])[metric]
    return pd.concat(columns, axis=1, sort=False).reset_index()


def write_metrics(runs: Sequence[ModelResult], folder: Path, topk: Sequence[int] = TOPK) -> None:
    """Write ``metrics.csv``, a row per model and domain, and the same with settings as ``metrics.json``."""
    tables = {name: domain_metrics(run.ranks, topk) for name, run in runs_by_name(runs).items()}
    flat = pd.concat(tables, names=["model", "domain"]).reset_index()
    with write_safely(folder / "metrics.csv") as temporary:
        flat.to_csv(temporary, index=False, lineterminator="\n")
    write_json(folder / "metrics.json", {run.name: _as_json(run, tables[run.name]) for run in runs})


def highest(
    runs: Mapping[str, Sequence[ModelResult]], keep: str | None, metric: str = "ndcg@10", most: int = MOST
) -> list[str]:
    """Names of those with the highest mean over all users and seeds, in the order of ``runs``.

    Args:
        runs: a run per seed, by name.
        keep: a name that is always among them, if any.
        metric: such as ``ndcg@10``.
        most: how many names there may be.
    """
    means = {
        name: float(np.mean([values_by_user(run.ranks, metric) for run in several])) for name, several in runs.items()
    }
    best = sorted(means, key=lambda name: (name != keep, -means[name]))[:most]
    return [name for name in runs if name in best]


# ---- several seeds -------------------------------------------------------------------------------------------


def seeds_table(runs: Mapping[str, Sequence[ModelResult]], k: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean and sample standard deviation over seeds: a row per model, columns (domain, metric).

    One seed has no deviation: NaN.
    """
    tables = {
        name: pd.concat([comparison_table([run], k) for run in several], ignore_index=True)
        for name, several in runs.items()
    }
    mean, deviation = ({name: getattr(table, how)() for name, table in tables.items()} for how in ("mean", "std"))
    return pd.DataFrame(mean).T, pd.DataFrame(deviation).T


def mean_table(runs: Mapping[str, Sequence[ModelResult]], k: int = 10, title: str = "Results") -> ResultTable:
    """`seeds_table` to be shown, those marked of which any seed was ended by its cap."""
    mean, deviation = seeds_table(runs, k)
    headings: list[Any] = mean.columns.to_list()
    columns = [Column(metric, domain, DECIMALS, pair="deviation") for domain, metric in headings]
    names = [name + "†" * any(run.status == EPOCH_CAP for run in several) for name, several in runs.items()]
    pairs = np.stack([mean.to_numpy(), deviation.to_numpy()], axis=2)  # [variants, columns, 2]
    rows = [(name, *row) for name, row in zip(names, pairs, strict=True)]
    capped = f"; † in at least one seed {CAP_LEGEND}" * (names != list(runs))
    several_seeds = max(map(len, runs.values())) > 1
    note = ("mean ± standard deviation over seeds" if several_seeds else "one seed") + capped
    return ResultTable("means", title, ["variant", *columns], rows, note)


def variant_tables(runs: Mapping[str, Sequence[ModelResult]], title: str, k: int = 10) -> dict[str, ResultTable]:
    """``means`` of variants over seeds, and ``tests`` of the first against all others.

    Args:
        runs: by variant, a run per seed, seeds in the same order.
        title: of the means; who was ranked follows it.
        k: the cut-off.
    """
    first, metric = next(iter(runs)), f"ndcg@{k}"
    ranked = what_was_ranked(runs[first][0].ranks)
    tests = significance_table(paired_tests_over_seeds(runs, first, metric), first, metric, runs)
    over_seeds = ", each user's mean over seeds" * (len(runs[first]) > 1)
    return {
        "means": mean_table(runs, k, f"{title}: {ranked}"),
        "tests": replace(tests, title=f"{tests.title}{over_seeds}: {ranked}"),
    }


def variants_report(
    tables: Iterable[Mapping[str, ResultTable]],
    title: str,
    offline: str,
    variants: Sequence[str],
    settings: Sequence[str],
    versions: Mapping[str, str],
    reproduce: str,
) -> str:
    """Variants of one model over several seeds, as Markdown.

    Args:
        tables: `variant_tables` by candidates.
        title: heading.
        offline: what stood in for a language model.
        variants: a line per variant on what it changes.
        settings: lines on what all have in common.
        versions: of the libraries.
        reproduce: the command that gives these numbers.
    """
    sections = [f"# {escape_markdown(title)}", escape_markdown(offline)]
    for several in tables:
        for table, level in ((several["means"], "##"), (several["tests"], "###")):
            sections += [f"{level} {escape_markdown(table.title)}", table.markdown()]
    sections += ["## Variants", code(variants), "## Settings", code(settings)]
    sections += ["## Versions", code(f"{library} {version}" for library, version in versions.items())]
    return "\n\n".join([*sections, "## How to reproduce", code(reproduce.splitlines())]) + "\n"


def groups_tables(runs: Sequence[ModelResult], metric: str = "ndcg@10") -> list[ResultTable]:
    """`group_table` to be shown, the best of each row marked; none without groups."""
    groups = group_table(runs, metric)
    models = [Column(str(name), "", DECIMALS, "max") for name in groups.columns[3:]]
    named = groups.assign(group=groups["group"].replace(GROUP_NAMES))
    rows = named.astype({"label": str}).to_numpy(dtype=object).tolist()
    table = ResultTable("groups", f"{metric} by group", ["group", "label", "users", *models], rows, best_of="row")
    return [table] if rows else []


def significance_table(
    tests: pd.DataFrame, reference: str, metric: str, runs: Mapping[str, Sequence[ModelResult]]
) -> ResultTable:
    """`paired_tests` of these runs to be shown, with a warning if they were not trained alike."""
    columns = (
        "model",
        "domain",
        "users",
        Column("difference", decimals=DECIMALS, form="signed"),
        Column("95 % interval", decimals=DECIMALS, form="signed", pair="interval"),
        Column("p", decimals=DECIMALS, form="p"),
        Column("p (Holm)", decimals=DECIMALS, form="p"),
    )
    rows = tuple(
        (one.model, one.domain, one.users, one.difference, (one.low, one.high), one.p, one.p_holm)
        for one in tests.itertuples()
    )
    how = (
        "Paired over users. Interval: bootstrap of the mean difference, "
        f"{RESAMPLES:,} resamples. p: Wilcoxon signed rank, two-sided; Holm over all rows."
    )
    note = f"{how}{unlike_training(runs)}"
    return ResultTable("tests", f"{reference} against the others, {metric}", columns, rows, note)


def unlike_training(runs: Mapping[str, Sequence[ModelResult]]) -> str:
    """A warning, to follow other sentences, where only some runs met their cap or caps differ; empty otherwise."""
    every = [(name, run) for name, several in runs.items() for run in several]
    trained = [(name, run) for name, run in every if run.status in (EARLY_STOPPING, EPOCH_CAP)]
    capped = dict.fromkeys(name for name, run in trained if run.status == EPOCH_CAP)
    caps = {name: run.max_epochs for name, run in trained if run.max_epochs is not None}
    unlike = []
    if capped and {run.status for _, run in trained} > {EPOCH_CAP}:
        unlike.append(f"{', '.join(capped)} ended by the epoch cap, others by early stopping")
    if len(set(caps.values())) > 1:
        unlike.append(f"epochs allowed: {', '.join(f'{name} {n}' for name, n in caps.items())}")
    how = "; ".join(unlike)
    return f" NOTE: the runs were not trained alike ({how}); differences may be due to that." if unlike else ""


def models_table(runs: Sequence[ModelResult]) -> ResultTable:
    """How each model was trained."""
    time = Column("training time (s)", decimals=1)
    columns = ("model", "parameters", "epochs", "best epoch", "ended by", time, "note")
    rows = tuple(
        (
            run.name,
            run.n_parameters,
            None if run.epochs is None else len(run.epochs),
            run.best_epoch,
            run.status,
            run.seconds,
            run.note,
        )
        for run in runs
    )
    return ResultTable("models", "Models", columns, rows)


def _as_json(run: ModelResult, table: pd.DataFrame) -> dict[str, Any]:
    metrics = {
        domain: {name: None if np.isnan(value) else value for name, value in row.items()}
        for domain, row in table.astype(float).to_dict("index").items()
    }
    for domain, users in table["users"].items():
        metrics[domain]["users"] = int(users)
    return {
        "metrics": metrics,
        "ranked": dict(run.ranks.attrs),
        "status": run.status,
        "best_epoch": run.best_epoch,
        "seconds": None if np.isnan(run.seconds) else run.seconds,
        "n_parameters": run.n_parameters,
        "note": run.note,
    }
