"""Each table and figure of the paper: what it makes of its runs, or of the data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt.data import statistics, two_domains
from recbole_edt.data.split import domain_ratio, training_rows
from recbole_edt.data.two_domains import OVERALL
from recbole_edt.evaluate import results
from recbole_edt.evaluate.metrics import domain_metrics
from recbole_edt.experiments import audit, paper_numbers
from recbole_edt.experiments.rows import LLM_EDT, WITHOUT, whole
from recbole_edt.experiments.trials import (
    METRICS,
    Bench,
    Outcome,
    Row,
    bars_of,
    compared,
    curves_of,
    tests_table,
    with_column,
)
from recbole_edt.files import read_json
from recbole_edt.llm import prices
from recbole_edt.pipeline import manifest, stages
from recbole_edt.profile.settings import infix
from recbole_edt.render import figures
from recbole_edt.render.tables import Column, ResultTable
from recbole_edt.text.vectors import EmbeddingTable
from recbole_edt.train.run import run_directory

RATIOS = {"r >= 0.95": (0.95, 1.01), "0.9 <= r < 0.95": (0.9, 0.95), "r < 0.9": (-0.01, 0.9)}
"""The conditions of table 7."""


def table2(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Overall comparison; the paper's models that are not here are named."""
    reference = LLM_EDT if LLM_EDT in [row.name for row in rows] else None
    tables = compared(bench, "table2", "Overall comparison", "model", rows, reference, "table2")
    lacking = paper_numbers.missing(paper_numbers.printed("table2", bench.domains), [row.name for row in rows])
    if lacking:
        said = f" Of the paper's models these were not run here: {', '.join(lacking)}."
        tables = {key: replace(one, note=one.note + said * key.startswith("table")) for key, one in tables.items()}
    return Outcome(tables, *bars_of(tables["table"], "model"))


