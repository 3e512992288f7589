"""One strength for all streams: `python -m benchmarks.continual.natural STREAMS METHODS`.

The importance of the outputs (``fisher="logits"``, not rescaled) gives the penalty a unit, so that
one strength may serve every stream. This looks for it, and for the units that count, on four
streams; the other streams are read once, with what was chosen. Rivals have the best of a few
strengths on the very figures that are shown, which favours them.

- chosen on: permuted (ten permutations of MNIST), odd-even (MNIST in five pairs of classes, one
  head of two), split (SplitMNIST, one head, loss over the new classes), cifar-split (CIFAR-100 in
  five experiences of ten classes, one head of fifty, loss over the new classes; accuracy over all
  classes, and among those of the image's task).
- read once: rotated (MNIST, a CNN), fashion-permuted, fashion-split, cifar-domains (CIFAR-100's
  superclasses, each experience with other subclasses), and cifar-pretrained (the same with fewer
  images, at 64 px, and EfficientNet-Lite0 from its weights of ImageNet; BatchNorm's statistics stay
  ImageNet's; Adam's rate of 3e-4 was the best of 1e-3, 3e-4, 1e-4 and 3e-5 for the first task of
  another seed, on training images that were held out).

A method is a kind with its settings, as ``natural:strength=10,units=seen``; ``GFIPlugin`` is the
plugin as it comes, ``Replay:memory=50`` Avalanche's replay of so many images in all,
``GFIPlugin+Replay:memory=50`` both, with further settings of the plugin. With replay the loss is
over all classes seen so far.

Data: ``--data-root`` has MNIST as torchvision reads it and ``cifar100-200.zip``, ``--fashion-root``
Fashion-MNIST's idx files. Results go to ``benchmarks/results/continual/natural.json``, run by run;
tables of them are printed by ``python -m benchmarks.continual.natural_table``.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import GFIPlugin, TimmEncoder
from benchmarks.continual.methods import network
from benchmarks.continual.rotation import RotatedEWC
from benchmarks.continual.runs import _benchmark, cut_from_tensors, summary
from benchmarks.continual.streams import Part, Stream, Task, _permuted, _rotated, mnist
from benchmarks.data.cifar import read_cifar100
from benchmarks.data.draws import Set
from benchmarks.records import RESULTS, Runs

FILE = RESULTS / "continual" / "natural.json"
KEYS = ("stream", "method", "optimiser", "seed")
PACKAGES = ("avalanche-lib", "torch", "timm", "avalanche-cetl")
IMAGES = 2000  # training images of an experience, where the stream does not say another number
TESTED = 1000

# ------------------------------------------------------------------ streams


@dataclass(frozen=True)
class Setting:
    """A stream and how all methods train on it.

    :ivar tasks: makes the experiences, of a seed.
    :ivar network: makes the network, of a seed.
    :ivar masked: the loss reads the units of the experience's classes alone.
    """

    tasks: Callable[[int], list[Task]]
    network: Callable[[int], nn.Module]
    epochs: int = 3
    batch: int = 64
    masked: bool = False
    lr: float = 1e-3


ROOTS: dict[str, str | None] = {}
REPLAY = "Replay"


def _rows(y: Tensor, classes: list[int]) -> Tensor:
    return torch.isin(y, torch.tensor(classes)).nonzero().flatten()


def _split(
    train: Set,
    test: Set,
    groups: list[list[int]],
    seed: int,
    images: int,
    tested: int = TESTED,
) -> list[Task]:
    """Make experiences of groups of classes, labels as they are."""
    generator, found = torch.Generator().manual_seed(seed), []
    for group in groups:
        parts = []
        for (x, y), count in ((train, images), (test, tested)):
            rows = _rows(y, group)
            rows = rows[torch.randperm(len(rows), generator=generator)[:count]]
            parts.append(Part(x[rows], y[rows]))
        found.append((parts[0], parts[1], parts[1]))
    return found


def _pairs(seed: int, data: tuple[Set, Set], odd: bool = False) -> list[Task]:
    tasks = _split(*data, [[2 * k, 2 * k + 1] for k in range(5)], seed, IMAGES)
    if odd:
        for part in {id(p): p for task in tasks for p in task}.values():
            part.y = part.y % 2
    return tasks


@cache
def fashion() -> tuple[Set, Set]:
    """Read Fashion-MNIST from its idx files."""
    import gzip

    found = []
    for part in ("train", "t10k"):
        arrays = []
        for name, skip in (("images-idx3", 16), ("labels-idx1", 8)):
            path = os.path.join(str(ROOTS["fashion"]), f"{part}-{name}-ubyte.gz")
            with gzip.open(path) as file:
                arrays.append(np.frombuffer(file.read(), np.uint8, offset=skip).copy())
        x = torch.from_numpy(arrays[0]).view(-1, 1, 28, 28).float() / 255
        found.append((x, torch.from_numpy(arrays[1]).long()))
    return found[0], found[1]


@cache
def cifar100() -> tuple[Set, Set, list[str]]:
    """Read CIFAR-100 (200 training images per class) out of its zip, standardised."""
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in MOMENTS)
    *sets, classes = read_cifar100(str(ROOTS["data"]))
    train, test = (((x - mean) / std, y) for x, y in sets)
    return train, test, classes


def _cifar_split(seed: int) -> list[Task]:
    """Make five experiences of ten classes; fifty classes are drawn, and numbered in order."""
    train, test, _ = cifar100()
    drawn = torch.randperm(100, generator=torch.Generator().manual_seed(seed))[:50].tolist()
    number = torch.full((100,), -1)
    number[torch.tensor(drawn)] = torch.arange(50)
    sets = [(x, number[y]) for x, y in (train, test)]
    return _split(
        sets[0], sets[1], [list(range(10 * k, 10 * k + 10)) for k in range(5)], seed, IMAGES
    )


#: Means and standard deviations of CIFAR-100's channels.
MOMENTS = (0.50707, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)
#: CIFAR-100's superclasses.
SUPERCLASSES = """beaver dolphin otter seal whale
aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip
bottle bowl can cup plate
apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe
bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf
bridge castle house road skyscraper
cloud forest mountain plain sea
camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk
crab lobster snail spider worm
baby boy girl man woman
crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor"""


def _cifar_domains(seed: int, images: int = IMAGES, tested: int = TESTED) -> list[Task]:
    """Make five experiences of one subclass of each superclass; the superclass is the label."""
    train, test, classes = cifar100()
    generator = torch.Generator().manual_seed(seed)
    table = [line.split() for line in SUPERCLASSES.splitlines()]
    table = [[line[k] for k in torch.randperm(5, generator=generator).tolist()] for line in table]
    label = torch.zeros(100, dtype=torch.long)
    for number, line in enumerate(table):
        for name in line:
            label[classes.index(name)] = number
    groups = [[classes.index(line[k]) for line in table] for k in range(5)]
    tasks = _split(train, test, groups, seed, images, tested)
    for part in {id(p): p for task in tasks for p in task}.values():
        part.y = label[part.y]
    return tasks


def small_cnn(outputs: int) -> Callable[[int], nn.Module]:
    """Three convolutions with GroupNorm, and two Linear layers."""

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, width in ((3, 32), (32, 64), (64, 64)):
            convolution = nn.Conv2d(inputs, width, 3, stride=2, padding=1)
            layers += [convolution, nn.GroupNorm(8, width), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, outputs)]
        return nn.Sequential(*layers)

    return make


class Pretrained(nn.Module):
    """EfficientNet-Lite0 with its weights of ImageNet and a new head; all of it trains.

    The statistics of BatchNorm stay ImageNet's: over a stream of domains they would be those of the
    newest images.

    :param outputs: of the head.
    """

    SIDE = 64  # CIFAR's images are brought to so many pixels

    def __init__(self, outputs: int):
        super().__init__()
        encoder = TimmEncoder("tf_efficientnet_lite0", weights="package")
        self.network: Any = encoder.module.requires_grad_(True)
        for module in self.network.modules():
            module._forward_hooks.clear()  # the encoder's own
        self.network.reset_classifier(outputs)

    def train(self, mode: bool = True) -> Pretrained:
        """Set the mode of all but BatchNorm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images that :func:`cifar100` has standardised."""
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in MOMENTS)
        x = F.interpolate(x * std + mean, self.SIDE, mode="bilinear", antialias=True)
        logits: Tensor = self.network((x - 0.5) / 0.5)
        return logits


def pretrained(outputs: int) -> Callable[[int], nn.Module]:
    """Return what makes a network that knows ImageNet."""

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Pretrained(outputs)

    return make


def _mnist() -> tuple[Set, Set]:
    return mnist(ROOTS["data"])


def _permuted_fashion(seed: int) -> list[Task]:
    """Make ten permutations of Fashion-MNIST."""
    (x, y), (u, v) = fashion()
    generator, found = torch.Generator().manual_seed(seed), []
    rows = torch.randperm(len(v), generator=generator)[:TESTED]
    for k in range(10):
        order = torch.randperm(784, generator=generator) if k else torch.arange(784)
        own = torch.randperm(len(y), generator=generator)[:IMAGES]
        test = Part(u[rows], v[rows], order)
        found.append((Part(x[own], y[own], order), test, test))
    return found


def _dense(*sizes: int, classes: int = 10) -> Callable[[int], nn.Module]:
    stream = Stream(lambda *_: [], ("dense", *sizes), classes=classes)
    return lambda seed: network(stream, seed)


def _convolutional(seed: int) -> nn.Module:
    return network(Stream(lambda *_: [], ("convolutional",)), seed)


STREAMS = {
    "permuted": Setting(
        lambda s: _permuted(10, IMAGES, TESTED)(ROOTS["data"], s), _dense(784, 64, 64)
    ),
    "odd-even": Setting(lambda s: _pairs(s, _mnist(), True), _dense(784, 64, 64, classes=2)),
    "split": Setting(lambda s: _pairs(s, _mnist()), _dense(784, 64, 64), masked=True),
    "cifar-split": Setting(_cifar_split, small_cnn(50), masked=True),
    "rotated": Setting(lambda s: _rotated(ROOTS["data"], s), _convolutional),
    "fashion-permuted": Setting(_permuted_fashion, _dense(784, 64, 64)),
    "fashion-split": Setting(lambda s: _pairs(s, fashion()), _dense(784, 64, 64), masked=True),
    "cifar-domains": Setting(_cifar_domains, small_cnn(20)),
    "cifar-pretrained": Setting(
        lambda s: _cifar_domains(s, 600, 500), pretrained(20), batch=32, lr=3e-4
    ),
}

# ------------------------------------------------------------------ methods


def unit_vectors(outputs: Tensor, shares: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """Draw vectors u with ``E[u u^T] = diag(p) - p p^T``, one per image.

    :param outputs: logits z, ``(N, K)``.
    :param shares: weight of each unit, ``(K,)``; p is ``shares * softmax(z / tau)`` over its sum.
    :param tau: infinity: p is the shares.
    :return: ``(N, K)``, in float64.
    """
    p = (outputs.double() / tau).softmax(1) * shares
    root = (p / p.sum(1, keepdim=True)).sqrt()
    v = torch.randn(root.shape, generator=generator, dtype=torch.float64)
    v = (v - (v * root).sum(1, keepdim=True) * root) * (root > 0)
    # On a sphere: the same mean, without the noise in the length.
    rank = (root > 0).sum(1, keepdim=True) - 1
    return v * rank.sqrt() / v.norm(dim=1, keepdim=True) * root


class Natural(GFIPlugin):
    """The importance of the outputs, not rescaled, over chosen units.

    :param units: ``"all"``, ``"seen"``, ``"mix"``: units of classes that were not seen have
        ``rest`` of what a seen one has; the shares sum to 1.
    :param tau: a unit's share of an image is that times ``exp(z / tau)``: finite, an image counts
        less, the surer the network is of it.
    :param form: ``"loss"``, ``"proximal"``, or ``"capped"``: in the loss, with the stiffness
        ``lambda I / (1 + eta lambda I)``.
    """

    def __init__(
        self,
        strength: float,
        units: str = "all",
        rest: float = 0.0,
        form: str = "loss",
        tau: float = math.inf,
        **more: Any,
    ):
        penalty: Any = "proximal" if form == "proximal" else "loss"
        settings = {"basis": "kronecker", "fisher": "logits", "normalize": False} | more
        super().__init__(strength, keep_importance_data=True, penalty=penalty, **settings)
        self.units, self.rest, self.form = units, rest, form
        self.tau, self.seen = tau, set[int]()
        reading: Any = self.measurer.likelihood
        reading.draw, reading.vectors_later = self._draw, lambda *_: None

    def _draw(self, model, images, tasks, generator, fisher="logits", weights=None):  # type: ignore[no-untyped-def]
        """Draw a vector for each image, over the units that count."""
        with torch.no_grad():
            model.eval()
            outputs = torch.cat([model(part) for part in images.split(256)])
        weight = torch.ones(outputs.shape[1])
        if self.units != "all":
            weight[:] = self.rest if self.units == "mix" else 0.0
            weight[sorted(self.seen)] = 1.0
        return unit_vectors(outputs, weight.double(), self.tau, generator).to(images)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Hold what there is, and count the classes."""
        super().before_training_exp(strategy, *args, **kwargs)
        self.seen |= {int(y) for y in strategy.experience.classes_in_this_experience}
        quadratic = self.store.quadratic
        if self.form == "capped" and quadratic.importance:
            eta, lam = strategy.optimizer.param_groups[0]["lr"], self.dwa_lambda
            held = {n: v / (1 + eta * lam * v) for n, v in quadratic.importance.items()}
            self.store.quadratic = copy.copy(quadratic)
            self.store.quadratic.importance = held

    @torch.no_grad()
    def moved(self, model: nn.Module) -> list[float]:
        """Predict how far each task's outputs are from what they were at its end.

        :return: per task, the root of its own quadratic form of the weights' movement since.
        """
        params, found = dict(model.named_parameters()), []
        for task, own in self.importances.items():
            form = self.store.quadratic.within(self.bases[task], own, self.saved_params[task])
            found.append(round(math.sqrt(float(form.penalty(params, 2.0))), 4))
        return found


