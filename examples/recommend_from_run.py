"""Recommend to somebody whom the model has never seen, from a finished run.

    python examples/recommend_from_run.py runs/NAME-HASH/MODEL-HASH ITEM ITEM ... [--k=5] [--domain=NAME]

The items are ids of the data set, oldest first. A run comes from `python run_edt.py --dataset=NAME`; for production
give the folder `all-data` in it, which `recommend --recommend.train_on_all=true` makes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import recbole_edt
from recbole_edt.errors import EDTError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("history", nargs="+", metavar="ITEM")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--domain")
    parser.add_argument("--data-path", help="where the atomic files are, if they have moved since training")
    given = parser.parse_args(arguments)
    try:
        model = recbole_edt.load(given.run_dir, given.data_path)
        found = model.recommend(given.history, k=given.k, domain=given.domain)
    except EDTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(found.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
