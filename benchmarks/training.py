"""One epoch of SASRec: whole sequences against RecBole's rows of prefixes, on the films inside RecBole.

    python benchmarks/training.py [--repeats=3]

Both see every training target once per epoch, with the same weights, loss (softmax over all items) and maximum length.
Each measurement runs in a process of its own; the table gives medians, peak memory above the imports, and ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

PATHS = {"sequence": {"train_batch_size": 64}, "prefix": {"train_batch_size": 2048}}


def measure(path: str, folder: str) -> dict[str, float]:
    """Build the data set and train one epoch in this process."""
    import torch

    from recbole_edt import config, pipeline

    keys = {"data_path": folder, "training": path, "MAX_ITEM_LIST_LENGTH": 50, "alpha": 0, **PATHS[path]}
    settings = config.load("ml-100k-bench", [], {"prepare.source": "ml-100k", **keys})
    for stage in ("prepare", "embed", "augment"):
        pipeline.STAGES[stage](settings, lambda line: None)
    before = peak_mb()
    start = time.perf_counter()
    experiment = pipeline.open_experiment(settings)
    view = config.recbole_config(settings, "SASRec", settings.augmented, Path(folder))
    train_data, *_, cls = pipeline.loaders(experiment, view, "SASRec")
    built = time.perf_counter()
    model = cls(view, train_data._dataset)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    n_targets = 0
    for batch in train_data:
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        targets = batch["target_list"] if path == "sequence" else batch["item_id"]
        n_targets += int((targets > 0).sum())
    end = time.perf_counter()
    return {"build_s": built - start, "epoch_s": end - built, "targets": n_targets, "peak_mb": peak_mb() - before}


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=PATHS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = {path: [run(path, folder) for _ in range(arguments.repeats)] for path in PATHS}
    print(table(runs))


def run(path: str, folder: str) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, f"--measure={path}", f"--folder={folder}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Medians per path, and the ratio of the two, as Markdown."""
    keys = ["build_s", "epoch_s", "peak_mb", "targets"]
    middle = {path: {key: median(one[key] for one in measured) for key in keys} for path, measured in runs.items()}
    lines = ["| path | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
    lines += [f"| {path} | " + " | ".join(f"{row[key]:.2f}" for key in keys) + " |" for path, row in middle.items()]
    ratios = " | ".join(f"{middle['prefix'][key] / max(middle['sequence'][key], 1e-9):.2f}" for key in keys)
    return "\n".join([*lines, f"| prefix / sequence | {ratios} |"])


if __name__ == "__main__":
    main()
