"""Tables, figures and paired tests from saved ranks: which model ranks better, where, and how sure that is.

Needs neither torch nor RecBole. Names of models, domains and groups may come from data and are never trusted:
they are escaped wherever the output has a syntax of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy import stats

from recbole_edt import figures
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.evaluation import (
    GROUP_LABELS,
    METRICS,
    OVERALL,
    TOPK,
    domain_metrics,
    domains_of,
    group_metrics,
    per_user,
)
from recbole_edt.files import write_json, write_safely
from recbole_edt.tables import Column, ResultTable, code, escape_markdown, groups_of

EARLY_STOPPING, EPOCH_CAP = "early stopping", "epoch cap"
DECIMALS = 4
RESAMPLES = 10_000
MOST = 10
"""Most runs that a figure can tell apart, and that are tested as one family."""
GROUP_NAMES = {
    "history": "length of history",
    "popularity": "popularity of the target",
    "ratio": "domain ratio",
    "target_domain_history": "history in the target's domain",
}
"""What the groupings of ``evaluation.standard_groups`` are called in a table."""
CAP_LEGEND = "ended by its epoch cap, not by early stopping: it may not have converged"

# Names of phases that fit above the curves.
_MOST_PHASES = 4
# Random counts alive at a time while resampling.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class ModelResult:
    """What a report needs of one trained model.

    Attributes:
        name: as shown.
        ranks: rank table of the test targets, with ``attrs`` as `evaluation.read_ranks` gives it.
        epochs: a row per epoch in the order of training: ``phase``, ``train_loss`` and validation metrics.
        status: what ended training: `EARLY_STOPPING`, `EPOCH_CAP`, or a word for models that are not trained.
        best_epoch: 1-based row of ``epochs`` whose weights were tested.
        seconds: of training, without validation and testing.
        n_parameters: trainable or not, without fixed text vectors.
        note: free text.
        max_epochs: most epochs that the settings allow; None if it is not known.
        valid_metric: which chose the epoch that was tested.
    """

    name: str
    ranks: pd.DataFrame
    epochs: pd.DataFrame | None = None
    status: str = EARLY_STOPPING
    best_epoch: int | None = None
    seconds: float = float("nan")
    n_parameters: int = 0
    note: str = ""
    max_epochs: int | None = None
    valid_metric: str = "ndcg@10"


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
    rows = [(name, *row) for name, row in zip(_marked_names(runs), table.to_numpy(), strict=True)]
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


def print_result(table: ResultTable, subtitle: str = "", file: IO[str] | None = None) -> None:
    """Print any table of results.

    The best are bold, or starred where there is no bold. A terminal too narrow for all groups of columns side by side
    gets them one below the other.

    Args:
        table: what to print; its note comes last.
        subtitle: a second line below the title.
        file: where to print; None is the standard output.
    """
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = 1000
    for line in filter(None, (table.title, subtitle)):
        console.print(_text(console, line))
    for part in _fitting(console, table):
        console.print(part, end="\n\n")
    if console.color_system is None and table.best().any():
        console.print(Text("* best of its " + table.best_of))
    if table.note:
        console.print(_text(console, table.note), soft_wrap=True)


def what_was_ranked(ranks: pd.DataFrame) -> str:
    """Users and candidates of a rank table in words."""
    return f"{len(ranks):,} users, candidates: {candidates_in_words(str(ranks.attrs.get('candidates', 'unknown')))}"


def candidates_in_words(mode: str) -> str:
    """Who competes with the target, of a value of the key ``candidates``."""
    words = {"domain": "all real items of the target's domain", "all": "all real items of both domains"}
    if mode.startswith("sampled-"):
        return f"{mode.removeprefix('sampled-')} stored negatives of the target's domain"
    return words.get(mode, mode)


def group_table(runs: Sequence[ModelResult], metric: str = "ndcg@10") -> pd.DataFrame:
    """A metric by group: columns ``group``, ``label``, ``users`` and one per model; empty without labels."""
    _, k = parse_metric(metric)
    columns = {}
    for name, run in _by_name(runs).items():
        labels = {group: run.ranks[group] for group in GROUP_LABELS if group in run.ranks}
        columns[name] = group_metrics(run.ranks, labels, (k,)).set_index(["group", "label", "users"])[metric]
    return pd.concat(columns, axis=1, sort=False).reset_index()


def write_metrics(runs: Sequence[ModelResult], folder: Path, topk: Sequence[int] = TOPK) -> None:
    """Write ``metrics.csv``, a row per model and domain, and the same with settings as ``metrics.json``."""
    tables = {name: domain_metrics(run.ranks, topk) for name, run in _by_name(runs).items()}
    flat = pd.concat(tables, names=["model", "domain"]).reset_index()
    with write_safely(folder / "metrics.csv") as temporary:
        flat.to_csv(temporary, index=False, lineterminator="\n")
    write_json(folder / "metrics.json", {run.name: _as_json(run, tables[run.name]) for run in runs})


# ---- paired tests --------------------------------------------------------------------------------------------


def check_comparable(tables: Sequence[pd.DataFrame]) -> None:
    """Whether rank tables have one split, one set of candidates, and the same target for each user.

    Raises: DataError saying what differs.
    """
    first = tables[0].sort_values("user", kind="stable")
    for table in tables:
        for key in ("split_hash", "candidates", "candidates_hash"):
            _check_same(key, first.attrs, table.attrs)
        other = table.sort_values("user", kind="stable")
        if not np.array_equal(first["user"], other["user"]):
            n = len(set(first["user"]) ^ set(other["user"]))
            raise DataError(f"rank tables differ in their users ({n} are in one of them only); train both anew")
        n = int((first["item"].to_numpy() != other["item"].to_numpy()).sum())
        if n:
            raise DataError(f"rank tables differ in the targets of {n} users; evaluate both on one split")


def compare(
    ranks_a: pd.DataFrame, ranks_b: pd.DataFrame, metric: str = "ndcg@10", seed: int = 42
) -> dict[str, Any]:
    """Compare two models user by user.

    Args:
        ranks_a: rank table of the one model.
        ranks_b: rank table of the other, on the same targets and candidates.
        metric: such as ``ndcg@10``.
        seed: of the bootstrap.

    Returns: ``metric``, ``users``, ``mean_a``, ``mean_b``, ``difference`` (a - b), ``low`` and ``high`` (its
        bootstrap 95 % interval over users) and ``p`` (Wilcoxon signed rank, two-sided; users without a
        difference are left out).
    Raises: DataError if the tables cannot be compared, ConfigError for an unknown metric.
    """
    return compare_seeds([ranks_a], [ranks_b], metric, seed)


def compare_seeds(
    seeds_a: Sequence[pd.DataFrame], seeds_b: Sequence[pd.DataFrame], metric: str = "ndcg@10", seed: int = 42
) -> dict[str, Any]:
    """As ``compare``, of each user's mean over several trainings, the tables of one seed at one place in both."""
    for pair in zip(seeds_a, seeds_b, strict=True):
        check_comparable(pair)
    a, b = (np.mean([_values_by_user(ranks, metric) for ranks in seeds], axis=0) for seeds in (seeds_a, seeds_b))
    # Equal differences must tie in the test, whatever their rounding.
    difference = np.round(a - b, 12)
    low, high = bootstrap_interval(difference, seed)
    means = {"mean_a": float(a.mean()), "mean_b": float(b.mean()), "difference": float((a - b).mean())}
    return {"metric": metric, "users": len(a), **means, "low": low, "high": high, "p": _wilcoxon(difference)}


