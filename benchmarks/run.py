"""How fast the library is, and how its time grows: one table, three plots, written to docs/speed.md.

    python benchmarks/run.py [--data=FOLDER] [--quick] [--out=docs]

FOLDER (default: the environment variable RECBOLE_EDT_DATA) holds ``amazon-fk-overlap`` and ``amazon-fk-full`` as atomic
files; without it the lines that need them are left out. Every measurement runs in a process of its own, on a machine
that should do nothing else; ``--quick`` checks the command in minutes with small sizes and figures that mean nothing.
RecBole's own path needs numpy 1, as RecBole itself does.
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
Figures = dict[str, Any]

# The settings of the targets: hidden size 128, batches of 512, the paper's BPR, text vectors of 256 numbers.
PAPER = {"hidden_size": 128, "train_batch_size": 512, "loss_type": "BPR"}


@dataclass
class Benchmark:
    """Where things are, how often to repeat, and what was found."""

    folder: Path
    """Working copies of the data sets."""
    data: Path | None
    """The Amazon data sets, if there are any."""
    quick: bool
    repeats: int
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Lines of the table: what, ours, to compare with, ratio."""
    sections: list[str] = field(default_factory=list)

    def measure(self, task: str, repeats: int | None = None, **arguments: Any) -> Figures:
        """Medians over several runs, each in a fresh process.

        Raises: RuntimeError with the end of the output of a run that failed.
        """
        runs = [self._run(task, arguments) for _ in range(repeats or self.repeats)]
        print(f"{task} {arguments}: {runs[0]}", file=sys.stderr, flush=True)
        numbers = [key for key, value in runs[0].items() if isinstance(value, (int, float))]
        return {**runs[0], **{key: median(run[key] for run in runs) for key in numbers}}

    def _run(self, task: str, arguments: Figures) -> Figures:
        values = json.dumps({"folder": str(self.folder), **arguments})
        command = [sys.executable, str(HERE / "measure.py"), task, values]
        # Elsewhere than in the repository, whose dataset_configs/ would change the settings.
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=_environment())
        if done.returncode:
            raise RuntimeError(f"{task} {values} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def row(self, what: str, ours: str, other: str = "", ratio: str = "") -> None:
        self.rows.append((what, ours, other, ratio))


def _environment() -> dict[str, str]:
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


# ---- the table ---------------------------------------------------------------------------------------------------


def llmedt(bench: Benchmark) -> None:
    """Training and ranking on Amazon Food and Kitchen against what the authors' code took elsewhere."""
    name = _amazon(bench, "amazon-fk-overlap")
    if name is None:
        return
    bench.measure("prepare", 1, dataset=name)
    epochs = 1 if bench.quick else 3
    found = {
        length: bench.measure("llmedt", dataset=name, epochs=epochs, MAX_ITEM_LIST_LENGTH=length, **PAPER)
        for length in ([200] if bench.quick else [200, 50])
    }
    for length, one in found.items():
        at = f"Amazon overlap, length {length}"
        speed = f" ({one['targets'] / one['pretrain_s']:,.0f} targets/s)"
        theirs = {200: 111.0, 50: 12.6}[length]
        bench.row(
            f"pre-training epoch, {at}", f"{one['pretrain_s']:.2f} s{speed}", *_elsewhere(theirs, one["pretrain_s"])
        )
        if length == 50:
            bench.row(f"fine-tuning epoch, {at}", f"{one['finetune_s']:.2f} s", *_elsewhere(57, one["finetune_s"]))
        else:
            once = f"{one['finetune_s']:.2f} s, and {one['frozen_states_s']:.2f} s once for the frozen states"
            bench.row(f"fine-tuning epoch, {at}", once)
        ranked = {200: 19.9, 50: 10.5}[length]
        users = f"{one['users']:,} users"
        bench.row(
            f"ranking all in-domain items, {users}, {at}",
            f"{one['rank_s']:.2f} s",
            *_elsewhere(ranked, one["rank_s"], "101 candidates"),
        )
        bench.row("the same after fine-tuning", f"{one['rank_finetuned_s']:.2f} s")
        memory = {200: 3300, 50: 900}[length]
        bench.row(
            f"peak memory over the imports, {at}",
            f"{one['peak_mb']:.0f} MB",
            *_elsewhere(memory, one["peak_mb"], unit="MB"),
        )
    mixed = bench.measure("llmedt", 1, dataset=name, epochs=epochs, MAX_ITEM_LIST_LENGTH=200, enable_amp=True, **PAPER)
    plain = found[200]["pretrain_s"]
    bench.row(
        "pre-training epoch with bfloat16",
        f"{mixed['pretrain_s']:.2f} s",
        f"float32 {plain:.2f} s",
        f"{plain / mixed['pretrain_s']:.2f}",
    )


def sasrec(bench: Benchmark) -> None:
    """RecBole's SASRec by whole sequences against RecBole's own rows."""
    bench.measure("prepare", 1, dataset="ml-100k-cross", last="augment")
    ours = bench.measure("sasrec", epochs=1 if bench.quick else 2)
    batches = 1 if bench.quick else 8
    try:
        stock = bench.measure("stock", batches=batches, anomaly=True)
        calm = bench.measure("stock", batches=batches, anomaly=False)
    except RuntimeError as error:
        bench.row(
            "SASRec on ml-100k, length 50, CE, one epoch",
            f"{ours['epoch_s']:.2f} s",
            "RecBole's own path does not run here",
        )
        print(error, file=sys.stderr)
        return
    what = "SASRec on ml-100k, length 50, CE, one epoch"
    per_target = ours["epoch_s"] / ours["targets"]
    for other, how in ((stock, "RecBole as installed"), (calm, "RecBole without autograd's anomaly mode")):
        ratio = other["epoch_s"] / other["targets"] / per_target
        mine = f"{ours['epoch_s']:.2f} s ({ours['targets']:,} targets)"
        bench.row(what, mine, f"{how}: {other['epoch_s']:.1f} s ({other['targets']:,} targets)", f"{ratio:.0f}")
    bench.row(
        "its peak memory over the imports",
        f"{ours['peak_mb']:.0f} MB",
        f"RecBole {calm['peak_mb']:.0f} MB",
        f"{calm['peak_mb'] / ours['peak_mb']:.1f}",
    )
    bench.row(
        "its data set",
        f"{ours['build_s']:.2f} s",
        f"RecBole {calm['build_s']:.2f} s",
        f"{calm['build_s'] / ours['build_s']:.1f}",
    )


def data_path(bench: Benchmark) -> None:
    """Ten million interactions from files to the first batch."""
    users = 4_000 if bench.quick else 460_000
    n = synthetic.write(bench.folder, "synthetic-build", users, users // 4)
    one = bench.measure("build", min(bench.repeats, 2), dataset="synthetic-build")
    bench.row(f"data set of {n:,} interactions, length 200", f"{one['build_s']:.1f} s ({n / one['build_s']:,.0f}/s)")
    bench.row(
        "its peak memory over the imports",
        f"{one['peak_mb']:.0f} MB ({one['peak_mb'] + one['imports_mb']:.0f} MB in all)",
    )
    shutil.rmtree(bench.folder / "synthetic-build")


def augmentation(bench: Benchmark) -> None:
    name = _amazon(bench, "amazon-fk-overlap" if bench.quick else "amazon-fk-full")
    if name is None:
        return
    bench.measure("prepare", 1, dataset=name, last="embed")
    one = bench.measure("augmentation", dataset=name)
    bench.row(f"offline augmentation, {one['users']:,} users, {one['items']:,} items", f"{one['augment_s']:.1f} s")


def inference(bench: Benchmark) -> None:
    """LLM-EDT against SASRec of the same size, top ten of all items."""
    name = _amazon(bench, "amazon-fk-overlap")
    if name is None:
        return
    keys = {"MAX_ITEM_LIST_LENGTH": 50, **PAPER, "eval_batch_size": 512}
    edt = bench.measure("inference", dataset=name, model="LLMEDT", **keys)
    ours = bench.measure("inference", dataset=name, model="SASRec", use_generated=True, **keys)
    stock = bench.measure("inference", 1, dataset=name, model="SASRec", use_generated=True, training="prefix", **keys)
    lines = [
        "| model | users/s | latency of one user | parameters | trainable in the last phase | frozen text vectors |",
        "|---|---|---|---|---|---|",
    ]
    for label, one in (("LLM-EDT, fine-tuned", edt), ("SASRec", ours), ("SASRec, RecBole's padded rows", stock)):
        numbers = f"{one['users'] / one['all_users_s']:,.0f} | {1000 * one['latency_s']:.1f} ms"
        counts = " | ".join(f"{one[key]:,}" for key in ("parameters", "trainable", "frozen_vectors"))
        lines.append(f"| {label} | {numbers} | {counts} |")
    heading = f"## Inference: top ten of all {edt['items']:,} items, hidden size 128, batches of 512 users"
    bench.sections.append("\n".join([heading, "", *lines]))
    for what, key in (("top ten for all users", "all_users_s"), ("top ten for one user alone", "latency_s")):
        bench.row(
            f"LLM-EDT, {what}",
            f"{edt[key]:.3f} s",
            f"SASRec {ours[key]:.3f} s",
            f"{edt[key] / ours[key]:.2f} times its time",
        )


def _amazon(bench: Benchmark, name: str) -> str | None:
    """A working copy of one of the Amazon data sets, or None."""
    if bench.data is None or not (bench.data / name).is_dir():
        print(f"no {name}: its lines are left out (--data=FOLDER)", file=sys.stderr)
        return None
    if not (bench.folder / name).is_dir():
        shutil.copytree(bench.data / name, bench.folder / name, copy_function=shutil.copyfile)
    return name


def _elsewhere(theirs: float, ours: float, note: str = "", unit: str = "s") -> tuple[str, str]:
    """A figure of the authors' code, which was not measured in this run."""
    return f"authors' code {theirs:g} {unit}{', ' + note if note else ''} (elsewhere)", f"{theirs / ours:.0f}"


# ---- growth ------------------------------------------------------------------------------------------------------


def growth(bench: Benchmark, out: Path) -> None:
    """Time of an epoch, of reading and of ranking over users, items and length."""
    sweeps = {
        "users": [
            dict(n_users=n, n_items=10_000)
            for n in ((500, 1000) if bench.quick else (1_000, 10_000, 100_000, 1_000_000))
        ],
        "items": [
            dict(n_users=1_000 if bench.quick else 10_000, n_items=n)
            for n in ((500, 1000) if bench.quick else (10_000, 100_000, 1_000_000))
        ],
        "length": [
            dict(n_users=500 if bench.quick else 5_000, n_items=10_000, mean_length=n)
            for n in ((20, 50) if bench.quick else (20, 50, 100, 200))
        ],
    }
    names = {"users": "n_users", "items": "n_items", "length": "mean_length"}
    found = {
        axis: [_scaled(bench, point, 200 if axis == "length" else 50) for point in points]
        for axis, points in sweeps.items()
    }
    parts = {"epoch_s": "training epoch", "build_s": "reading and indexing", "rank_s": "ranking all users"}
    lines = [
        "| over | from | to | " + " | ".join(f"{label}, exponent" for label in parts.values()) + " |",
        "|---|---|---|" + "---|" * len(parts),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for (axis, points), plot in zip(sweeps.items(), axes, strict=True):
        x = np.array([point[names[axis]] for point in points], float)
        exponents = []
        for key, label in parts.items():
            y = np.array([one[key] for one in found[axis]])
            exponents.append(exponent(x[-3:], y[-3:]))
            plot.loglog(x, y, marker="o", label=f"{label} ({exponents[-1]:.2f})")
        plot.set_xlabel({"users": "users", "items": "items", "length": "mean length of a history"}[axis])
        plot.set_ylabel("seconds")
        plot.legend(fontsize=7)
        plot.grid(alpha=0.3)
        lines.append(
            f"| {axis} | {x[-3:][0]:,.0f} | {x[-1]:,.0f} | " + " | ".join(f"{e:.2f}" for e in exponents) + " |"
        )
    figure.savefig(out / "speed-growth.png", dpi=120)
    over_users = exponent(
        *np.array([[p["n_users"], f["epoch_s"]] for p, f in zip(sweeps["users"], found["users"], strict=True)][-3:]).T
    )
    last = found["users"][-1]
    bench.row(
        f"growth of an epoch's time with users, to {sweeps['users'][-1]['n_users']:,}", f"exponent {over_users:.2f}"
    )
    bench.row(
        "the largest of them",
        f"{last['epoch_s']:.1f} s for {last['targets']:,} targets ({last['targets'] / last['epoch_s']:,.0f}/s), {last['peak_mb']:.0f} MB over the imports",
    )
    text = (
        "Synthetic data with the lengths and the popularity of Amazon Food and Kitchen; a small LLM-EDT on ids (hidden "
        "size 32, one layer, BPR), batches of 512. The exponent b of time = a * size^b is fitted on the last three sizes."
    )
    bench.sections.append(
        "\n".join(["## Growth", "", text, "", *lines, "", "![Time over users, items and length](speed-growth.png)"])
    )


def _scaled(bench: Benchmark, point: Figures, max_length: int) -> Figures:
    n = synthetic.write(bench.folder, "synthetic-growth", **point)
    found = bench.measure("scaling", 1, dataset="synthetic-growth", max_length=max_length)
    shutil.rmtree(bench.folder / "synthetic-growth")
    return {**found, "interactions": n}


def exponent(x: np.ndarray, y: np.ndarray) -> float:
    """``b`` of ``y = a x^b``, by least squares on logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def shares(bench: Benchmark, out: Path) -> None:
    """Where a pre-training epoch goes."""
    name = _amazon(bench, "amazon-fk-overlap")
    if name is None:
        return
    found = bench.measure("profile", 1, dataset=name, MAX_ITEM_LIST_LENGTH=200, **PAPER)["shares"]
    kinds = sorted(found, key=found.get)
    figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
    bars = axes.barh(kinds, [100 * found[kind] for kind in kinds])
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set_xlabel("share of a pre-training epoch, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "speed-epoch.png", dpi=120)
    listed = ", ".join(f"{kind} {100 * found[kind]:.0f} %" for kind in reversed(kinds))
    bench.sections.append(f"## Where an epoch goes\n\n{listed}.\n\n![Shares of an epoch](speed-epoch.png)")


# ---- the page ----------------------------------------------------------------------------------------------------


def page(bench: Benchmark, started: float) -> str:
    header = ["| what | ours | compared with | ratio |", "|---|---|---|---|"]
    table = [*header, *(f"| {' | '.join(row)} |" for row in bench.rows)]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pandas", "recbole"))
    about = (
        f"{os.cpu_count()} processor cores ({platform.machine()}, {_processor()}), no GPU used; Python {platform.python_version()}, {libraries}. Medians of {bench.repeats} runs, "
        f"each in a process of its own; the whole took {(time.time() - started) / 60:.0f} minutes. Peak memory is resident memory above "
        "that of the bare imports. Figures of the authors' code (hidden size 128, batches of 512) were measured elsewhere, on another "
        "day, not in this run; everything else was. RecBole's epoch is extrapolated from its first 8 batches, and ratios with it are per training target."
    )
    return "\n".join(
        [
            "# Speed",
            "",
            "```bash",
            "python benchmarks/run.py --data=FOLDER",
            "```",
            "",
            about,
            "",
            *table,
            "",
            *_joined(bench.sections),
        ]
    )


def _joined(sections: list[str]) -> list[str]:
    return [line for section in sections for line in (section, "")]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("RECBOLE_EDT_DATA"), help="folder of the Amazon data sets"
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs", help="where speed.md and its plots go")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat: does the command work?")
    parser.add_argument(
        "--only", nargs="*", default=["llmedt", "sasrec", "data_path", "augmentation", "inference", "growth", "shares"]
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        bench = Benchmark(Path(folder), arguments.data, arguments.quick, 1 if arguments.quick else arguments.repeats)
        for step in arguments.only:
            {"growth": lambda: growth(bench, arguments.out), "shares": lambda: shares(bench, arguments.out)}.get(
                step, lambda: globals()[step](bench)
            )()
    text = page(bench, started)
    (arguments.out / "speed.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
