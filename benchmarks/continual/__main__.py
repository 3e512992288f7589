"""GFIPlugin in continual learning: `python -m benchmarks.continual [--data-root DIR]`.

Streams of images; in each one small network, and every method with the same optimiser, epochs and
data:

- permuted-10, permuted-20: permutations of MNIST's pixels, 2,000 images each, two hidden layers of
  64 units.
- permuted-50: the setting of Ritter, Botev and Barber (2018): fifty permutations of all images, two
  hidden layers of 100 units. They report about 90 %.
- rotated: six rotations of MNIST, 60 degrees apart; a convolutional network.
- split-class: SplitMNIST, five experiences of two classes, one head of ten units.
- split-task: the same with a head for each experience, known in the test.
- split-domain: the same with labels odd and even, one head of two units.
- permuted: five permutations, few images, larger layers.
- domains: MNIST, USPS, optdigits at 16x16, one head.
- cifar-task, cifar-domain: five experiences of two classes of CIFAR-10 with a head each, or with
  one head for all; a small residual network with BatchNorm.

"GFIPlugin()" is the plugin as it comes, without a strength that is chosen (that of the default was
chosen on other draws of permuted, split-class and split-domain, see ``natural.py``). "GFIPlugin,
diagonal" is EWC with an exact Fisher information, "GFIPlugin, diagonal, gate" has the paper's gate,
and "GFIPlugin, Kronecker" is the diagonal in the Kronecker basis,
``GFIPlugin(strength, basis="kronecker", fisher="sampled", normalize=True, penalty="proximal")``.
"joint" trains on all tasks' images at once and is no rival.

Each method's strength is chosen by average accuracy on validation images (of the training set) of
two streams with seeds of their own: three values a factor of 10 (LwF: 3) apart, then further ones
while the best is the last; the test images are read once a seed. Results go to
``benchmarks/results/continual/STREAM.json``, run by run, so that a stopped run goes on;
``--render`` writes ``table.md`` and the figures from those files alone.
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
    parser.add_argument("--methods", default="", help="names, separated by ';' (default: all)")
    parser.add_argument("--seeds", type=int, default=None, help="fewer than the stream has")
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--render", action="store_true", help="only write table and figure")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="avalanche")
    torch.set_num_threads(1)
    if not args.render:
        for stream in args.streams.split(","):
            run_stream(stream, args.data_root, args.seeds, args.methods)
    page.render()


if __name__ == "__main__":
    main()