def bootstrap_interval(differences: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over `RESAMPLES` draws of the users with replacement."""
    value, count = np.unique(differences, return_counts=True)
    generator = np.random.default_rng(seed)
    n, block = len(differences), max(1, _BLOCK_ELEMENTS // len(value))
    # How often each distinct value is drawn is multinomial: the same bootstrap without drawing every user.
    means = [
        generator.multinomial(n, count / n, size=min(block, RESAMPLES - done)) @ value / n
        for done in range(0, RESAMPLES, block)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(pvalues: Sequence[float]) -> np.ndarray:
    """Holm's correction: p-values that may be held against one level although several were computed."""
    p = np.asarray(pvalues, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(corrected, 1)


def paired_tests(
    runs: Sequence[ModelResult], reference: str, metric: str = "ndcg@10", seed: int = 42
) -> pd.DataFrame:
    """Compare one model with every other, for all users and for each domain, Holm-corrected as one family.

    Returns: columns ``model`` (the other), ``domain``, ``users``, ``difference`` (reference - other), ``low``,
        ``high``, ``p`` and ``p_holm``.
    Raises: ConfigError if no run has the name ``reference``, DataError if the runs cannot be compared.
    """
    return paired_tests_over_seeds({name: [run] for name, run in _by_name(runs).items()}, reference, metric, seed)


def paired_tests_over_seeds(
    runs: Mapping[str, Sequence[ModelResult]], reference: str, metric: str = "ndcg@10", seed: int = 42
) -> pd.DataFrame:
    """As ``paired_tests``, of models that were each trained with the same seeds in the same order."""
    if reference not in runs:
        raise ConfigError(f"no model is called {reference!r}; there are {', '.join(runs)}")
    tables = {name: _by_domain([run.ranks for run in several]) for name, several in runs.items()}
    rows = [
        {"model": name, "domain": domain, **compare_seeds(own, tables[name][domain], metric, seed)}
        for name in runs
        for domain, own in tables[reference].items()
        if name != reference and len(own[0])
    ]
    columns = ["model", "domain", "users", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_holm=holm(table["p"].to_list()))


def tests_over_seeds(
    runs: Mapping[str, Sequence[ModelResult]], reference: str, metric: str = "ndcg@10"
) -> pd.DataFrame:
    """Whether a model's mean over seeds is higher than every other's, Holm-corrected as one family.

    Unlike ``paired_tests_over_seeds`` it asks whether another training would say the same, not other users.

    Returns: columns ``model`` (the other), ``domain``, ``seeds``, ``p`` (`one_sided`) and ``p_holm``; NaN where a
        model has a single seed.
    Raises: ConfigError if no run has the name ``reference``.
    """
    if reference not in runs:
        raise ConfigError(f"no model is called {reference!r}; there are {', '.join(runs)}")
    means = {
        name: {
            domain: [float(_values_by_user(ranks, metric).mean()) for ranks in tables if len(ranks)]
            for domain, tables in _by_domain([run.ranks for run in several]).items()
        }
        for name, several in runs.items()
    }
    rows = [
        {"model": name, "domain": domain, "seeds": len(own), "p": one_sided(own, means[name][domain])}
        for name in runs
        for domain, own in means[reference].items()
        if name != reference and own
    ]
    table = pd.DataFrame(rows, columns=["model", "domain", "seeds", "p"])
    return table.assign(p_holm=holm(table["p"].to_list()))


def one_sided(first: Sequence[float], second: Sequence[float]) -> float:
    """Welch's t-test of two samples: p is small where the mean of ``first`` is the higher one.

    Samples that do not vary and are equal give 1; fewer than two values give NaN.
    """
    # Means that are equal must not differ by their rounding.
    a, b = np.round(np.asarray(first, float), 12), np.round(np.asarray(second, float), 12)
    if min(len(a), len(b)) < 2:
        return float("nan")
    if not (np.ptp(a) or np.ptp(b)):  # a standard deviation of equal values need not be 0
        return 0.0 if a[0] > b[0] else 1.0
    moments = (one for sample in (a, b) for one in (sample.mean(), sample.std(ddof=1), len(sample)))
    return float(stats.ttest_ind_from_stats(*moments, equal_var=False, alternative="greater").pvalue)


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
        name: float(np.mean([_values_by_user(run.ranks, metric) for run in several])) for name, several in runs.items()
    }
    best = sorted(means, key=lambda name: (name != keep, -means[name]))[:most]
    return [name for name in runs if name in best]


def parse_metric(metric: str) -> tuple[str, int]:
    """``ndcg@10`` to its parts; ConfigError if it is no such name."""
    match = re.fullmatch(r"([a-z]+)@([1-9]\d*)", metric)
    if match is None or match[1] not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; use {', '.join(METRICS)} with a cut-off, as in ndcg@10")
    return match[1], int(match[2])


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


# ---- report and figure ---------------------------------------------------------------------------------------


def markdown_report(
    runs: Sequence[ModelResult],
    title: str,
    offline: str = "",
    reference: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    versions: Mapping[str, str] | None = None,
    reproduce: str = "",
    figure: str = "",
    k: int = 10,
    seed: int = 42,
) -> str:
    """The whole comparison as Markdown.

    Args:
        runs: the models.
        title: heading.
        offline: what stood in for a language model.
        reference: name of the model to test against all others; None leaves the tests out.
        settings: resolved settings by model.
        versions: of the libraries.
        reproduce: the command that gives these numbers.
        figure: path of the training curves, relative to the report.
        k: the cut-off of the tables.
        seed: of the bootstrap.
    """
    lines = (what_was_ranked(runs[0].ranks) + ".", offline)
    sections = [f"# {escape_markdown(title)}", *map(escape_markdown, lines)]
    for table in report_tables(runs, reference, k, seed):
        sections += [f"## {escape_markdown(table.title)}", table.markdown()]
    if figure:
        sections.append(f"![Validation {curves_metric(runs)} and training loss per epoch]({figure})")
    for name, values in (settings or {}).items():
        listed = (f"{key}: {values[key]}" for key in sorted(values))
        sections += [f"### Settings of {escape_markdown(name)}", code(listed)]
    if versions:
        sections += ["## Versions", code(f"{library} {version}" for library, version in versions.items())]
    if reproduce:
        sections += ["## How to reproduce", code(reproduce.splitlines())]
    return "\n\n".join(section for section in sections if section) + "\n"


def report_tables(
    runs: Sequence[ModelResult], reference: str | None = None, k: int = 10, seed: int = 42
) -> list[ResultTable]:
    """Results, groups of users, paired tests of ``reference`` with all others (None leaves them out), and models."""
    metric = f"ndcg@{k}"
    tables = [results_table(runs, k)]
    groups = group_table(runs, metric)
    if len(groups):
        tables.append(groups_table(groups, metric))
    if reference is not None and len(runs) > 1:
        named = {name: [run] for name, run in _by_name(runs).items()}
        tables.append(significance_table(paired_tests(runs, reference, metric, seed), reference, metric, named))
    return [*tables, models_table(runs)]


def groups_table(groups: pd.DataFrame, metric: str) -> ResultTable:
    """`group_table` to be shown, the best of each row marked."""
    models = [Column(str(name), "", DECIMALS, "max") for name in groups.columns[3:]]
    named = groups.assign(group=groups["group"].replace(GROUP_NAMES))
    rows = named.astype({"label": str}).to_numpy(dtype=object).tolist()
    return ResultTable("groups", f"{metric} by group", ["group", "label", "users", *models], rows, best_of="row")


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


def curves_metric(runs: Sequence[ModelResult]) -> str:
    """The metric that curves show: the one that chose epochs, or ndcg@10 where runs differ in that."""
    chosen = {run.valid_metric.lower() for run in runs if run.epochs is not None}
    return chosen.pop() if len(chosen) == 1 else "ndcg@10"


def plot_curves(runs: Sequence[ModelResult], path: Path) -> None:
    """Draw validation metric and training loss per epoch of every run that has them, as PNG and PDF.

    A dotted line marks the start of a run's next phase, a ring the epoch whose weights were tested.
    """
    metric = curves_metric(runs)
    figure, (upper, lower) = figures.new(10, 7, n_rows=2, sharex=True)
    for number, run in enumerate(runs):
        style = {**figures.line(number), "marker": ""}
        _draw_run(upper, run, metric, style)
        _draw_run(lower, run, "train_loss", style)
    _label_axes(upper, lower, metric)
    _name_phases(upper, [run for run in runs if run.epochs is not None and metric in run.epochs])
    capped = any(run.status == EPOCH_CAP for run in runs)
    figures.legend_below(figure, upper, "† ended by its epoch cap" if capped else None)
    figures.save(figure, path)


# ---- details -------------------------------------------------------------------------------------------------


def _by_name(runs: Sequence[ModelResult]) -> dict[str, ModelResult]:
    named = {run.name: run for run in runs}
    if len(named) < len(runs):
        raise ConfigError(f"two runs have one name among {', '.join(run.name for run in runs)}; rename one")
    return named


def _marked_names(runs: Sequence[ModelResult]) -> list[str]:
    return [run.name + "†" * (run.status == EPOCH_CAP) for run in runs]


def _text(console: Console, text: str, style: str = "") -> Text:
    """Text whose marks this terminal can show."""
    if not console.encoding.lower().startswith("utf"):
        text = text.replace("†", "+").replace("±", "+-")
    return Text(text, style)


def _fitting(console: Console, table: ResultTable) -> list[Table]:
    """One table with all groups side by side if the terminal is wide enough, else one table per group."""
    groups = [(first, first + width) for first, width in _spans(table.columns[1:])]
    whole = _rich_table(console, table, groups)
    wide = console.options.update(max_width=10_000)
    if console.measure(whole, options=wide).maximum <= console.width:
        return [whole]
    return [_rich_table(console, table, [group]) for group in groups]


def _spans(columns: Sequence[Column]) -> Iterator[tuple[int, int]]:
    """First place and width of each group, among all columns of the table; what has no group stands together."""
    place = 1
    for _, several in groupby(groups_of(columns), key=lambda group: group[0]):
        width = sum(width for _, width in several)
        yield place, width
        place += width


def _rich_table(console: Console, table: ResultTable, groups: Sequence[tuple[int, int]]) -> Table:
    """A block per group under its name; blocks are tables of their own, so that a heading can span columns."""
    outer = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    outer.add_column("")
    blocks = [_block(console, table, 0, 1)]
    for first, end in groups:
        outer.add_column(Text(table.columns[first].group), justify="center")
        blocks.append(_block(console, table, first, end))
    outer.add_row(*blocks)
    return outer


def _block(console: Console, table: ResultTable, first: int, end: int) -> Table:
    """The columns from ``first`` to before ``end``."""
    normal, star = ("", "") if console.color_system is not None else (" ", "*")
    block = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    columns = table.columns[first:end]
    for place, column in enumerate(columns, first):
        ending = normal if column.best else ""
        block.add_column(_text(console, column.name + ending), justify="right" if place else "left", no_wrap=True)
    for row, row_best in zip(table.shown(), table.best(), strict=True):
        cells = []
        for text, best, column in zip(row[first:end], row_best[first:end], columns, strict=True):
            ending = (star if best else normal) if column.best else ""
            cells.append(_text(console, text + ending, "bold" if best else ""))
        block.add_row(*cells)
    return block


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


def _check_same(key: str, first: Mapping[Any, Any], other: Mapping[Any, Any]) -> None:
    if key not in first or key not in other:
        raise DataError(f"a rank table does not say its {key}; read it with `read_ranks`, or evaluate again")
    if first[key] != other[key]:
        raise DataError(
            f"rank tables differ in {key} ({first[key]!r} and {other[key]!r}) and cannot be compared; "
            "evaluate both models in one run directory"
        )


def _values_by_user(ranks: pd.DataFrame, metric: str) -> np.ndarray:
    name, k = parse_metric(metric)
    ordered = ranks.sort_values("user", kind="stable")
    return per_user(ordered["higher"], ordered["tied"], name, k)


def _wilcoxon(difference: np.ndarray) -> float:
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference).pvalue)


