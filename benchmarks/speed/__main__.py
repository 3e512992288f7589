"""Time ours against what else there is: `python -m benchmarks.speed`.

    python -m benchmarks.speed fisher [--nets cicnn,resnet26,resnet18,vit] [--repeats 5]
    python -m benchmarks.speed cost --nets mlp,cicnn,vit,efficientnet,resnet26 --threads 1
    python -m benchmarks.speed gfi | penalty | kronecker | epoch | growth | memory | checkpoint
    python -m benchmarks.speed features --data-root DIR

Every figure is a ratio within one process. Rows are timed in turn, several times, so that a
slow moment of the machine hits all of them; median and range are printed, and written with
versions and settings to ``benchmarks/results/speed/``. Whoever is timed in ``fisher`` is
checked first: its values against a loop over single samples.
"""

from __future__ import annotations

import argparse
import os

import torch

from benchmarks.records import RESULTS, read, versions, write
from benchmarks.speed.checkpoint import checkpoint
from benchmarks.speed.cost import cost
from benchmarks.speed.epoch import epoch
from benchmarks.speed.features import features
from benchmarks.speed.fisher import fisher, growth, plot_fisher, plot_growth
from benchmarks.speed.kronecker import kronecker
from benchmarks.speed.refresh import gfi, memory, penalty

FOLDER = RESULTS / "speed"
PACKAGES = ("torch", "timm", "avalanche-lib", "backpack-for-pytorch", "opacus",
            "curvlinops-for-pytorch")  # fmt: skip
JOBS = {
    "fisher": fisher,
    "gfi": gfi,
    "penalty": penalty,
    "kronecker": kronecker,
    "cost": cost,
    "epoch": epoch,
    "features": features,
    "checkpoint": checkpoint,
    "growth": growth,
    "memory": memory,
}
PLOTS = {"fisher": plot_fisher, "growth": plot_growth}
IN_PARTS = ("fisher", "gfi", "features", "cost")  # whose networks or parts may be run one by one


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(JOBS))
    parser.add_argument("--nets", default="cicnn,resnet26,resnet18,vit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=None, help="images (default: by network)")
    parser.add_argument("--all-estimators", action="store_true")
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"), metavar="DIR")
    parser.add_argument(
        "--part", choices=["all", "extraction", "round", "probe"], default="all", help="of features"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = JOBS[args.what](args)
    name = args.what if args.device == "cpu" else f"{args.what}-{args.device}"
    path = FOLDER / f"{name}.json"
    if args.what in IN_PARTS and path.exists():
        result = read(path)["results"] | result
    document = {
        "settings": {k: v for k, v in vars(args).items() if k != "data_root"},
        "versions": versions(PACKAGES),
        "results": result,
    }
    write(path, document)
    if args.what in PLOTS:
        PLOTS[args.what](result, FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