def table3(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Ablation."""
    tables = compared(bench, "table3", "Ablation", "variant", rows, rows[0].name, "table3")
    return Outcome(tables, *bars_of(tables["table"], "variant"))


def table4(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Tau, with the rows that it lets in."""
    tables = compared(bench, "table4", "Threshold tau of Eq. 6", "tau", rows, None, "table4")
    n_inserted = {row.name: _counts(bench, row)["inserted"] for row in rows}
    drawn = curves_of(tables["table"], "tau")
    column = Column("rows inserted")
    return Outcome({key: with_column(one, column, n_inserted) for key, one in tables.items()}, *drawn)


def table5(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Number of clusters."""
    tables = compared(bench, "table5", "Clusters K of the augmenter", "K", rows, None, "table5")
    return Outcome(tables, *curves_of(tables["table"], "K"))


def table7(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Metrics while more of the kept items go in, and of the users of each condition on r under the last of them."""
    tables = compared(bench, "table7", "Share of injected items", "items", rows, None, None)
    after = {row.name: _counts(bench, row)["mean_ratio_after"] for row in rows}
    column = Column("mean r", decimals=3)
    figure, drawn = curves_of(tables["table"], "injected")
    found = {key: with_column(one, column, after) for key, one in tables.items()}
    for candidates, runs in bench.runs(rows[-1:]).items():
        ending = "" if candidates == bench.settings.candidates else f"-{candidates}"
        found[f"table-users{ending}"] = _by_ratio(bench, runs[rows[-1].name], candidates, ending)
    return Outcome(found, figure, drawn)


def _by_ratio(bench: Bench, runs: Sequence[results.ModelResult], candidates: str, ending: str) -> ResultTable:
    """Metrics of users by their own domain ratio, over raw training rows."""
    data = before_augmentation(bench)
    ratio = pd.Series(domain_ratio(training_rows(data)), index=data.users)
    names = [*data.domains, OVERALL]
    columns = [Column("users with"), Column("users")]
    columns += [Column(metric, name, 4, pair="deviation") for name in names for metric in METRICS]
    rows = []
    for label, (low, high) in RATIOS.items():
        parts = [
            run.ranks[ratio.loc[run.ranks["user"]].between(low, high, inclusive="left").to_numpy()] for run in runs
        ]
        for part, run in zip(parts, runs, strict=True):
            part.attrs = {**run.ranks.attrs, "domains": list(data.domains)}
        metrics = [domain_metrics(part, (10,)) for part in parts]
        cells = [mean_and_deviation([float(one[m].loc[name]) for one in metrics]) for name in names for m in METRICS]
        rows.append((label, len(parts[0]), *cells))
    title = bench.titled("Users by domain ratio r") + (f", {candidates}" if ending else "")
    table = ResultTable(f"table7-users{ending}", title, columns, rows, bench.note(candidates, whole(bench.settings)))
    numbers = paper_numbers.printed("table7", bench.domains)
    why = paper_numbers.difference(bench.settings, numbers, candidates, bench.asked())
    said = "The paper's conditions on r may also be mean ratios of its data while items are injected; it does not say."
    return paper_numbers.beside(table, numbers, f"{why} {said}")


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), deviation


def table8(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Several language models; vectors of items are those of the stage embed for all."""
    tables = compared(bench, "table8", "Language models", "language model", rows, rows[0].name, "table8")
    said = " Item vectors are the same in every row; the paper changes the embedding model too."
    tables = {key: replace(one, note=one.note + said * key.startswith("table")) for key, one in tables.items()}
    return Outcome(tables, *bars_of(tables["table"], "language model"))


def table9(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Backbones; significance is of LLM-EDT against the backbone alone, and the others, for each backbone."""
    tables = compared(bench, "table9", "Backbones", "model", rows, None, "table9")
    for candidates, runs in bench.runs(rows).items():
        ending = "" if candidates == bench.settings.candidates else f"-{candidates}"
        for backbone in dict.fromkeys(row.keys["backbone"] for row in rows if "backbone" in row.keys):
            own = {name: several for name, several in runs.items() if backbone in name}
            heading = bench.titled(f"Backbone {backbone}, significance")
            tables[f"tests-{backbone}{ending}"] = tests_table(own, f"{LLM_EDT} ({backbone})", heading)
    return Outcome(tables, *bars_of(tables["table"], "model"))


def audited(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """The released code's protocol on the weights of LLM-EDT, every seed."""
    bench.runs(rows)
    tables = {}
    for seed in bench.settings.seeds:
        experiment = bench.experiment(rows[0], seed)
        run_dir = run_directory(experiment, "LLMEDT")
        if not audit.is_current(run_dir, experiment.settings):
            audit.audit(experiment.settings, bench.say)
        tables[seed] = audit.read(run_dir)
    every = pd.concat(tables.values(), ignore_index=True)
    domains = list(every["domain"].unique())
    columns = [Column("protocol"), Column("inserted targets", decimals=1, form="percent")]
    columns += [Column(metric, domain, 4, pair="deviation") for domain in domains for metric in METRICS]
    found = []
    for protocol, part in every.groupby("protocol", sort=False):
        by_domain = {domain: part[part["domain"] == domain] for domain in domains}
        cells = [mean_and_deviation(by_domain[d][m].to_list()) for d in domains for m in METRICS]
        honest = protocol == audit.PROTOCOLS[0].name
        name = str(protocol) if honest else f"{protocol} ({audit.LABEL.lower()})"
        found.append((name, float(part["inserted_targets"].mean()), *cells))
    note = (
        f"{bench.note('domain', rows)} The same weights in every row: each row after the first measures a leak "
        f"of the released code's protocol, and must not stand beside another model's numbers.{audit_notes(tables)}"
    )
    table = ResultTable("audit", bench.titled("Audit of the protocol"), columns, found, note)
    return Outcome({"table": table}, *bars_of(table, "protocol"))


def audit_notes(tables: Mapping[int, pd.DataFrame]) -> str:
    """`audit.notes` of the audits of several seeds, each once, with its seeds where it is not true of all."""
    seeds: dict[str, list[int]] = {}
    for seed, table in tables.items():
        for note in audit.notes(table):
            seeds.setdefault(note, []).append(seed)
    where = {note: f" (seed {', '.join(map(str, of))})" if len(of) < len(tables) else "" for note, of in seeds.items()}
    return "".join(f" Note: {note}{where[note]}." for note in seeds)


def _counts(bench: Bench, row: Row) -> dict[str, Any]:
    """What augmentation counted for a row's data."""
    own = bench.own(row, bench.settings.seeds[0])
    bench.laboratory.make(own, row.name)
    return read_json(stages.augmented_folder(own) / "augment.json")["counts"]


def before_augmentation(bench: Bench) -> two_domains.TwoDomainData:
    """The raw data set that was augmented: without the items that ``embed.missing_text`` drops."""
    table = EmbeddingTable.load(stages.item_vectors(bench.settings))
    return stages.with_text(bench.settings, table)


def table1(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Users, items and mean length, before and after augmentation."""
    before, after = before_augmentation(bench), stages.read_augmented(bench.settings)
    columns = [Column("domain")]
    columns += [Column(name, when) for when in ("before", "after") for name in ("users", "items")]
    counts = zip(_domain_counts(before), _domain_counts(after), strict=True)
    found = [(domain, *a, *b) for domain, (a, b) in zip(before.domains, counts, strict=True)]
    numbers = paper_numbers.printed("table1", before.domains)
    theirs = np.reshape(numbers.rows["data"], (2, 4)).tolist()
    columns += [Column(name, f"paper: {when}") for when in ("before", "after") for name in ("users", "items")]
    found = [(*ours, *printed) for ours, printed in zip(found, theirs, strict=True)]
    lengths = paper_numbers.mean_lengths(before.domains)
    counted = statistics.listed(statistics.card(before))
    note = (
        "Users with an interaction in the domain, and its items; after augmentation with inserted rows and items that "
        f"were written. Mean length of a history {_length(before):.2f} before, {_length(after):.2f} after (paper: "
        f"{lengths['before']:.2f} and {lengths['after']:.2f}). Before: {counted}. "
        f"{manifest.llm_note(bench.settings)}. "
        f"Paper: Table 1, {' - '.join(numbers.domains)}. "
        + paper_numbers.difference(bench.settings, numbers, "sampled-100", bench.asked())
    )
    return Outcome({"table": ResultTable("table1", bench.titled("Data statistics"), columns, found, note)})


def _domain_counts(data: two_domains.TwoDomainData) -> list[tuple[int, int]]:
    in_b = data.item_domain[data.item] == 1
    n_items = np.bincount(data.item_domain, minlength=2)
    return [(len(np.unique(data.user[in_b == d])), int(n_items[d])) for d in (0, 1)]


def _length(data: two_domains.TwoDomainData) -> float:
    return len(data.user) / len(data.users)


def table6(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Cosine of each user's profile vector with and without inserted rows, by the share that goes in."""
    seed = bench.settings.seeds[0]
    without = Row("w/o Aug.", "LLMEDT", WITHOUT)
    vectors = {row.name: _profiles(bench, row, seed) for row in (without, *rows)}
    found = []
    for row in rows:
        data = stages.read_augmented(bench.own(row, seed))
        similar = pd.Series(cosines(vectors[without.name], vectors[row.name], data.users), index=data.users).dropna()
        touched = data.users[np.unique(data.user[data.generated])]
        of_touched = similar[similar.index.isin(touched)]
        found.append((row.name, len(similar), similar.mean(), len(of_touched), of_touched.mean()))
    columns = [Column("items"), Column("users", "all users"), Column("similarity", "all users", 4)]
    columns += [Column("users", "users with inserted rows"), Column("similarity", "users with inserted rows", 4)]
    note = (
        "Mean cosine between the vectors of a user's profile written from raw training rows and from augmented ones. "
        f"{manifest.llm_note(bench.settings)}."
    )
    table = ResultTable("table6", bench.titled("Profiles before and after injection"), columns, found, note)
    numbers = paper_numbers.printed("table6", bench.domains)
    why = paper_numbers.difference(bench.settings, numbers, "sampled-100", bench.asked())
    drawn = pd.DataFrame(
        found, columns=["injected", "users", "all users", "users_inserted", "users with inserted rows"]
    )
    shown = drawn.melt("injected", ["all users", "users with inserted rows"], "of", "similarity")
    figure = figures.bars(shown, "injected", "similarity", "of", "mean cosine (no unit)")
    return Outcome({"table": paper_numbers.beside(table, numbers, why)}, figure, shown)


def _profiles(bench: Bench, row: Row, seed: int) -> EmbeddingTable:
    own = bench.own(row, seed)
    bench.laboratory.make(own, row.name)
    name = f"{own.augmented}.{infix(own.profile.pipeline)}uservec.safetensors"
    return EmbeddingTable.load(stages.augmented_folder(own) / name)


def cosines(first: EmbeddingTable, second: EmbeddingTable, users: np.ndarray) -> np.ndarray:
    """``[U]`` cosine of each user's two vectors; NaN for a user without a vector in either."""
    a, b = (table.lookup(users).astype(np.float64) for table in (first, second))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.full(len(users), np.nan), where=norms > 0)


def cost(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """What was asked of models, and paid, per user."""
    n_users = len(stages.read(bench.settings).users)
    found = []
    for stage, counts in manifest.stage_counts(bench.settings).items():
        used = counts.get("used", {})
        for kind, one in used.items():
            usd = one["cost_usd"]
            per_user = None if usd is None else usd / n_users
            printed = prices.paper_usd(stage, kind)
            tokens = one["prompt_tokens"], one["completion_tokens"]
            found.append((stage, prices.WORDS[kind], one["calls"], *tokens, usd, per_user, printed))
        if not used:
            found.append((stage, "offline", 0, 0, 0, 0.0, 0.0, prices.PAPER_USD.get(stage)))
    columns = [Column("stage"), Column("asked for"), Column("calls"), Column("tokens in"), Column("tokens out")]
    columns += [Column("cost (US dollars)", decimals=4), Column("per user (US dollars)", decimals=6)]
    columns += [Column("paper: per user (US dollars)", decimals=6)]
    note = (
        f"{n_users:,} users. What an answer cost counts whenever it was paid. {manifest.llm_note(bench.settings)}. "
        "Paper: section 4.9, with DeepSeek's prices of its time; not comparable where prompts, texts or prices differ."
    )
    return Outcome({"table": ResultTable("cost", bench.titled("API cost"), columns, found, note)})