def _by_domain(tables: Sequence[pd.DataFrame]) -> dict[str, list[pd.DataFrame]]:
    """The rows of all users, and of those of each domain."""
    parts = {domain: [ranks[ranks["domain"] == domain] for ranks in tables] for domain in domains_of(tables[0])}
    return {OVERALL: list(tables), **parts}


def _draw_run(axes: Any, run: ModelResult, column: str, style: Mapping[str, Any]) -> None:
    epochs = run.epochs
    if epochs is None or column not in epochs:
        return
    x, y = np.arange(1, len(epochs) + 1), epochs[column].to_numpy(dtype=float)
    starts = list(_later_phases(run))
    label: str | None = figures.plain(_marked_names([run])[0])
    # A phase has a loss of its own, so the line is broken between them.
    for whole in np.split(np.arange(len(x)), starts):
        part = whole[np.isfinite(y[whole])]  # not every epoch is validated
        axes.plot(x[part], y[part], label=label, **{**style, "marker": "." if len(part) == 1 else ""})
        label = None
    for start in starts:
        axes.axvline(start + 0.5, color=style["color"], linestyle=":", linewidth=1)
    if run.best_epoch is not None and 1 <= run.best_epoch <= len(x):
        best = run.best_epoch - 1
        axes.plot(x[best], y[best], "o", markersize=9, markerfacecolor="none", color=style["color"])


