"""The feature store: a CETL round with S live against stored features, extraction, float16.

Protocol: S = tf_efficientnet_lite0 with its package's ImageNet weights at 128 px; CIFAR-10-s
is a stratified fifth of CIFAR-10's training set, seed 0; T2 is CI-CNN. The probe is a
logistic regression on standardised features of 4,000 training images, its strength chosen on
1,000 of them that are held out, tested once on 1,000 test images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CoupledModel,
    TimmEncoder,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.data.cifar import read_cifar10
from benchmarks.data.draws import Set, draw
from benchmarks.speed.timing import clock, ratios, spread

SHAPE = (3, 32, 32)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)


def features(args: argparse.Namespace) -> dict[str, Any]:
    """Time rounds and extraction, and measure what half precision costs."""
    if args.data_root is None:
        raise SystemExit("features needs CIFAR-10: give --data-root DIR or set CETL_DATA.")
    train, test, kind = read_cifar10(args.data_root)
    encoder = TimmEncoder("tf_efficientnet_lite0", weights="package", image_size=128)
    encoder.to(args.device)
    small = draw(train, args.samples // 10 if args.samples else 1000)
    result: dict[str, Any] = {"data": f"CIFAR-10 ({kind})", "round_images": len(small[0])}
    with tempfile.TemporaryDirectory() as folder:
        if args.part in ("all", "extraction"):
            result["extraction"] = _extraction(args, encoder, small, Path(folder))
        if args.part in ("all", "round"):
            result["round"] = _rounds(args, encoder, small, Path(folder))
        if args.part in ("all", "probe"):
            result["probe"] = _probe(args, encoder, train, test, Path(folder))
    for name in ("extraction", "round"):
        for job, row in result.get(name, {}).items():
            print(f"{name}: {job:32} {spread(row)}")
    for precision, row in result.get("probe", {}).items():
        print(f"probe on {precision} features: {row}")
    return result


def _benchmark(data: Set) -> Any:
    return transfer_benchmark((data[0], data[1]), (data[0][:2], data[1][:2]))


def _extraction(
    args: argparse.Namespace, encoder: TimmEncoder, data: Set, folder: Path
) -> dict[str, dict[str, float]]:
    """Compute images a second of extraction over those of the bare forward pass."""
    x = data[0][:1024]
    benchmark = _benchmark((x, data[1][:1024]))
    seconds: dict[str, list[float]] = {"bare forward pass": [], "extraction, nothing stored": []}
    seconds["everything stored"] = []
    for turn in range(args.repeats + 1):
        place = folder / f"extraction{turn}"

        def store(place: Path = place) -> None:
            with_source_features(benchmark, encoder, place, streams=["train"], progress=False)

        def bare() -> None:
            for batch in x.split(64):
                encoder(batch.to(args.device)).cpu()

        for name, job in zip(seconds, (bare, store, store), strict=True):
            took = clock(job, args.device)
            if turn:
                seconds[name].append(took)
    return ratios(seconds, "bare forward pass")


def _rounds(
    args: argparse.Namespace, encoder: TimmEncoder, data: Set, folder: Path
) -> dict[str, dict[str, float]]:
    """Time a round (batch 128) with S live, and with its features beside the images.

    Variant e in ten parts of the images, the two in turn, so that the machine's moods fall on
    both; gfi, which measures once a round, whole: stored, live, stored.
    """
    seconds: dict[str, dict[str, list[float]]] = {
        variant: {f"{variant}, stored": [], f"{variant}, S live": []} for variant in ("e", "gfi")
    }

    def train(variant: str, features: str, strategy: CETLStrategy, benchmark: Any) -> None:
        took = clock(lambda: strategy.train(benchmark.train_stream), args.device)
        seconds[variant][f"{variant}, {features}"].append(took)

    def stored_of(benchmark: Any) -> Any:
        return with_source_features(benchmark, encoder, folder / "round", streams=["train"])

    size = len(data[0]) // 10
    parts = [_benchmark((x, y)) for x, y in zip(*(d.split(size) for d in data[:2]), strict=True)]
    pairs = [(live, stored_of(live)) for live in parts]
    strategies = [_strategy(args, encoder, "e") for _ in range(2)]
    for strategy in strategies:
        strategy.train(pairs[0][1].train_stream)
    for live, stored in pairs:
        train("e", "stored", strategies[0], stored)
        train("e", "S live", strategies[1], live)
    live = _benchmark(data)
    stored = stored_of(live)
    strategies = [_strategy(args, encoder, "gfi") for _ in range(2)]
    for strategy in strategies:
        strategy.train(pairs[0][1].train_stream)  # fits statistics, plans routes
    train("gfi", "stored", strategies[0], stored)
    train("gfi", "S live", strategies[1], live)
    train("gfi", "stored", strategies[0], stored)
    seconds["gfi"]["gfi, S live"] *= 2
    return ratios(seconds["e"], "e, stored") | ratios(seconds["gfi"], "gfi, stored")


def _strategy(args: argparse.Namespace, encoder: TimmEncoder, variant: str) -> CETLStrategy:
    torch.manual_seed(0)
    model = CoupledModel.build(encoder, CICNN(10, SHAPE), SHAPE).to(args.device)
    return CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3),
        preset="paper",
        variant=variant,
        train_mb_size=128,
        evaluator=None,
        device=args.device,
    )


def _probe(
    args: argparse.Namespace, encoder: TimmEncoder, train: Set, test: Set, folder: Path
) -> dict[str, Any]:
    """Compute the accuracy of a linear probe on features of either precision."""
    chosen, held_out = draw(train, 400), draw(test, 100)
    benchmark = transfer_benchmark(chosen, held_out)
    rows: dict[str, Any] = {}
    values: dict[str, Tensor] = {}
    for dtype in ("float32", "float16"):
        stored = with_source_features(benchmark, encoder, folder / "probe", dtype=dtype)
        x, y = _matrix(stored.train_stream[0].dataset)
        values[dtype] = x
        rows[dtype] = _fitted(x, y, *_matrix(stored.test_stream[0].dataset))
    gap = (values["float16"] - values["float32"]).norm() / values["float32"].norm()
    rows["float16"]["relative_error_of_features"] = float(gap)
    return rows


def _matrix(dataset: Any) -> tuple[Tensor, np.ndarray]:
    rows = torch.stack([row.float() for row in dataset.source_features])
    return rows, np.array([int(target) for target in dataset.targets])


def _fitted(x: Tensor, y: np.ndarray, test_x: Tensor, test_y: np.ndarray) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def probe(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))

    scores = {c: probe(c).fit(x[:-1000], y[:-1000]).score(x[-1000:], y[-1000:]) for c in STRENGTHS}
    best = max(scores, key=lambda c: scores[c])
    accuracy = probe(best).fit(x, y).score(test_x, test_y)
    return {"C": best, "validation_accuracy": scores[best], "test_accuracy": accuracy}