def plugins(kind: str, settings: dict[str, Any]) -> list[Any]:
    """Return the plugins of a method."""
    from avalanche.training import plugins as ap

    if kind == "Naive":
        return []
    rivals: dict[str, Callable[[float], Any]] = {
        "EWC": ap.EWCPlugin,
        "MAS": ap.MASPlugin,
        "SI": ap.SynapticIntelligencePlugin,
        "LwF": lambda strength: ap.LwFPlugin(strength, 2.0),
        "R-EWC": RotatedEWC,
    }
    if kind in rivals:
        return [rivals[kind](settings["strength"])]
    if kind == "GFIPlugin":
        return [GFIPlugin(**settings)]
    if REPLAY in kind:
        rest = {name: value for name, value in settings.items() if name != "memory"}
        own = [GFIPlugin(**rest)] if kind != REPLAY else []
        return [*own, ap.ReplayPlugin(settings["memory"])]
    if kind == "Kronecker":
        own = dict(settings)
        return [GFIPlugin(own.pop("strength"), basis="kronecker", **own)]
    own = dict(settings)
    return [Natural(own.pop("strength"), **own)]


def parsed(method: str) -> tuple[str, dict[str, Any]]:
    """Return kind and settings of a method's name."""
    kind, _, rest = method.partition(":")
    found: dict[str, Any] = {}
    for one in filter(None, rest.split(",")):
        name, value = one.split("=")
        try:
            found[name] = {"False": False, "True": True}.get(value)
            if found[name] is None:
                found[name] = int(value) if value.isdigit() and name != "strength" else float(value)
        except ValueError:
            found[name] = value
    return kind, found


