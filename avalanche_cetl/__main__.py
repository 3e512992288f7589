"""Command line: `python -m avalanche_cetl demo | features`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m avalanche_cetl", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="compare CETL with its rivals on two real digit sets, without any download"
    )
    demo.add_argument("--quick", action="store_true", help="a small form of it, under a minute")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    demo.add_argument(
        "--out",
        type=os.path.expanduser,
        default="demo-results",
        metavar="DIR",
        help="default: demo-results",
    )
    features = commands.add_parser(
        "features", help="run a frozen timm model over a folder of images, and store its features"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that Avalanche imports, about each other
        from avalanche_cetl.features import command as folder

    folder.add_arguments(features)
    chosen = parser.parse_args(arguments)
    if chosen.command == "features":
        return folder.run(chosen)
    if chosen.seed < 0:
        parser.error(f"--seed {chosen.seed}: has to be 0 or more")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that Avalanche imports, about each other
        from avalanche_cetl.demo.run import run_demo

    try:
        run_demo(out=chosen.out, seed=chosen.seed, quick=chosen.quick)
    except ImportError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