def _later_phases(run: ModelResult) -> dict[int, str]:
    """Name of each phase but the first, by its first row."""
    if run.epochs is None or "phase" not in run.epochs:
        return {}
    phase = run.epochs["phase"].astype(str).to_numpy()
    return {int(start): phase[start] for start in np.flatnonzero(phase[1:] != phase[:-1]) + 1}


def _name_phases(axes: Any, runs: Sequence[ModelResult]) -> None:
    """Names above the axes, where they hide no curve, one above the other; none if there are too many for that."""
    found = [(run.name, *phase) for run in runs for phase in _later_phases(run).items()]
    if len(found) > _MOST_PHASES:
        return
    middle = sum(axes.get_xlim()) / 2
    for place, (name, start, phase) in enumerate(found):
        short = name if len(name) <= 40 else name[:39] + "…"
        look: Any = {"va": "bottom", "ha": "left" if start + 0.5 < middle else "right", "fontsize": 8}
        where: Any = {"xycoords": ("data", "axes fraction"), "xytext": (0, 2 + 11 * place)}
        text = figures.plain(f"{short}: {phase}")
        axes.annotate(text, (start + 0.5, 1), textcoords="offset points", color="#333333", **where, **look)
    axes.set_title(axes.get_title(loc="left"), fontsize=11, loc="left", pad=6 + 11 * len(found))


def _label_axes(upper: Any, lower: Any, metric: str) -> None:
    marks = "a ring marks the epoch that was tested, a dotted line the start of a next phase"
    upper.set_title(f"Training; {marks}", fontsize=11, loc="left")
    upper.set_ylabel(f"validation {metric}")
    lower.set_ylabel("training loss (comparable\nwithin a model and phase)")
    lower.set_xlabel("epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)
    lowest, highest = lower.dataLim.intervaly
    if 0 < 5 * lowest < highest:  # losses of several kinds; the alignment loss may also be negative
        lower.set_yscale("log", subs=[2, 5])
        lower.yaxis.set_major_formatter("{x:g}")
        lower.yaxis.set_minor_formatter("{x:g}")
    lower.grid(which="minor")