# ------------------------------------------------------------------ runs


def run(name: str, method: str, optimiser: str, seed: int, tasks: list[Task]) -> dict[str, Any]:
    """Train over a stream; return accuracies on its test images."""
    from avalanche.training.losses import MaskedCrossEntropy

    setting = STREAMS[name]
    model = setting.network(seed)
    kind, _, lr = optimiser.partition("-")
    if kind == "adam":
        optimizer: Any = torch.optim.Adam(model.parameters(), float(lr or setting.lr))
    else:
        momentum = 0.9 if kind == "momentum" else 0.0
        optimizer = torch.optim.SGD(model.parameters(), float(lr), momentum=momentum)
    mask = "seen" if REPLAY in method else "new"
    criterion: Any = MaskedCrossEntropy(mask=mask) if setting.masked else nn.CrossEntropyLoss()
    used = plugins(*parsed(method)) + ([criterion] if setting.masked else [])
    strategy = cut_from_tensors()(
        model=model,
        optimizer=optimizer,
        criterion=criterion,
        train_mb_size=setting.batch,
        train_epochs=setting.epochs,
        plugins=used,
        evaluator=None,
    )
    matrix, known, spent = [_row(model, setting, tasks, len(tasks))[0]], [], 0.0
    torch.manual_seed(seed)
    stream = Stream(lambda *_: [], ())
    for k, experience in enumerate(_benchmark(stream, tasks)):
        start = time.perf_counter()
        strategy.train(experience)
        spent += time.perf_counter() - start
        row, inside = _row(model, setting, tasks, min(len(tasks), k + 2))
        matrix.append(row)
        known.append(inside)
    result = {"seconds": round(spent, 2), **summary(matrix, False)}
    result["learnt"] = statistics.mean(matrix[k + 1][k] for k in range(len(tasks)))
    if setting.masked:
        result["known"] = statistics.mean(known[-1])
        result["known_learnt"] = statistics.mean(known[k][k] for k in range(len(tasks)))
    result["own"] = [round(matrix[k + 1][k], 1) for k in range(len(tasks))]
    result["last"] = [round(v, 1) for v in matrix[-1]]
    for plugin in used:
        if isinstance(plugin, Natural):
            result["moved"] = plugin.moved(model)
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}


