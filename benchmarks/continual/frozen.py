"""Classify new classes on a frozen encoder: `python -m benchmarks.continual.frozen`.

Split CIFAR-100, ten experiences of ten classes, 200 training images a class and all test images;
features of an EfficientNet-Lite0 (ImageNet weights of its package, images enlarged to 96 px), which
are stored once. All methods read the same features. The order of the classes is the seed's.

- ridge: ``StreamingRidge`` with its defaults; with a random projection; and the joint ridge
  regression of all rows, by scikit-learn, at the same penalty.
- Avalanche's ``StreamingLDA`` and ``NCMClassifier``, as shipped; its ``FeCAMClassifier`` (Goswami
  et al. 2023) with its defaults and its plugin, its distances computed by one Cholesky factor per
  class: as shipped it takes a pseudo-inverse per class and batch of test images, and a matrix of
  all images by all.
- ``linear_probe``, a logistic regression on all training rows at once: a ceiling, no rival. Its
  penalty is chosen by cross-validation on training rows.
- a linear layer with ``ReplayPlugin(500)``: Adam, features standardised by the first experience;
  its learning rate is the best of six on 40 of the 200 training images of a class, order 100.
  The two lowest were added when the lowest of the other four was best, after one run on test
  images (45.4).

The defaults of the head were chosen on the same 40 of 200. No test label was read before. Results
go to ``benchmarks/results/continual/frozen.json``, run by run; ``--table`` writes ``frozen.md``.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl import (
    RidgeHead,
    StreamingRidge,
    TimmEncoder,
    linear_probe,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.continual.natural import ROOTS, cifar100
from benchmarks.data.draws import Set, split_off
from benchmarks.markdown import table
from benchmarks.records import RESULTS, Runs, cell, read

FILE = RESULTS / "continual" / "frozen.json"
KEYS = ("method", "part", "seed")
PACKAGES = ("avalanche-lib", "torch", "timm", "scikit-learn", "avalanche-cetl")
SIDE, DIM, CLASSES, STEP, MEMORY = 96, 1280, 100, 10, 500
WIDTH = 2000  # of the random projection
VALIDATION, TUNING_SEED = 40, 100
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
EPOCHS, BATCH = 5, 64
MEAN, STD = (0.50707, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)

Data = tuple[Set, Set]


def source_network() -> TimmEncoder:
    """Return EfficientNet-Lite0 for images of CIFAR-100."""
    return TimmEncoder(
        "tf_efficientnet_lite0",
        weights="package",
        image_size=SIDE,
        input_mean=MEAN,
        input_std=STD,
    )


def features() -> Data:
    """Return features and labels of the training and of the test images, in float32."""
    train, test, _ = cifar100()
    stored = with_source_features(transfer_benchmark(train, test), source_network())
    rows = [
        stream[0].dataset.source_features for stream in (stored.train_stream, stored.test_stream)
    ]
    first, second = (torch.stack([one[i] for i in range(len(one))]).float() for one in rows)
    return (first, train[1]), (second, test[1])


def renumbered(data: Data, seed: int) -> Data:
    """Number the classes in the order in which they come."""
    number = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed)).argsort()
    return (data[0][0], number[data[0][1]]), (data[1][0], number[data[1][1]])


def stream(data: Data) -> Any:
    """Return the training stream of ten experiences."""
    from avalanche.benchmarks import tensors_benchmark

    (x, y), _ = data
    parts = [(x[y // STEP == k], y[y // STEP == k]) for k in range(CLASSES // STEP)]
    return tensors_benchmark(parts, parts[:1], task_labels=[0] * len(parts)).train_stream


def accuracy(model: Callable[[Tensor], Tensor], data: Data, at_once: int = 500) -> float:
    """Return the accuracy over all classes on the second set, in percent."""
    x, y = data[1]
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in x.split(at_once)])
    return round(100 * float((found == y).double().mean()), 3)


# ------------------------------------------------------------------ methods


def ridge(data: Data, projection: int | None = None) -> float:
    """Train ``StreamingRidge`` over the stream."""
    head = RidgeHead(DIM, projection=projection)
    strategy = StreamingRidge(nn.Identity(), head, train_mb_size=500, evaluator=None)
    strategy.train(stream(data))
    return accuracy(strategy.model.eval(), data)


def joint_ridge(data: Data) -> float:
    """Fit scikit-learn's ridge regression to all rows at once."""
    from sklearn.linear_model import Ridge

    x, y = data[0][0].double(), data[0][1]
    penalty = float(x.var(0, correction=0).sum())
    fitted = Ridge(penalty, solver="cholesky").fit(x.numpy(), nn.functional.one_hot(y).numpy())
    return accuracy(lambda part: torch.as_tensor(fitted.predict(part.double().numpy())), data)


def slda(data: Data) -> float:
    """Train Avalanche's StreamingLDA, as shipped."""
    from avalanche.training.supervised import StreamingLDA

    strategy = StreamingLDA(
        slda_model=nn.Identity(),
        criterion=nn.CrossEntropyLoss(),
        input_size=DIM,
        num_classes=CLASSES,
        train_mb_size=2000,
        evaluator=None,
    )
    strategy.train(stream(data))
    return accuracy(strategy.predict, data)


