"""How long `prepare` takes for raw review files of any length, and how much memory.

    python benchmarks/raw.py [--lines=10000000] [--folder=FOLDER]

Writes two categories of synthetic reviews and metadata in Amazon's format of 2018, gzipped, into a temporary folder
under FOLDER (about 250 bytes a line; the system's by default), makes a 5-core data set of them in a process of its own,
prints one line of figures and removes the folder. Histories are as short as in the real files: most users come once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import synthetic

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ("food", "kitchen")
FILES = {name: {"interactions": f"{name}.json.gz", "items": f"meta_{name}.json.gz"} for name in CATEGORIES}
_BLOCK = 100_000
# The share of users with n reviews or more falls with this power of n: most come once, and users of five or more have
# written a quarter of the lines.
_POWER = 1.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=10_000_000, help="reviews in both categories together")
    parser.add_argument("--folder", type=Path, help="where the files may lie meanwhile")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        written = write(folder, options.lines)
        print(f"written in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        command = [sys.executable, __file__, f"--measure={folder}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(json.dumps({**written, **json.loads(done.stdout)}))


def write(folder: Path, n_lines: int, seed: int = 0) -> dict[str, int]:
    """Two categories of reviews and metadata; returns how many lines and bytes."""
    rng = np.random.default_rng(seed)
    words = np.array(["tea", "pan", "great", "the", "a", "of", "taste", "never", "again", "quality", "and", "steel"])
    text = " ".join(words[rng.integers(len(words), size=200_000)])
    n_items = max(n_lines // 80, 10)
    n_bytes = {"plain_mb": 0, "gzip_mb": 0}
    for name in CATEGORIES:
        for file, lines in (
            (f"{name}.json.gz", reviews(rng, name, n_lines // 2, n_items, text)),
            (f"meta_{name}.json.gz", products(rng, name, n_items, text)),
        ):
            with gzip.open(folder / file, "wb", compresslevel=1) as out:
                for block in lines:
                    n_bytes["plain_mb"] += len(block) // 2**20
                    out.write(block)
            n_bytes["gzip_mb"] += (folder / file).stat().st_size // 2**20
    return {"lines": n_lines // 2 * 2, "items": 2 * n_items, **n_bytes}


def reviews(rng: np.random.Generator, name: str, n_lines: int, n_items: int, text: str) -> Iterator[bytes]:
    """Blocks of review lines in no order."""
    length = np.minimum(rng.pareto(_POWER, n_lines) + 1, 500).astype(np.int64)
    user = rng.permutation(np.repeat(np.arange(n_lines), length)[:n_lines])
    item = synthetic.items(rng, n_lines, n_items)
    day = rng.integers(12_000, 17_000, n_lines)
    begin, size = rng.integers(len(text) // 2, size=n_lines), rng.lognormal(5, 1, n_lines).astype(np.int64)
    for start in range(0, n_lines, _BLOCK):
        part = slice(start, start + _BLOCK)
        columns = (user[part], item[part], day[part], begin[part], size[part])
        yield "".join(
            f'{{"overall": 5.0, "verified": true, "reviewTime": "06 17, 2018", "reviewerID": "A{u:013d}", '
            f'"asin": "{name[0].upper()}{i:09d}", "reviewerName": "someone", "reviewText": "{text[b : b + s]}", '
            f'"summary": "Five Stars", "unixReviewTime": {d * 86_400}}}\n'
            for u, i, d, b, s in zip(*(column.tolist() for column in columns), strict=True)
        ).encode()


def products(rng: np.random.Generator, name: str, n_items: int, text: str) -> Iterator[bytes]:
    """Blocks of metadata lines."""
    begin = rng.integers(len(text) // 2, size=n_items)
    for start in range(0, n_items, _BLOCK):
        numbers = range(start, min(start + _BLOCK, n_items))
        yield "".join(
            f'{{"category": ["{name}", "More"], "description": ["{text[begin[i] : begin[i] + 500]}"], '
            f'"title": "{name} &amp; no {i}", "brand": "Acme", "asin": "{name[0].upper()}{i:09d}"}}\n'
            for i in numbers
        ).encode()


def measure(folder: Path) -> dict[str, float]:
    """Seconds and peak memory of the stage, in this process."""
    sys.path.insert(0, str(ROOT))
    from recbole_edt.data import prepare, sources

    config = sources.PrepareConfig("amazon2018", str(folder), FILES, k_core=5)
    imports_mb = _peak_mb()
    start, start_cpu = time.perf_counter(), time.process_time()
    prepare.prepare(config, folder / "out", "mine")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    counts = json.loads((folder / "out" / "prepare.json").read_text())["counts"]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "lines_per_second": round(counts["rows_read"] / seconds),
        "peak_mb": round(_peak_mb()),
        "imports_mb": round(imports_mb),
        "rows_kept": counts["rows_kept"],
    }


def _peak_mb() -> float:
    """Peak resident memory; getrusage would count that of the process before it became this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
