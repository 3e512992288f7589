"""MNIST to USPS from files on disk; skipped where CETL_DATA names no folder with them."""

import torch
from torch import nn
from torch.utils.data import Subset
from torchvision.datasets import MNIST, USPS
from torchvision.transforms import v2

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CoupledModel,
    ModuleEncoder,
    adaptation_benchmark,
)


def test_mnist_to_usps_trains_and_reconstructs(data_root):
    pictures = v2.Compose([v2.Resize(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    mnist = Subset(MNIST(data_root, train=True), range(200))
    usps = Subset(USPS(f"{data_root}/USPS", train=True), range(300))
    test = Subset(USPS(f"{data_root}/USPS", train=False), range(100))
    benchmark = adaptation_benchmark(
        mnist, usps, test, train_transform=pictures, eval_transform=pictures
    )
    torch.manual_seed(0)
    source = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    model = CoupledModel.build(
        ModuleEncoder(source, input_shape=(1, 16, 16)), CICNN(10, (1, 16, 16), 0.2), (1, 16, 16)
    )
    strategy = CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 2e-3),
        train_mb_size=32,
        train_epochs=1,
        preset="paper",
        variant="f",
        warmup_epochs=6,
        evaluator=None,
    )
    strategy.train(benchmark.train_stream)
    images = torch.stack([row[0] for row in benchmark.test_stream[0].dataset.eval()])
    model.eval()
    with torch.no_grad():
        error = (model.reconstruct_source(images) - images).square().mean()
    assert error < 0.8 * images.var()
    labels = [int(t) for t in benchmark.train_stream[0].dataset.targets]
    assert labels[:300] == [-1] * 300 and min(labels[300:]) >= 0
