"""What a checkpoint costs, in time beside a round and in bytes beside its tensors."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CoupledModel,
    PrecomputedEncoder,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.speed.timing import clock

SHAPE = (3, 32, 32)
DIM = 1280  #: of tf_efficientnet_lite0's features


def checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    """Time a checkpoint beside a round of CETL with CI-CNN, on as many images as CIFAR-10-s has.

    The variants with and without importances; S's features are stored, so a round is as short as
    it can be.
    """
    rows = args.samples or 10_000
    torch.manual_seed(0)
    x, y = torch.rand(rows, *SHAPE), torch.randint(10, (rows,))
    source = PrecomputedEncoder(torch.randn(rows, DIM))
    benchmark = with_source_features(
        transfer_benchmark((x, y), (x[:2], y[:2])), source, streams=["train"]
    )
    found: dict[str, Any] = {"images": rows}
    for variant in ("e", "gfi"):
        strategy = _strategy(variant, source, args.device)
        seconds = clock(lambda s=strategy: s.train(benchmark.train_stream), args.device)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one.safetensors"
            saving = [
                clock(lambda p=path, s=strategy: save_checkpoint(s, p), args.device)
                for _ in range(args.repeats)
            ]
            again = _strategy(variant, source, args.device)
            loading = clock(lambda p=path, s=again: load_checkpoint(s, p), args.device)
            size, held = path.stat().st_size, _tensor_bytes(path)
        found[variant] = {
            "saving over a round": statistics.median(saving) / seconds,
            "highest": max(saving) / seconds,
            "loading over a round": loading / seconds,
            "bytes over those of its tensors": size / held,
            "MiB": round(size / 2**20, 1),
        }
        print(variant, found[variant])
    return found


def _strategy(variant: str, source: PrecomputedEncoder, device: str) -> CETLStrategy:
    torch.manual_seed(0)
    model = CoupledModel.build(source, CICNN(10, SHAPE), SHAPE)
    return CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        preset="paper",
        variant=variant,
        train_mb_size=128,
        evaluator=None,
        device=device,
    )


def _tensor_bytes(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in list(file.keys()))
