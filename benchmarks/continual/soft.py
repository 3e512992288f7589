"""A small network learns new classes from the ridge head: `python -m benchmarks.continual.soft`.

Split CIFAR-100, ten experiences of ten classes, 200 training images a class and all test images;
the task is not known, one head of 100 units. T2 is a small convolutional network with GroupNorm,
from zero; 3 passes, Adam, 1e-3, 64 images a mini-batch. S is the frozen EfficientNet-Lite0 of
``benchmarks.continual.frozen``, with stored features.

- soft targets: before T2 trains on an experience, ``StreamingRidge`` does; T2 then learns from its
  head, ``SoftTargets(temperature=2, head=ridge.head)``, beside the labels.
- GFIPlugin: as it comes.
- replay: ``ReplayPlugin(500)``, 64 old images beside each mini-batch.
- the loss of labels is over the new classes without replay, and over all that were seen with it.

All settings were fixed before a test label was read. The order of the classes is the seed's.
Results go to ``benchmarks/results/continual/soft.json``, run by run; ``--table`` writes the table.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from typing import Any

import torch
from torch import Tensor

from avalanche_cetl import (
    GFIPlugin,
    SoftTargets,
    StreamingRidge,
    TimmEncoder,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.continual.frozen import CLASSES, MEMORY, SIDE, STEP, source_network
from benchmarks.continual.natural import ROOTS, cifar100, small_cnn
from benchmarks.data.draws import Set
from benchmarks.markdown import table
from benchmarks.records import RESULTS, Runs, cell, read

FILE = RESULTS / "continual" / "soft.json"
KEYS = ("method", "seed")
PACKAGES = ("avalanche-lib", "torch", "timm", "avalanche-cetl")
EPOCHS, BATCH, RATE, TEMPERATURE = 3, 64, 1e-3, 2.0
#: By the name of a method: soft targets, GFIPlugin, replay.
METHODS = {
    "T2 alone": (False, False, False),
    "GFIPlugin": (False, True, False),
    "soft targets": (True, False, False),
    "soft targets, GFIPlugin": (True, True, False),
    "replay of 500": (False, False, True),
    "replay of 500, GFIPlugin": (False, True, True),
    "replay of 500, soft targets": (True, False, True),
    "replay of 500, soft targets, GFIPlugin": (True, True, True),
}


def data() -> tuple[Any, Set, TimmEncoder]:
    """Return the training set with stored features, test images, and the source network."""
    train, test, _ = cifar100()
    encoder = source_network()
    stored = with_source_features(transfer_benchmark(train, test), encoder)
    return stored.train_stream[0].dataset, test, encoder


def stream(train: Any, seed: int) -> Any:
    """Return the training stream of ten experiences; features go with their images."""
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline

    labels = torch.as_tensor(list(train.targets))
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed))
    parts = [
        train.subset(torch.isin(labels, classes).nonzero().flatten().tolist())
        for classes in order.split(STEP)
    ]
    return with_classes_timeline(benchmark_from_datasets(train=parts)).train_stream


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy over all classes, in percent."""
    model.eval()
    found = torch.cat([model(part).argmax(1) for part in x.split(500)])
    return round(100 * float((found == y).double().mean()), 3)


def run(method: str, seed: int, train: Any, test: Set, encoder: TimmEncoder) -> dict[str, Any]:
    """Train over the stream; return the accuracy on all test images."""
    from avalanche.training.losses import MaskedCrossEntropy
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.supervised import Naive

    soft, gfi, replay = METHODS[method]
    ridge = StreamingRidge(encoder, train_mb_size=500, evaluator=None)
    ridge.head.grow(CLASSES)
    criterion = MaskedCrossEntropy(mask="seen" if replay else "new")
    plugins: list[Any] = [criterion]
    if soft:
        plugins.append(SoftTargets(temperature=TEMPERATURE, source=encoder, head=ridge.head))
    if gfi:
        plugins.append(GFIPlugin())
    if replay:
        plugins.append(ReplayPlugin(MEMORY))
    model = small_cnn(CLASSES)(seed)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), RATE),
        criterion=criterion,
        train_mb_size=BATCH,
        train_epochs=EPOCHS,
        plugins=plugins,
        evaluator=None,
    )
    torch.manual_seed(seed)
    start = time.perf_counter()
    for experience in stream(train, seed):
        if soft:
            ridge.train(experience)
        strategy.train(experience)
    spent = time.perf_counter() - start
    return {"accuracy": accuracy(model, *test), "seconds": round(spent, 1)}


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--methods", default=";".join(METHODS), help="parted by ';'")
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--table", action="store_true", help="write the table alone")
    args = parser.parse_args()
    if args.table:
        FILE.with_suffix(".md").write_text(shown())
        return
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    ROOTS.update(data=args.data_root)
    settings = {
        "side": SIDE, "memory": MEMORY, "epochs": EPOCHS, "batch": BATCH, "rate": RATE,
        "temperature": TEMPERATURE,
    }  # fmt: skip
    kept = Runs(FILE, KEYS, settings, PACKAGES)
    train, test, encoder = data()
    for seed in map(int, args.seeds.split(",")):
        for method in args.methods.split(";"):
            if kept.find(method, seed) is None:
                found = {"method": method, "seed": seed, **run(method, seed, train, test, encoder)}
                kept.add(found)
                print(found, flush=True)


def shown() -> str:
    """Return the table in Markdown."""
    runs = read(FILE)["runs"]
    rows = []
    for method in METHODS:
        own = [run for run in runs if run["method"] == method]
        if own:
            accuracies = cell([run["accuracy"] for run in own])
            rows.append([method, accuracies, cell([run["seconds"] for run in own], 0)])
    return table(["", "accuracy over all classes %", "seconds"], rows) + "\n"


if __name__ == "__main__":
    main()
