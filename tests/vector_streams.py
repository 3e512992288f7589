"""Streams of small classification tasks on vectors, for strategies without coupled networks."""

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels


def stream(*args, **kwargs):
    """The training stream of :func:`benchmark`."""
    return benchmark(*args, **kwargs).train_stream


def benchmark(experiences=3, rows=20, classes=2, *, disjoint=True, by_task=False):
    """Experiences of one task each, which another one of six inputs decides.

    :param disjoint: whether each has classes of its own.
    :param by_task: whether each has a task label of its own.
    """
    generator = torch.Generator().manual_seed(0)
    sets = []
    for number in range(experiences):
        y = torch.arange(rows) % classes
        x = torch.randn(rows, 6, generator=generator)
        x[:, number] += 3 * y - 1.5
        y = y + classes * number if disjoint else y
        tasks = TaskLabels([number if by_task else 0] * rows)
        sets.append(
            TaskAwareSupervisedClassificationDataset(
                [torch.utils.data.TensorDataset(x, y)],
                data_attributes=[DataAttribute(y.tolist(), "targets"), tasks],
            )
        )
    found = benchmark_from_datasets(train=sets, test=sets)
    return with_classes_timeline(with_task_labels(found))
