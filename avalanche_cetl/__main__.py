"""The command `avalanche-cetl demo | features`, also called `python -m avalanche_cetl`.

Arguments are read first: help, the version and wrong arguments are answered without torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from avalanche_cetl.common.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status."""
    chosen = _parser().parse_args(arguments)
    result: int = chosen.run(chosen)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avalanche-cetl",
        description="Coupled end-to-end transfer learning with Generalized Fisher Information.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="compare CETL with its rivals on two real digit sets, without any download"
    )
    features = commands.add_parser(
        "features", help="run a frozen timm model over a folder of images, and store its features"
    )
    _add_demo(demo)
    _add_features(features)
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_demo)
    parser.add_argument("--quick", action="store_true", help="a small form of it, under a minute")
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--out",
        type=os.path.expanduser,
        default="demo-results",
        metavar="DIR",
        help="default: demo-results",
    )


def _whole(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that may not be below another."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} has to be a whole number >= {least}")
        return int(text)

    return read


def _demo(chosen: argparse.Namespace) -> int:
    try:
        os.makedirs(chosen.out, exist_ok=True)
    except OSError as problem:
        print(f"--out {chosen.out}: {problem.strerror}", file=sys.stderr)
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that Avalanche imports, about each other
        from avalanche_cetl.demo.run import run_demo

    try:
        run_demo(out=chosen.out, seed=chosen.seed, quick=chosen.quick)
    except ImportError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


def _add_features(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_features)
    parser.add_argument("--encoder", required=True, metavar="NAME", help="name of a timm model")
    parser.add_argument(
        "--weights",
        type=os.path.expanduser,
        metavar="FILE",
        help="local weights, or 'package'; default: timm's, downloaded",
    )
    parser.add_argument(
        "--images", required=True, metavar="DIR", help="folder, one a class or flat"
    )
    parser.add_argument(
        "--out", required=True, type=_new_file, metavar="FILE", help="a .safetensors file"
    )
    parser.add_argument("--layer", type=_number, metavar="L", help="feature layer, index or name")
    parser.add_argument(
        "--pool", type=_side, metavar="P", help="'avg', 'max' or the side of a grid"
    )
    parser.add_argument(
        "--image-size", type=_whole(1), metavar="N", help="default: the model's own"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--batch-size", type=_whole(1), default=64, metavar="N")
    workers = min(4, (os.cpu_count() or 1) - 1)
    parser.add_argument("--workers", type=_whole(0), default=workers, metavar="N")
    parser.add_argument("--device", help="default: a GPU where there is one")


def _number(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _side(text: str) -> int | str:
    number = _number(text)
    return _whole(1)(text) if isinstance(number, int) else number


def _new_file(text: str) -> str:
    path = os.path.expanduser(text)
    if not path.endswith(".safetensors") or os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{text} has to be a file whose name ends in .safetensors")
    return path


def _features(chosen: argparse.Namespace) -> int:
    from avalanche_cetl.features import command

    return command.run(chosen)


if __name__ == "__main__":
    raise SystemExit(main())
