"""A benchmark with a summary of its contents, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.scenarios import CLScenario
from torch import Tensor

from avalanche_cetl.common.described import Described, Text, html_table
from avalanche_cetl.common.images import image_tensor
from avalanche_cetl.common.labels import SOURCE_DOMAIN, TARGET_DOMAIN, UNLABELLED
from avalanche_cetl.scenarios.images import as_floats
from avalanche_cetl.scenarios.streams import check_filled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOMAINS = {TARGET_DOMAIN: "target", SOURCE_DOMAIN: "source"}


class CETLScenario(CLScenario, Described):
    """An Avalanche benchmark with a summary.

    :param streams: Avalanche streams.
    :param classes: names of the classes, where they are known.
    :ivar classes: the n-th is the name of class n; where classes were chosen by name, that name,
        and where data without names was chosen from by index, the index. None where no names are
        known.
    :ivar source_classes: the same for the source data, which may have other classes.
    :ivar data: which files the benchmark was made from, by data set; empty where it was made
        from the user's own data.
    """

    data: dict[str, str]

    def __init__(self, streams: Iterable[Any], classes: Sequence[str] | None = None):
        super().__init__(list(streams))
        self.classes = list(classes) if classes is not None else None
        self.source_classes: list[str] | None = None
        self.data = {}

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError; for a missing stream of labelled rows, with the reason."""
        if name == "labelled_stream":
            raise AttributeError(
                "this benchmark has no labelled_stream: none of its target training rows has a "
                "label. labels_per_class=1 or more keeps some; source_stream has the source's."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def summary(self) -> str:
        """Return a table: rows, labels, classes, shape and domain of each stream's experiences."""
        lines = _lines(_cells(self))
        return Text("\n".join([*lines, *self._below()]))

    def arguments_shown(self) -> dict[str, Any]:
        """Return the number of experiences of each stream."""
        return {name: len(stream) for name, stream in self.streams.items()}

    def _repr_html_(self) -> str:
        heads, *rows = _cells(self)
        below = "".join(f"<br>{escape(line)}" for line in self._below())
        return html_table(rows, type(self).__name__, heads) + below

    def _below(self) -> list[str]:
        """Return what stands below the table: names of classes, files."""
        names = ", ".join(f"{i} {name}" for i, name in enumerate(self.classes or ()))
        found = [f"classes: {names}"] if self.classes is not None else []
        return [*found, *(f"{name}: {origin}" for name, origin in self.data.items())]


def make_scenario(
    streams: dict[str, list[Any]], classes: Sequence[str] | None = None
) -> CETLScenario:
    """Return a benchmark of data sets, with task labels and a classes timeline."""
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(**streams)))
    for stream in benchmark.streams.values():
        for experience in stream:
            # -1 stands for an unknown label; it is no class.
            for name in ("classes_in_this_experience", "previous_classes", "classes_seen_so_far",
                         "future_classes"):  # fmt: skip
                setattr(experience, name, getattr(experience, name) - {UNLABELLED})
    return CETLScenario(benchmark.streams.values(), classes)


@dataclass(frozen=True)
class _Part:
    """Rows of one domain in one experience."""

    stream: str
    experience: int
    domain: str
    rows: list[int]
    dataset: Any


def _parts(benchmark: CLScenario) -> Iterator[_Part]:
    for name, stream in benchmark.streams.items():
        for number, experience in enumerate(stream):
            dataset = experience.dataset
            rows: dict[int, list[int]] = {}
            known = getattr(dataset, "domain_labels", None)
            for row in range(len(dataset)):
                rows.setdefault(TARGET_DOMAIN if known is None else int(known[row]), []).append(row)
            for domain in sorted(rows):
                label = _DOMAINS.get(domain, str(domain))
                yield _Part(name, number, label, rows[domain], dataset)
            if not rows:
                yield _Part(name, number, "-", [], dataset)


def _cells(benchmark: CLScenario) -> list[tuple[str, ...]]:
    """Return the rows of the summary's table, its head first."""
    lines: list[tuple[str, ...]] = [
        ("stream", "experience", "domain", "rows", "labelled", "classes", "image")
    ]
    for part in _parts(benchmark):
        labels = [int(part.dataset.targets[row]) for row in part.rows]
        known = [label for label in labels if label != UNLABELLED]
        shape, share = "-", "0"
        if labels:
            image = part.dataset.eval()[part.rows[0]][0]
            tensor = isinstance(image, Tensor)
            shape = "x".join(map(str, image.shape)) if tensor else str(type(image))
            share = f"{len(known)} ({100 * len(known) / len(labels):.0f} %)"
        lines.append(
            (part.stream, str(part.experience), part.domain, str(len(labels)), share,
             str(len(set(known))), shape)
        )  # fmt: skip
    return lines


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows of a table as lines of text, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = (False, True, False, True, True, True, False)
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def plot_benchmark(benchmark: CLScenario, count: int = 10, seed: int = 0) -> Figure:
    """Draw a contact sheet: a row of images for every stream, experience and domain.

    :param benchmark: any Avalanche benchmark of image tensors or PIL images.
    :param count: images a row, drawn at random; fewer where there are fewer.
    :param seed: of the draw.
    :return: a matplotlib figure, which a notebook shows; ``figure.savefig("sheet.png")`` keeps it.
        Labels stand above the images, ``?`` where they are unknown.
    :raises ValueError: for count below 1, and for an experience without an image.
    """
    from avalanche_cetl.common.pictures import picture

    if count < 1:
        raise ValueError(f"count={count} has to be >= 1.")
    check_filled(benchmark, list(benchmark.streams))
    parts = list(_parts(benchmark))
    size = (1 + 0.8 * count, 1.1 * len(parts))
    figure, grid = picture(len(parts), count, size=size, squeeze=False)
    generator = torch.Generator().manual_seed(seed)
    names = getattr(benchmark, "classes", None), getattr(benchmark, "source_classes", None)
    for part, axes in zip(parts, grid, strict=True):
        drawn = torch.randperm(len(part.rows), generator=generator)[:count].tolist()
        dataset = part.dataset.eval()
        classes = names[part.domain == "source"]
        for place in axes:
            place.axis("off")
        for place, position in zip(axes, drawn, strict=False):
            row = dataset[part.rows[position]]
            image = row[0] if isinstance(row[0], Tensor) else image_tensor(row[0])
            _draw(place, as_floats(image), _name(int(row[1]), classes))
        axes[0].text(
            -0.1, 0.5, f"{part.stream} {part.experience}\n{part.domain}", fontsize=8, ha="right",
            va="center", transform=axes[0].transAxes,
        )  # fmt: skip
    return figure


def _name(label: int, classes: Sequence[str] | None) -> str:
    if label == UNLABELLED:
        return "?"
    return str(label) if classes is None or label >= len(classes) else classes[label]


def _draw(place: Any, image: Tensor, title: str) -> None:
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:  # normalised
        image = (image - low) / max(high - low, 1e-12)
    if image.shape[0] not in (1, 3):
        image = image.mean(0, keepdim=True)
    pixels = image.permute(1, 2, 0).numpy()
    place.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=1)
    place.set_title(title, fontsize=7, pad=2)
