"""Each table and figure of the paper: what it makes of its runs, or of the data alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_edt import atomic, audit, card, costs, embeddings, paper, plots, provenance, raw, report, stages, training
from recbole_edt.bench import (
    METRICS,
    Bench,
    Outcome,
    Row,
    Runs,
    bars_of,
    compared,
    curves_of,
    of_seeds,
    tests_table,
    with_column,
)
from recbole_edt.evaluation import GROUP_LABELS, OVERALL, domain_metrics, domains_of, group_metrics
from recbole_edt.files import read_json, write_json
from recbole_edt.profiles import infix
from recbole_edt.split import domain_ratio, training_rows
from recbole_edt.study_rows import LLM_EDT, WITHOUT, whole
from recbole_edt.tables import Column, ResultTable

RATIOS = {"r >= 0.95": (0.95, 1.01), "0.9 <= r < 0.95": (0.9, 0.95), "r < 0.9": (-0.01, 0.9)}
"""The conditions of table 7."""
N_MAPPED = 1000
"""Most items of a domain in figure 3."""
N_TIMED = 5


def table2(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Overall comparison; the paper's models that are not here are named."""
    reference = LLM_EDT if LLM_EDT in [row.name for row in rows] else None
    tables = compared(bench, "table2", "Overall comparison", "model", rows, reference, "table2")
    lacking = paper.missing(paper.printed("table2", bench.domains), [row.name for row in rows])
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


def _by_ratio(bench: Bench, runs: Sequence[report.ModelResult], candidates: str, ending: str) -> ResultTable:
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
        cells = [_mean_and_deviation([float(one[m].loc[name]) for one in metrics]) for name in names for m in METRICS]
        rows.append((label, len(parts[0]), *cells))
    title = bench.titled("Users by domain ratio r") + (f", {candidates}" if ending else "")
    table = ResultTable(f"table7-users{ending}", title, columns, rows, bench.note(candidates, whole(bench.settings)))
    numbers = paper.printed("table7", bench.domains)
    why = paper.difference(bench.settings, numbers, candidates, bench.asked())
    said = "The paper's conditions on r may also be mean ratios of its data while items are injected; it does not say."
    return paper.beside(table, numbers, f"{why} {said}")


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
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


