"""`python -m benchmarks.tables TABLE [TABLE ...] [--scale smoke|cpu|full] [--seeds N]
[--data-root DIR] [--device DEVICE]`.

Runs what is missing, row by row: a stopped run goes on where it was. Every run leaves one JSON
file in ``benchmarks/results/tables/``; ``--render`` prints the table from those files alone.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.tables import board, fig2, table2, table2l, table2u, table3, table4, table5
from benchmarks.tables.rows import SCALES

MODULES = (table2, table2u, table2l, table3, table4, table5, fig2)
TABLES: dict[str, board.Table] = {module.TABLE.name: module.TABLE for module in MODULES}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.tables")
    parser.add_argument(
        "tables", nargs="+", choices=TABLES, metavar="table", help=", ".join(TABLES)
    )
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, default=None, help="default: 5, in smoke 1")
    parser.add_argument(
        "--rows", nargs="+", default=None, help="ids or titles; default: all of the table"
    )
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    parser.add_argument("--device", default="cpu", help="such as cuda; full is in bfloat16 there")
    parser.add_argument("--render", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    for name in args.tables:
        for row in args.rows or []:
            try:
                TABLES[name].find(row)
            except ValueError as problem:
                parser.error(str(problem))
    if not args.render and args.data_root is None:
        parser.error(
            "give --data-root DIR (with MNIST, USPS, CIFAR-10, mnist_m.npz), or set CETL_DATA."
        )
    seeds = args.seeds if args.seeds is not None else 1 if args.scale == "smoke" else 5
    for name in args.tables:
        table = TABLES[name]
        if not args.render:
            root, rows = args.data_root, args.rows
            board.run(table, args.scale, root, seeds, rows, args.processes, args.device)
        print(table.render(args.scale))


if __name__ == "__main__":
    main()
