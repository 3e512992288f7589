"""GFIPlugin in continual learning: `python -m benchmarks.continual [--data-root DIR]`.

Streams of digits, one small network, every method with the same optimiser, epochs and data:

- split-class: SplitMNIST, five experiences of two classes, one head of ten units.
- split-task: the same with a head for each experience, known in the test.
- split-domain: the same with labels odd and even, one head of two units.
- permuted: PermutedMNIST, five permutations, one head.
- domains: MNIST, USPS, optdigits at 16x16, one head.

GFIPlugin's rows without a further word have the penalty in the loss, as EWC has; "proximal" is its
default, a step of its own after the optimiser's.

Each method's strength is chosen among five values a factor of 10 (LwF: about 3) apart, by average
accuracy on validation images (of the training set) with a seed of its own; the test images are
read once, for seeds 0, 1, 2.
Results go to ``benchmarks/results/continual/STREAM.json``, run by run, so that a stopped run
goes on; ``--render`` writes ``table.md`` and ``continual.png`` from those files alone.
"""

from __future__ import annotations

import argparse
import os
import warnings

import torch

from benchmarks.continual import page
from benchmarks.continual.runs import run_stream
from benchmarks.continual.streams import STREAMS


def main() -> None:
    """Run the streams asked for, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default=",".join(STREAMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--render", action="store_true", help="only write table and figure")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="avalanche")
    torch.set_num_threads(1)
    if not args.render:
        for stream in args.streams.split(","):
            run_stream(stream, args.data_root, args.seeds)
    page.render()


if __name__ == "__main__":
    main()