def figure4(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Metrics by length of the history, per domain of the target."""
    runs = bench.runs(rows)[bench.settings.candidates]
    table = history_table(bench, runs, rows)
    drawn = pd.DataFrame(
        [
            {"history": f"{domain}, {label}", "model": column.name, "users": n, "mean": value[0], "deviation": value[1]}
            for domain, label, n, *values in table.rows
            for column, value in zip(table.columns[3:], values, strict=True)
        ]
    ).astype({"mean": float, "deviation": float})
    y = f"hit@10 ({of_seeds(drawn)})"
    return Outcome({"table": table}, plots.bars(drawn, "history", "mean", "model", y), drawn)


def history_table(bench: Bench, runs: Runs, rows: Sequence[Row]) -> ResultTable:
    """hit@10 of users by domain of the target and length of the training history; a bin of 5-10 holds 5 to 9."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    users: dict[tuple[str, str], int] = {}
    for name, several in runs.items():
        for run in several:
            for domain in domains_of(run.ranks):
                part = run.ranks[run.ranks["domain"] == domain]
                for one in group_metrics(part, {"history": part["history"]}, (10,)).to_dict("records"):
                    place = str(domain), str(one["label"])
                    users[place] = int(one["users"])
                    cells.setdefault(place, {}).setdefault(name, []).append(float(one["hit@10"]))
    order = [(d, label) for d in bench.domains for label in GROUP_LABELS["history"] if (d, label) in cells]
    found = [(*place, users[place], *(_mean_and_deviation(cells[place][name]) for name in runs)) for place in order]
    columns = [Column("domain"), Column("history"), Column("users")]
    columns += [Column(name, "hit@10", 4, "max", pair="deviation") for name in runs]
    note = (
        f"{bench.note(bench.settings.candidates, rows)} The length counts raw training interactions of both "
        "domains. The paper's figure 4 prints no numbers, and has LLMCDSR as a third model, which is not here."
    )
    return ResultTable("figure4", bench.titled("By length of the history"), columns, found, note, best_of="row")


def figure5(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """The weight of the alignment."""
    tables = compared(bench, "figure5", "Weight alpha of the alignment", "alpha", rows, None, None)
    said = " The paper's figure 5 prints no numbers; it calls 0.7 best for Cloth and 1.0 for Sport."
    tables = {key: replace(one, note=one.note + said) for key, one in tables.items()}
    return Outcome(tables, *curves_of(tables["table"], "alpha"))


def figure6(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Parameters and time of inference, of the first seed."""
    seed = bench.settings.seeds[0]
    bench.runs(rows)
    found = []
    for row in rows:
        experiment = bench.experiment(row, seed)
        speed = speed_of(experiment, row.model)
        run = read_json(training.run_directory(experiment, row.model) / "result.json")
        found.append({"model": row.name, "parameters": run["parameters"], "train_seconds": run["seconds"], **speed})
    drawn = pd.DataFrame(found)
    columns = [Column("model"), Column("parameters"), Column("time to rank (ms per user)", decimals=3, best="min")]
    columns += [Column("time to train (s)", decimals=1), Column("device")]
    keys = ["model", "parameters", "ms_per_user", "train_seconds", "device"]
    candidates = report.candidates_in_words(bench.settings.candidates)
    note = (
        f"Seed {seed}. Time: all test users, each target ranked among its candidates ({candidates}), the fastest of "
        f"{N_TIMED} passes. Parameters without fixed text vectors. The paper's figure 6 prints no numbers."
    )
    rows_of = [tuple(one[key] for key in keys) for one in found]
    table = ResultTable("figure6", bench.titled("Parameters and inference time"), columns, rows_of, note)
    return Outcome({"table": table}, plots.costs(drawn), drawn)


def speed_of(experiment: training.Experiment, name: str) -> dict[str, Any]:
    """How long a finished run takes to rank the test targets; measured once per device, and kept beside it."""
    run_dir = training.run_directory(experiment, name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    path = run_dir / "speed.json"
    known = read_json(path) if path.is_file() else {}
    known = known if isinstance(known, dict) else {}  # what is damaged is measured anew
    if device not in known:
        _, trainer, test_data = training.open_run(experiment, name, run_dir)
        seconds = []
        for _ in range(N_TIMED):
            start = time.perf_counter()
            trainer.evaluate(test_data, load_best_model=False)
            seconds.append(time.perf_counter() - start)
        n_users = len(trainer.evaluator.ranks)
        known[device] = {"ms_per_user": 1000 * min(seconds) / n_users, "users": n_users}
        write_json(path, known)
    return {**known[device], "device": device}


def audited(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """The released code's protocol on the weights of LLM-EDT, every seed."""
    bench.runs(rows)
    tables = {}
    for seed in bench.settings.seeds:
        experiment = bench.experiment(rows[0], seed)
        run_dir = training.run_directory(experiment, "LLMEDT")
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
        cells = [_mean_and_deviation(by_domain[d][m].to_list()) for d in domains for m in METRICS]
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


def before_augmentation(bench: Bench) -> atomic.TwoDomainData:
    """The raw data set that was augmented: without the items that ``embed.missing_text`` drops."""
    table = embeddings.EmbeddingTable.load(stages.item_vectors(bench.settings))
    return stages.with_text(bench.settings, table)


def table1(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Users, items and mean length, before and after augmentation."""
    before, after = before_augmentation(bench), stages.read_augmented(bench.settings)
    columns = [Column("domain")]
    columns += [Column(name, when) for when in ("before", "after") for name in ("users", "items")]
    counts = zip(_domain_counts(before), _domain_counts(after), strict=True)
    found = [(domain, *a, *b) for domain, (a, b) in zip(before.domains, counts, strict=True)]
    numbers = paper.printed("table1", before.domains)
    theirs = np.reshape(numbers.rows["data"], (2, 4)).tolist()
    columns += [Column(name, f"paper: {when}") for when in ("before", "after") for name in ("users", "items")]
    found = [(*ours, *printed) for ours, printed in zip(found, theirs, strict=True)]
    lengths = paper.mean_lengths(before.domains)
    counted = raw.listed(raw.card(before))
    note = (
        "Users with an interaction in the domain, and its items; after augmentation with inserted rows and items that "
        f"were written. Mean length of a history {_length(before):.2f} before, {_length(after):.2f} after (paper: "
        f"{lengths['before']:.2f} and {lengths['after']:.2f}). Before: {counted}. "
        f"{provenance.llm_note(bench.settings)}. "
        f"Paper: Table 1, {' - '.join(numbers.domains)}. "
        + paper.difference(bench.settings, numbers, "sampled-100", bench.asked())
    )
    return Outcome({"table": ResultTable("table1", bench.titled("Data statistics"), columns, found, note)})


def _domain_counts(data: atomic.TwoDomainData) -> list[tuple[int, int]]:
    in_b = data.item_domain[data.item] == 1
    n_items = np.bincount(data.item_domain, minlength=2)
    return [(len(np.unique(data.user[in_b == d])), int(n_items[d])) for d in (0, 1)]


def _length(data: atomic.TwoDomainData) -> float:
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
        f"{provenance.llm_note(bench.settings)}."
    )
    table = ResultTable("table6", bench.titled("Profiles before and after injection"), columns, found, note)
    numbers = paper.printed("table6", bench.domains)
    why = paper.difference(bench.settings, numbers, "sampled-100", bench.asked())
    drawn = pd.DataFrame(
        found, columns=["injected", "users", "all users", "users_inserted", "users with inserted rows"]
    )
    shown = drawn.melt("injected", ["all users", "users with inserted rows"], "of", "similarity")
    figure = plots.bars(shown, "injected", "similarity", "of", "mean cosine (no unit)")
    return Outcome({"table": paper.beside(table, numbers, why)}, figure, shown)


def _profiles(bench: Bench, row: Row, seed: int) -> embeddings.EmbeddingTable:
    own = bench.own(row, seed)
    bench.laboratory.make(own, row.name)
    name = f"{own.augmented}.{infix(own.profile.pipeline)}uservec.safetensors"
    return embeddings.EmbeddingTable.load(stages.augmented_folder(own) / name)


def cosines(first: embeddings.EmbeddingTable, second: embeddings.EmbeddingTable, users: np.ndarray) -> np.ndarray:
    """``[U]`` cosine of each user's two vectors; NaN for a user without a vector in either."""
    a, b = (table.lookup(users).astype(np.float64) for table in (first, second))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.full(len(users), np.nan), where=norms > 0)


def figure1(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """How many users have which domain ratio, before and after augmentation."""
    data = before_augmentation(bench), stages.read_augmented(bench.settings)
    before, after = map(card.ratio_histogram, data)
    counts = {"before": before["users_by_tenth"], "after": after["users_by_tenth"]}
    drawn = pd.DataFrame({"domain ratio": [f"{name}%" for name in card.bin_names()], **counts})
    note = (
        "Users by r = |nA - nB| / (nA + nB) over training rows; 100% is one domain alone. Mean r "
        f"{before['mean']:.3f} before, {after['mean']:.3f} after. {provenance.llm_note(bench.settings)}. The "
        "paper's figure 1 (Cloth - Sport) prints no numbers; most of its users are at 90-100%."
    )
    columns = [Column("domain ratio"), Column("before", "users"), Column("after", "users")]
    found = drawn.to_numpy(dtype=object).tolist()
    table = ResultTable("figure1", bench.titled("Domain ratio"), columns, found, note)
    return Outcome({"table": table}, plots.histogram(drawn, "domain ratio", "domain ratio r", "users (number)"), drawn)


def figure3(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Maps of items before and after augmentation, with numbers for how far the domains lie apart."""
    seed = bench.settings.seeds[0]
    data = stages.read_augmented(bench.settings)
    table = embeddings.EmbeddingTable.load(stages.augmented_vectors(bench.settings))
    bench.runs(rows)
    spaces = [("text, before", data, table.lookup(data.items[~data.virtual]), ~data.virtual)]
    spaces.append(("text, after", data, table.lookup(data.items), np.ones(len(data.items), bool)))
    for row, name in ((rows[1], "learnt, w/o augmentation"), (rows[0], "learnt, with augmentation")):
        source, vectors = learnt_items(bench.experiment(row, seed))
        spaces.append((name, source, vectors, np.ones(len(source.items), bool)))
    found, drawn = [], []
    for panel, (name, source, vectors, kept) in enumerate(spaces):
        domain, virtual = source.item_domain[kept], source.virtual[kept]
        found.append((name, len(domain), int(virtual.sum()), *separation(vectors, domain, bench.settings.augment.seed)))
        chosen = sampled(domain, virtual, bench.settings.augment.seed)
        place = tsne(vectors[chosen], bench.settings.augment.seed)
        about = {"panel": panel, "domain": np.array(source.domains)[domain[chosen]], "generated": virtual[chosen]}
        drawn.append(pd.DataFrame({**about, "item": source.items[kept][chosen], "x": place[:, 0], "y": place[:, 1]}))
    columns = [Column("space"), Column("items"), Column("written items")]
    columns += [
        Column("silhouette of the domains", decimals=4),
        Column("cosine to the nearest of the other", decimals=4),
    ]
    note = (
        "Silhouette coefficient of the domains by cosine distance, 1 far apart, 0 mixed; and the mean cosine of an "
        f"item to the nearest of the other domain; both in the full space and not on the map, of at most "
        f"{2 * N_MAPPED:,} items. Learnt: item vectors of a trained LLM-EDT, seed {seed}. "
        f"{provenance.llm_note(bench.settings)}. The paper's figure 3 shows text vectors and prints no numbers."
    )
    if not data.virtual.any():
        note += " No item was written, so the text before and after is of the same items."
    result = ResultTable("figure3", bench.titled("How far the domains lie apart"), columns, found, note)
    shown = pd.concat(drawn, ignore_index=True)
    return Outcome({"table": result}, plots.maps(shown, [row[0] for row in found]), shown)


def learnt_items(experiment: training.Experiment) -> tuple[atomic.TwoDomainData, np.ndarray]:
    """The catalogue of a finished run of LLM-EDT, and its learnt item vectors in the catalogue's order."""
    run_dir = training.finished_run(experiment, "LLMEDT")
    model, _, test_data = training.open_run(experiment, "LLMEDT", run_dir)
    part = test_data._dataset
    ids = part.token2id(part.iid_field, part.source.items)
    with torch.no_grad():
        return part.source, model.item_embedding.weight.detach().cpu().numpy()[ids]


def sampled(domain: np.ndarray, first: np.ndarray, seed: int) -> np.ndarray:
    """Places of at most `N_MAPPED` items of each domain, half of them from ``first`` where there are so many.

    Args:
        domain: ``[N]`` 0 or 1.
        first: ``[N]`` bool, items that are few and must be seen.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for d in (0, 1):
        parts = [generator.permutation(np.flatnonzero((domain == d) & kind)) for kind in (first, ~first)]
        n_first = min(len(parts[0]), max(N_MAPPED // 2, N_MAPPED - len(parts[1])))
        chosen += [parts[0][:n_first], parts[1][: N_MAPPED - n_first]]
    return np.sort(np.concatenate(chosen))


def separation(vectors: np.ndarray, domain: np.ndarray, seed: int) -> tuple[float, float]:
    """How far two domains lie apart: silhouette coefficient, and mean cosine to the nearest item of the other.

    Args:
        vectors: ``[N, D]``; rows of zeros are left out.
        domain: ``[N]`` 0 or 1.
        seed: of the draw where there are too many.
    """
    from sklearn.metrics import silhouette_score

    norm = np.linalg.norm(vectors, axis=1)
    unit, label = vectors[norm > 0] / norm[norm > 0, None], domain[norm > 0]
    chosen = sampled(label, np.zeros(len(label), bool), seed)
    unit, label = unit[chosen], label[chosen]
    if min(np.bincount(label, minlength=2)) < 2:
        return float("nan"), float("nan")
    across = unit[label == 0] @ unit[label == 1].T
    nearest = np.concatenate([across.max(axis=1), across.max(axis=0)])
    return float(silhouette_score(unit, label, metric="cosine")), float(nearest.mean())


def tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """``[N, 2]`` t-SNE by cosine distance."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    made = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed)
    return made.fit_transform(np.asarray(vectors, np.float32))


def cost(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """What was asked of models, and paid, per user."""
    n_users = len(stages.read(bench.settings).users)
    found = []
    for stage, counts in provenance.stage_counts(bench.settings).items():
        used = counts.get("used", {})
        for kind, one in used.items():
            usd = one["cost_usd"]
            per_user = None if usd is None else usd / n_users
            printed = costs.paper_usd(stage, kind)
            tokens = one["prompt_tokens"], one["completion_tokens"]
            found.append((stage, costs.WORDS[kind], one["calls"], *tokens, usd, per_user, printed))
        if not used:
            found.append((stage, "offline", 0, 0, 0, 0.0, 0.0, costs.PAPER_USD.get(stage)))
    columns = [Column("stage"), Column("asked for"), Column("calls"), Column("tokens in"), Column("tokens out")]
    columns += [Column("cost (US dollars)", decimals=4), Column("per user (US dollars)", decimals=6)]
    columns += [Column("paper: per user (US dollars)", decimals=6)]
    note = (
        f"{n_users:,} users. What an answer cost counts whenever it was paid. {provenance.llm_note(bench.settings)}. "
        "Paper: section 4.9, with DeepSeek's prices of its time; not comparable where prompts, texts or prices differ."
    )
    return Outcome({"table": ResultTable("cost", bench.titled("API cost"), columns, found, note)})