def _filled(classifier: nn.Module, plugin: Any, data: Data) -> Any:
    """Return a classifier that Avalanche's plugin fills from the stream, as shipped."""
    from avalanche.training.supervised import Naive

    model = nn.Module()
    model.feature_extractor, model.eval_classifier = nn.Identity(), classifier
    model.unused = nn.Parameter(torch.zeros(1))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        train_epochs=0,
        train_mb_size=500,
        plugins=[plugin],
        evaluator=None,
    )
    strategy.train(stream(data))
    return model.eval_classifier


def ncm(data: Data) -> float:
    """Let Avalanche's plugin compute the class means."""
    from avalanche.models import NCMClassifier
    from avalanche.training.plugins.update_ncm import CurrentDataNCMUpdate

    return accuracy(_filled(NCMClassifier(), CurrentDataNCMUpdate(), data), data)


def fecam(data: Data) -> float:
    """Let Avalanche's plugin compute means and covariances of the classes."""
    from avalanche.models import FeCAMClassifier
    from avalanche.training.plugins.update_fecam import CurrentDataFeCAMUpdate

    found = _filled(FeCAMClassifier(), CurrentDataFeCAMUpdate(), data)
    return accuracy(fecam_logits(found), data, at_once=len(data[1][0]))


def fecam_logits(classifier: Any) -> Callable[[Tensor], Tensor]:
    """Return what a FeCAMClassifier gives, ``-d^T S^-1 d`` for each class, in less time."""

    def logits(x: Tensor) -> Tensor:
        x = nn.functional.normalize(classifier.apply_transforms(x), dim=1)
        found = []
        for number in range(classifier.max_class + 1):
            mean = nn.functional.normalize(classifier.class_means_dict[number], dim=0)
            factor = torch.linalg.cholesky(classifier.class_cov_dict[number])
            scaled = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False)
            found.append(-scaled.square().sum(0))
        return torch.stack(found, 1)

    return logits


def probe(data: Data) -> float:
    """Fit a logistic regression to all rows at once."""
    return accuracy(linear_probe(*data[0]), data)


def replay(data: Data, rate: float, seed: int) -> float:
    """Train a linear layer over the stream, with a memory of old features."""
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.supervised import Naive

    x, y = data[0]
    first = x[y < STEP]
    mean, std = first.mean(0), first.std(0).clamp_min(1e-3)
    data = ((x - mean) / std, y), ((data[1][0] - mean) / std, data[1][1])
    torch.manual_seed(seed)
    model = nn.Linear(DIM, CLASSES)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), rate),
        train_mb_size=BATCH,
        train_epochs=EPOCHS,
        plugins=[ReplayPlugin(MEMORY)],
        evaluator=None,
    )
    strategy.train(stream(data))
    return accuracy(model, data)


METHODS: dict[str, Callable[[Data], float]] = {
    "StreamingRidge": ridge,
    "joint ridge regression": joint_ridge,
    "NCM (Avalanche)": ncm,
    "StreamingLDA (Avalanche)": slda,
    "FeCAM (Avalanche)": fecam,
    "joint linear probe": probe,
    "StreamingRidge, projection": lambda data: ridge(data, WIDTH),
}
REPLAY = "linear layer, replay of 500"


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=";".join([REPLAY, *METHODS]), help="parted by ';'")
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
        "side": SIDE, "memory": MEMORY, "epochs": EPOCHS, "batch": BATCH, "rates": RATES,
        "projection": WIDTH, "validation": VALIDATION,
    }  # fmt: skip
    kept = Runs(FILE, KEYS, settings, PACKAGES)
    data = features()

    def run(method: str, part: str, seed: int, job: Callable[[], float], **more: Any) -> Any:
        found = kept.find(method, part, seed)
        if found is None:
            start = time.perf_counter()
            found = {"method": method, "part": part, "seed": seed, "accuracy": job(), **more}
            found["seconds"] = round(time.perf_counter() - start, 2)
            kept.add(found)
            print(found, flush=True)
        return found

    chosen = args.methods.split(";")
    best = None
    if REPLAY in chosen:
        held_out, rest = split_off(data[0], VALIDATION)
        tuned = renumbered((rest, held_out), TUNING_SEED)
        tried = [
            run(f"{REPLAY}, {rate}", "validation", TUNING_SEED, lambda r=rate: replay(tuned, r, 0))
            for rate in RATES
        ]
        best = RATES[max(range(len(RATES)), key=lambda k: tried[k]["accuracy"])]
    for seed in map(int, args.seeds.split(",")):
        ordered = renumbered(data, seed)
        for method in chosen:
            if method == REPLAY:
                run(
                    method, "test", seed,
                    lambda o=ordered, s=seed: replay(o, best, s), rate=best,
                )  # fmt: skip
            else:
                run(method, "test", seed, lambda m=method, o=ordered: METHODS[m](o))


def shown() -> str:
    """Return the table in Markdown."""
    runs = [run for run in read(FILE)["runs"] if run["part"] == "test"]
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        rows.append(
            [
                method,
                cell([run["accuracy"] for run in own]),
                cell([run["seconds"] for run in own], 0),
            ]
        )
    return table(["", "accuracy over all classes %", "seconds"], rows) + "\n"


if __name__ == "__main__":
    main()
