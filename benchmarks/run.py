"""How fast the library is, and how its time grows: a table and two plots, written to docs/speed.md.

    python benchmarks/run.py [--data=FOLDER] [--quick --out=ELSEWHERE]

FOLDER (default: the environment variable RECBOLE_EDT_DATA) holds ``amazon-fk-overlap`` and ``amazon-fk-full`` as atomic
files; without it the lines that need them are left out. Every measurement runs in a process of its own, on a machine
that should do nothing else. ``--quick`` checks the command with small sizes; its figures mean nothing. RecBole's own
path needs numpy 1, as RecBole does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import synthetic

HERE = Path(__file__).resolve().parent
OVERLAP, FULL = "amazon-fk-overlap", "amazon-fk-full"
Figures = dict[str, Any]

# Hidden size, batch and loss of the paper; text vectors of 256 numbers.
PAPER = {"hidden_size": 128, "train_batch_size": 512, "loss_type": "BPR"}

# What the authors' code took, by maximum length: seconds and MB over the imports. Measured elsewhere, on another day,
# on two cores (fine-tuning: on one).
AUTHORS = {
    200: {"pretrain_s": 111, "rank_s": 19.9, "peak_mb": 3300},
    50: {"pretrain_s": 12.6, "finetune_s": 57, "rank_s": 10.5, "peak_mb": 900},
}
LIBRARIES = ("torch", "numpy", "pandas", "recbole")


@dataclass
class Benchmark:
    """Where things are, how often to repeat, and what was found."""

    folder: Path
    """Working copies of the data sets."""
    data: Path | None
    """The Amazon data sets, if there are any."""
    out: Path
    """Where the page and its plots go."""
    quick: bool
    repeats: int
    rows: list[tuple[str, ...]] = field(default_factory=list)
    """Lines of the table: what, ours, what it is compared with, ratio."""
    sections: list[str] = field(default_factory=list)

    def measure(self, task: str, repeats: int | None = None, **arguments: Any) -> Figures:
        """Medians over several runs, each in a fresh process."""
        return self.compare((task, arguments), repeats=repeats)[0]

    def compare(self, *tasks: tuple[str, Figures], repeats: int | None = None) -> list[Figures]:
        """Medians of each task, run in turn, so that a disturbance meets them all.

        Raises: RuntimeError with the end of the output of a run that failed.
        """
        turns = [[self._run(*task) for task in tasks] for _ in range(repeats or self.repeats)]
        return [_medians(runs) for runs in zip(*turns, strict=True)]

    def _run(self, task: str, arguments: Figures) -> Figures:
        values = json.dumps({"folder": str(self.folder), **arguments})
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, str(HERE / "measure.py"), task, values],
            cwd=self.folder,  # in the repository its dataset_configs/ would change the settings
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{task} {values} failed:\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        print(task, arguments, found, file=sys.stderr, flush=True)
        return found

    def row(self, what: str, ours: str, other: str = "", ratio: str = "") -> None:
        self.rows.append((what, ours, other, ratio))

    def amazon(self, name: str) -> bool:
        """Whether there is this data set; then a working copy is in place."""
        if self.data is None or not (self.data / name).is_dir():
            print(f"no {name}: its lines are left out (--data=FOLDER)", file=sys.stderr)
            return False
        if not (self.folder / name).is_dir():
            shutil.copytree(self.data / name, self.folder / name, copy_function=shutil.copyfile)
        return True


def _medians(runs: tuple[Figures, ...]) -> Figures:
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    return {**runs[0], **{key: type(runs[0][key])(median(run[key] for run in runs)) for key in numbers}}


# ---- the table ---------------------------------------------------------------------------------------------------


def llmedt(bench: Benchmark) -> None:
    """Training and ranking on Amazon Food and Kitchen."""
    if not bench.amazon(OVERLAP):
        return
    bench.measure("prepare", 1, dataset=OVERLAP)
    keys = {"dataset": OVERLAP, "epochs": 1 if bench.quick else 3, **PAPER}
    for length in [200] if bench.quick else [200, 50]:
        found = bench.measure("llmedt", MAX_ITEM_LIST_LENGTH=length, **keys)
        at = f"Amazon overlap, maximum length {length}"
        notes = {
            "pretrain_s": ("pre-training epoch", f", {found['targets'] / found['pretrain_s']:,.0f} targets/s"),
            "frozen_states_s": ("frozen states, once before fine-tuning", ""),
            "finetune_s": ("fine-tuning epoch", ""),
            "rank_s": (f"ranking {found['users']:,} users among all items of the domain", ""),
            "rank_finetuned_s": ("the same after fine-tuning", ""),
            "peak_mb": ("peak memory of all that", ""),
        }
        for key, (what, note) in notes.items():
            unit = "MB" if key == "peak_mb" else "s"
            ours = f"{found[key]:.0f} MB" if unit == "MB" else f"{found[key]:.2f} s{note}"
            theirs = AUTHORS[length].get(key)
            other = ("", "")
            if theirs:
                how = ", 101 candidates" if key == "rank_s" else ""
                other = (f"authors' code, elsewhere: {theirs:g} {unit}{how}", f"{theirs / found[key]:.0f}")
            bench.row(f"{what}, {at}", ours, *other)
    variants = [{**keys, "MAX_ITEM_LIST_LENGTH": 200, "enable_amp": amp} for amp in (False, True)]
    plain, mixed = bench.compare(*(("llmedt", one) for one in variants), repeats=1)
    ratio = plain["pretrain_s"] / mixed["pretrain_s"]
    mixed_s, plain_s = f"{mixed['pretrain_s']:.2f} s", f"in float32: {plain['pretrain_s']:.2f} s"
    bench.row("pre-training epoch in bfloat16, maximum length 200", mixed_s, plain_s, f"{ratio:.2f}")


def sasrec(bench: Benchmark) -> None:
    """RecBole's SASRec by whole sequences against RecBole's own rows, loader and loop."""
    bench.measure("prepare", 1, dataset="ml-100k-cross", last="augment")
    what = "SASRec on ml-100k, length 50, CE"
    ours_alone = ("sasrec", {"epochs": 1 if bench.quick else 2})
    batches = 1 if bench.quick else 8
    stock = [("stock", {"batches": batches, "anomaly": anomaly}) for anomaly in (True, False)]
    try:
        ours, installed, calm = bench.compare(ours_alone, *stock)
    except RuntimeError as error:  # RecBole on numpy 2
        print(error, file=sys.stderr)
        ours = bench.compare(ours_alone)[0]
        bench.row(f"{what}, epoch", f"{ours['epoch_s']:.2f} s", "RecBole's own path does not run here")
        return
    each = ours["epoch_s"] / ours["targets"]
    for other, how in ((installed, "RecBole as it is"), (calm, "RecBole without autograd's anomaly mode")):
        ratio = other["epoch_s"] / other["targets"] / each
        mine = f"{ours['epoch_s']:.2f} s, {ours['targets']:,} targets"
        bench.row(
            f"{what}, epoch", mine, f"{how}: {other['epoch_s']:.0f} s, {other['targets']:,} targets", f"{ratio:.0f}"
        )
    memory = calm["peak_mb"] / ours["peak_mb"]
    bench.row(
        f"{what}, peak memory", f"{ours['peak_mb']:.0f} MB", f"RecBole: {calm['peak_mb']:.0f} MB", f"{memory:.1f}"
    )
    built = calm["build_s"] / ours["build_s"]
    bench.row(f"{what}, data set", f"{ours['build_s']:.2f} s", f"RecBole: {calm['build_s']:.2f} s", f"{built:.1f}")


def data_path(bench: Benchmark) -> None:
    """Ten million interactions from files to the first batch."""
    n_users = 4_000 if bench.quick else 450_000
    n = synthetic.write(bench.folder, "synthetic-build", n_users, n_users // 4)
    found = bench.measure("build", min(bench.repeats, 2), dataset="synthetic-build")
    shutil.rmtree(bench.folder / "synthetic-build")
    what = f"data set of {n:,} interactions, maximum length 200"
    bench.row(what, f"{found['build_s']:.1f} s, {n / found['build_s']:,.0f} interactions/s")
    bench.row(
        f"{what}, peak memory", f"{found['peak_mb']:.0f} MB, {found['peak_mb'] + found['imports_mb']:.0f} MB in all"
    )


def augmentation(bench: Benchmark) -> None:
    name = OVERLAP if bench.quick else FULL
    if not bench.amazon(name):
        return
    bench.measure("prepare", 1, dataset=name, last="embed")
    found = bench.measure("augmentation", dataset=name)
    what = f"offline augmentation, {found['users']:,} users, {found['items']:,} items"
    bench.row(what, f"{found['augment_s']:.1f} s, {found['users'] / found['augment_s']:,.0f} users/s")


def inference(bench: Benchmark) -> None:
    """LLM-EDT against SASRec of the same size, top ten of all items."""
    if not bench.amazon(OVERLAP):
        return
    bench.measure("prepare", 1, dataset=OVERLAP)
    keys = {"dataset": OVERLAP, "MAX_ITEM_LIST_LENGTH": 50, "eval_batch_size": 512, **PAPER}
    same_rows = {"model": "SASRec", "use_generated": True}
    edt, ours, padded = bench.compare(
        ("inference", {**keys, "model": "LLMEDT"}),
        ("inference", {**keys, **same_rows}),
        ("inference", {**keys, **same_rows, "training": "prefix"}),
    )
    for what, key in (("all users", "all_users_s"), ("one user alone", "latency_s")):
        times = [f"{1000 * one[key]:,.0f} ms" for one in (edt, ours)]
        bench.row(
            f"LLM-EDT, top ten for {what}",
            times[0],
            f"SASRec: {times[1]}",
            f"{edt[key] / ours[key]:.2f} times its time",
        )
    lines = [
        "| model | users/s | one user alone | parameters | trained last | frozen text vectors |",
        "|---|---|---|---|---|---|",
    ]
    labels = ("LLM-EDT, fine-tuned", "SASRec, trained on sequences", "SASRec, RecBole's padded rows")
    for label, one in zip(labels, (edt, ours, padded), strict=True):
        counts = " | ".join(f"{one[key]:,}" for key in ("parameters", "trainable", "frozen_vectors"))
        lines.append(
            f"| {label} | {one['users'] / one['all_users_s']:,.0f} | {1000 * one['latency_s']:.1f} ms | {counts} |"
        )
    title = f"## Inference: top ten of all {edt['items']:,} items, hidden size 128, batches of 512 users"
    why = (
        "LLM-EDT runs its backbone over three sequences of a user (the mixed one and each domain's), SASRec over one;\n"
        "the products with all items are the same. No language model is asked."
    )
    bench.sections.append("\n".join([title, "", why, "", *lines]))


# ---- growth ------------------------------------------------------------------------------------------------------

GROWING = {"users": "n_users", "items": "n_items", "mean length": "mean_length"}
PARTS = {"epoch_s": "training epoch", "build_s": "reading and indexing", "rank_s": "ranking all users"}


def growth(bench: Benchmark) -> None:
    """Time of an epoch, of reading and of ranking over users, items and length."""
    few, some = (500, 500) if bench.quick else (10_000, 5_000)
    sizes: dict[str, list[int]] = {
        "users": [250, 500] if bench.quick else [1_000, 10_000, 100_000, 1_000_000],
        "items": [500, 1_000] if bench.quick else [10_000, 100_000, 1_000_000],
        "mean length": [20, 50] if bench.quick else [20, 50, 100, 200],
    }
    fixed = {
        "users": {"n_items": 10_000},
        "items": {"n_users": few},
        "mean length": {"n_users": some, "n_items": 10_000},
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    titles = " | ".join(f"{label}, exponent" for label in PARTS.values())
    lines = [f"| over | fitted from | to | {titles} |", "|---|---|---|---|---|---|"]
    for plot, (axis, values) in zip(axes, sizes.items(), strict=True):
        length = 200 if axis == "mean length" else 50
        found = [_grown(bench, {**fixed[axis], GROWING[axis]: value}, length) for value in values]
        exponents = _draw(plot, axis, values, found)
        lines.append(
            f"| {axis} | {values[-3:][0]:,} | {values[-1]:,} | {' | '.join(f'{one:.2f}' for one in exponents)} |"
        )
        if axis == "users":
            _say_growth(bench, values, found[-1], exponents[0])
    figure.savefig(bench.out / "speed-growth.png", dpi=120)
    text = (
        "Synthetic data with the lengths and the popularity of Amazon Food and Kitchen; a small LLM-EDT on ids\n"
        "(hidden size 32, one layer, BPR), batches of 512. The exponent b of time = a size^b is fitted to the last\n"
        "three sizes."
    )
    plots = "![Time over users, items and length](speed-growth.png)"
    bench.sections.append("\n".join(["## Growth", "", text, "", *lines, "", plots]))


def _grown(bench: Benchmark, size: Figures, max_length: int) -> Figures:
    synthetic.write(bench.folder, "synthetic-growth", **size)
    found = bench.measure("scaling", 1, dataset="synthetic-growth", max_length=max_length)
    shutil.rmtree(bench.folder / "synthetic-growth")
    return found


def _draw(plot: Any, axis: str, values: list[int], found: list[Figures]) -> list[float]:
    exponents = []
    for key, label in PARTS.items():
        seconds = [one[key] for one in found]
        exponents.append(exponent(values[-3:], seconds[-3:]))
        plot.loglog(values, seconds, marker="o", label=f"{label} ({exponents[-1]:.2f})")
    plot.set_xticks(values, [f"{value:,}" for value in values])
    plot.minorticks_off()
    plot.set_xlabel(axis)
    plot.set_ylabel("seconds")
    plot.legend(fontsize=7)
    plot.grid(alpha=0.3)
    return exponents


def _say_growth(bench: Benchmark, values: list[int], last: Figures, fitted: float) -> None:
    what = f"epoch of a small model, {values[-1]:,} synthetic users"
    bench.row(what, f"{last['epoch_s']:.1f} s, {last['targets'] / last['epoch_s']:,.0f} targets/s")
    bench.row(f"{what}, peak memory", f"{last['peak_mb']:.0f} MB")
    bench.row(f"growth of that epoch with users, from {values[-3:][0]:,}", f"exponent {fitted:.2f}")


def exponent(size: list[int], seconds: list[float]) -> float:
    """``b`` of ``seconds = a size^b``, by least squares on logarithms."""
    return float(np.polyfit(np.log(size), np.log(seconds), 1)[0])


def shares(bench: Benchmark) -> None:
    """Where a pre-training epoch goes."""
    if not bench.amazon(OVERLAP):
        return
    bench.measure("prepare", 1, dataset=OVERLAP)
    found = bench.measure("profile", 1, dataset=OVERLAP, MAX_ITEM_LIST_LENGTH=200, **PAPER)["shares"]
    kinds = sorted(found, key=found.__getitem__)
    figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
    bars = axes.barh(kinds, [100 * found[kind] for kind in kinds])
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set_xlabel("share of a pre-training epoch, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(bench.out / "speed-epoch.png", dpi=120)
    listed = ", ".join(f"{kind} {100 * found[kind]:.0f} %" for kind in reversed(kinds))
    bench.sections.append(f"## Where an epoch goes\n\n{listed}.\n\n![Shares of an epoch](speed-epoch.png)")


# ---- the page ----------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[Benchmark], None]] = {
    step.__name__: step for step in (llmedt, sasrec, data_path, augmentation, inference, shares, growth)
}


def page(bench: Benchmark, minutes: float) -> str:
    """The whole of docs/speed.md."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    about = [
        f"{os.cpu_count()} processor cores ({_processor()}), no GPU; Python {platform.python_version()}, {libraries}.",
        f"Medians of {bench.repeats} runs, each in a process of its own, growth from single runs; {minutes:.0f}",
        "minutes in all. Memory is resident memory above that of the bare imports. Figures of the authors' code were",
        "measured elsewhere, on another day; everything else here. RecBole's epoch is reckoned from its first 8",
        "batches, and ratios with it are per training target.",
    ]
    table = [
        "| what | ours | compared with | ratio |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in bench.rows),
    ]
    command = ["```bash", f"python benchmarks/run.py --data=FOLDER --repeats={bench.repeats}", "```"]
    return "\n\n".join(["# Speed", "\n".join(command), "\n".join(about), "\n".join(table), *bench.sections]) + "\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("RECBOLE_EDT_DATA"), help="the Amazon data sets")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs", help="where speed.md and its plots go")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes, one run of each: does the command work?")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="some of the measurements")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = None if arguments.data is None else Path(arguments.data)
        repeats = 1 if arguments.quick else arguments.repeats
        bench = Benchmark(Path(folder), data, arguments.out, arguments.quick, repeats)
        for step in arguments.only:  # the page grows with each, so that a long run may be stopped
            STEPS[step](bench)
            text = page(bench, (time.monotonic() - started) / 60)
            (arguments.out / "speed.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
