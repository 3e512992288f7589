"""`python -m benchmarks.tables table5 [--scale smoke|cpu|full] [--seeds N] [--data-root DIR]`.

Runs what is missing, row by row: a stopped run goes on where it was. Every run leaves one JSON
file in ``benchmarks/results/tables/``; ``--render`` prints the table from those files alone.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.tables import table5
from benchmarks.tables.runs import SCALES

TABLES = {"table5": table5}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.tables")
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, default=None, help="default: 5, in smoke 1")
    parser.add_argument("--rows", nargs="+", default=None, choices=list(table5.ROWS))
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    table = TABLES[args.table]
    if not args.render:
        if args.data_root is None:
            raise SystemExit("give --data-root DIR (with MNIST and USPS), or set CETL_DATA.")
        seeds = args.seeds if args.seeds is not None else 1 if args.scale == "smoke" else 5
        table.run(args.scale, args.data_root, seeds, args.rows)
    print(table.render(args.scale))


if __name__ == "__main__":
    main()