@torch.no_grad()
def _row(
    model: nn.Module, setting: Setting, tasks: list[Task], count: int
) -> tuple[list[float], list[float]]:
    """Return accuracies over all classes, and among those of each image's task."""
    model.eval()
    over, inside = [], []
    for _, _, test in tasks[:count]:
        rows = torch.arange(len(test)).split(500)
        out = torch.cat([model(test.batch(one)) for one in rows])
        over.append(100 * float((out.argmax(1) == test.y).float().mean()))
        if setting.masked:
            mask = torch.full_like(out[0], -math.inf)
            mask[test.y.unique()] = 0
            inside.append(100 * float(((out + mask).argmax(1) == test.y).float().mean()))
    return over, inside


def main() -> None:
    """Run what was asked for and is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("streams", help="names, separated by commas")
    parser.add_argument("methods", help="separated by ';'")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--optimiser", default="adam", help="adam, or sgd-LR, momentum-LR")
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--fashion-root", default=os.environ.get("CETL_FASHION"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    ROOTS.update(data=args.data_root, fashion=args.fashion_root)
    kept = Runs(FILE, KEYS, {"images": IMAGES, "tested": TESTED, "adam_lr": 1e-3}, PACKAGES)
    for name in args.streams.split(","):
        for seed in map(int, args.seeds.split(",")):
            tasks: list[Task] = []
            for method in args.methods.split(";"):
                if kept.find(name, method, args.optimiser, seed) is not None:
                    continue
                tasks = tasks or STREAMS[name].tasks(seed)
                row = {"stream": name, "method": method, "optimiser": args.optimiser, "seed": seed}
                try:
                    row |= run(name, method, args.optimiser, seed, tasks)
                except Exception as problem:  # a method that fails is a result
                    row |= {"failed": f"{type(problem).__name__}: {str(problem)[:160]}"}
                kept.add(row)
                shown = {k: v for k, v in row.items() if k not in ("stream", "method", "seed")}
                print(name, method, seed, shown, flush=True)


if __name__ == "__main__":
    main()
