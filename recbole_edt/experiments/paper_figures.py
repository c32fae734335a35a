"""The figures of the paper: what each makes of its runs, or of the data alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_edt.data import statistics, two_domains
from recbole_edt.evaluate.metrics import GROUP_LABELS, domains_of, group_metrics
from recbole_edt.experiments.paper_tables import before_augmentation, mean_and_deviation
from recbole_edt.experiments.trials import Bench, Outcome, Row, Runs, compared, curves_of, of_seeds
from recbole_edt.files import read_json, write_json
from recbole_edt.pipeline import manifest, stages
from recbole_edt.render import figures
from recbole_edt.render.tables import Column, ResultTable
from recbole_edt.report import result_tables
from recbole_edt.text.vectors import EmbeddingTable
from recbole_edt.train import comparison
from recbole_edt.train.run import finished_run, open_run, run_directory

N_MAPPED = 1000
"""Most items of a domain in figure 3."""
N_TIMED = 5


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
    return Outcome({"table": table}, figures.bars(drawn, "history", "mean", "model", y), drawn)


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
    found = [(*place, users[place], *(mean_and_deviation(cells[place][name]) for name in runs)) for place in order]
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
        run = read_json(run_directory(experiment, row.model) / "result.json")
        found.append({"model": row.name, "parameters": run["parameters"], "train_seconds": run["seconds"], **speed})
    drawn = pd.DataFrame(found)
    columns = [Column("model"), Column("parameters"), Column("time to rank (ms per user)", decimals=3, best="min")]
    columns += [Column("time to train (s)", decimals=1), Column("device")]
    keys = ["model", "parameters", "ms_per_user", "train_seconds", "device"]
    base = bench.laboratory.base
    candidates = result_tables.candidates_in_words(bench.settings.candidates, base.seen_items, base.seen_why)
    note = (
        f"Seed {seed}. Time: all test users, each target ranked among its candidates ({candidates}), the fastest of "
        f"{N_TIMED} passes. Parameters without fixed text vectors. The paper's figure 6 prints no numbers."
    )
    rows_of = [tuple(one[key] for key in keys) for one in found]
    table = ResultTable("figure6", bench.titled("Parameters and inference time"), columns, rows_of, note)
    return Outcome({"table": table}, figures.costs(drawn), drawn)


def speed_of(experiment: comparison.Experiment, name: str) -> dict[str, Any]:
    """How long a finished run takes to rank the test targets; measured once per device, and kept beside it."""
    run_dir = run_directory(experiment, name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    path = run_dir / "speed.json"
    known = read_json(path) if path.is_file() else {}
    known = known if isinstance(known, dict) else {}  # what is damaged is measured anew
    if device not in known:
        _, trainer, test_data = open_run(experiment, name, run_dir)
        seconds = []
        for _ in range(N_TIMED):
            start = time.perf_counter()
            trainer.evaluate(test_data, load_best_model=False)
            seconds.append(time.perf_counter() - start)
        n_users = len(trainer.evaluator.ranks)
        known[device] = {"ms_per_user": 1000 * min(seconds) / n_users, "users": n_users}
        write_json(path, known)
    return {**known[device], "device": device}


def figure1(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """How many users have which domain ratio, before and after augmentation."""
    data = before_augmentation(bench), stages.read_augmented(bench.settings)
    before, after = map(statistics.ratio_histogram, data)
    counts = {"before": before["users_by_tenth"], "after": after["users_by_tenth"]}
    drawn = pd.DataFrame({"domain ratio": [f"{name}%" for name in statistics.bin_names()], **counts})
    note = (
        "Users by r = |nA - nB| / (nA + nB) over training rows; 100% is one domain alone. Mean r "
        f"{before['mean']:.3f} before, {after['mean']:.3f} after. {manifest.llm_note(bench.settings)}. The "
        "paper's figure 1 (Cloth - Sport) prints no numbers; most of its users are at 90-100%."
    )
    columns = [Column("domain ratio"), Column("before", "users"), Column("after", "users")]
    found = drawn.to_numpy(dtype=object).tolist()
    table = ResultTable("figure1", bench.titled("Domain ratio"), columns, found, note)
    figure = figures.histogram(drawn, "domain ratio", "domain ratio r", "users (number)")
    return Outcome({"table": table}, figure, drawn)


def figure3(bench: Bench, rows: Sequence[Row]) -> Outcome:
    """Maps of items before and after augmentation, with numbers for how far the domains lie apart."""
    seed = bench.settings.seeds[0]
    data = stages.read_augmented(bench.settings)
    table = EmbeddingTable.load(stages.augmented_vectors(bench.settings))
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
        f"{manifest.llm_note(bench.settings)}. The paper's figure 3 shows text vectors and prints no numbers."
    )
    if not data.virtual.any():
        note += " No item was written, so the text before and after is of the same items."
    result = ResultTable("figure3", bench.titled("How far the domains lie apart"), columns, found, note)
    shown = pd.concat(drawn, ignore_index=True)
    return Outcome({"table": result}, figures.maps(shown, [row[0] for row in found]), shown)


def learnt_items(experiment: comparison.Experiment) -> tuple[two_domains.TwoDomainData, np.ndarray]:
    """The catalogue of a finished run of LLM-EDT, and its learnt item vectors in the catalogue's order."""
    run_dir = finished_run(experiment, "LLMEDT")
    model, _, test_data = open_run(experiment, "LLMEDT", run_dir)
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
