"""Measure the Fisher information of tasks, and the relative one of old tasks and a new one.

In networks with heads by task each image is read through the head of its own task; where an old
task had several, new images take its heads in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avalanche_cetl.allocation.measure import Measurement, Task, Weights
from avalanche_cetl.allocation.output_likelihood import OutputLikelihood
from avalanche_cetl.allocation.sample import Heads, Rows, TaskSample, in_turn
from avalanche_cetl.allocation.seen import HeadClass, SeenClasses, classes_of
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis
from avalanche_cetl.models.targets import reads_task_labels


class Measured(NamedTuple):
    """What was measured of a task.

    :ivar values: the Fisher information, by parameter name.
    :ivar basis: that it is in; None: the weights' own.
    :ivar heads: the task labels whose heads the task has.
    :ivar images: how many were read.
    :ivar outputs: how many the network has for an image.
    """

    values: Weights
    basis: KroneckerBasis | None
    heads: Heads
    images: int
    outputs: int


class TaskMeasurer:
    """Draws images of tasks and their targets, and measures a network on them.

    Networks are without wrappers (:func:`~avalanche_cetl.allocation.parameters.unwrapped`).

    :param likelihood: of the network's output.
    :param settings: of the measurements.
    :param seen: the classes that have come; for ``fisher="logits"`` their outputs count more.
    :ivar generator: of the drawn images, targets and gates, on the CPU.
    :ivar drawn: between the two halves of a gate, the targets of a new task's images as old tasks,
        by the old task's heads.
    """

    def __init__(self, likelihood: OutputLikelihood, settings: GFISettings, seen: SeenClasses):
        self.likelihood, self.settings, self.seen = likelihood, settings, seen
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.drawn: dict[Heads, Tensor] = {}
        self._sample: TaskSample | None = None

    def sample(self, rows: Rows) -> TaskSample:
        """Draw images of a task, as many as the settings want."""
        order = torch.randperm(rows.length, generator=self.generator)
        return rows.read(sorted(order[: self.settings.measured_of(rows.length)].tolist()))

    def check(self, network: nn.Module, sample: TaskSample) -> int:
        """Return the number of outputs of an image.

        :raises ValueError: when the likelihood cannot read those of two images, or their labels.
        """
        labels = None if sample.labels is None else sample.labels[:2]
        fisher = self.settings.fisher
        return self.likelihood.check(network, sample.images[:2], labels, sample.tasks[:2], fisher)

    def see(self, network: nn.Module, rows: Rows, sample: TaskSample) -> set[HeadClass]:
        """Take in the classes of a task, and return them; yes and no, and real values, are none."""
        if self.likelihood.likelihood != "categorical":
            return set()
        found = classes_of(rows, sample, reads_task_labels(network))
        self.seen.add(found)
        return found

    def fisher(self, network: nn.Module, rows: Rows, params: Weights) -> Measured:
        """Return the Fisher information of a task.

        :raises ValueError: when labels are needed and there are none, and see :meth:`check`.
        """
        sample, fisher = self.sample(rows), self.settings.fisher
        # A task without labels may be of any class: all outputs of its heads count the same.
        known = {head for head, _ in self.see(network, rows, sample)}
        if fisher != "empirical":
            sample = sample._replace(labels=None)
        elif sample.labels is None:
            raise ValueError("fisher='empirical' is measured with labels: give labels= too.")
        outputs = self.check(network, sample)

        def weights(head: int, units: int) -> Tensor | None:
            return self.seen.weights(head, units) if head in known else None

        later = None
        if fisher == "logits":
            later = self.likelihood.vectors_later(network, sample, self.generator, weights)
        view = self.likelihood.view(network, sample.tasks)
        measurement = Measurement(
            view.module, (sample.images,), view.rename(params), self.settings, Processes.started()
        )
        if later is None:
            targets = self.likelihood.targets(network, sample, self.generator, fisher, weights)
            later = view.task(targets, sample.tasks, fisher)
        task = Task(*later)
        found, basis = view.restore(measurement.fisher(task)), measurement.basis
        heads = tuple(sample.tasks.unique().tolist()) if reads_task_labels(network) else ()
        basis = None if basis is None else view.restore_basis(basis)
        return Measured(found, basis, heads, len(sample.images), outputs)

    def draw(self, network: nn.Module, rows: Rows, heads: Sequence[Heads]) -> None:
        """Draw the targets of a new task's images as old tasks, while the network is as it was.

        The images are kept until the gate is drawn: the rows of a data set may be others by then.

        :param network: before it grows for the new task.
        :param rows: of the new task.
        :param heads: of the old tasks.
        """
        self.drawn = {}
        if not heads:
            return
        self._sample = sample = self.sample(rows)
        self.drawn = {
            old: self.likelihood.draw(
                network,
                sample.images,
                in_turn(old, sample.tasks),
                self.generator,
                self.settings.fisher,
                self.seen.weights,
            )
            for old in heads
        }
        self.see(network, rows, sample)

    def relative(
        self, network: nn.Module, params: Weights, basis: KroneckerBasis | None
    ) -> dict[Heads, Weights]:
        """Return the relative Fisher information of every old task with the new one, once.

        :param network: after it has grown.
        :param params: the weights that are held, by name.
        :param basis: in which it is measured; None: weight by weight.
        :return: by the old task's heads; empty where nothing was drawn.
        """
        drawn, sample, fisher = self.drawn, self._sample, self.settings.fisher
        self.drawn, self._sample = {}, None
        if not drawn or sample is None:
            return {}
        new = self.likelihood.targets(network, sample, self.generator, fisher, self.seen.weights)
        found = {}
        for heads, old in drawn.items():
            tasks = in_turn(heads, sample.tasks)
            view = self.likelihood.view(network, tasks, sample.tasks)
            measurement = Measurement(
                view.module,
                (sample.images,),
                view.rename(params),
                self.settings,
                Processes.started(),
                None if basis is None else view.rename_basis(basis),
            )
            pair = (old, tasks), (new, sample.tasks)
            _, relative = measurement.relative(*(Task(*view.task(*one, fisher)) for one in pair))
            found[heads] = view.restore(relative)
        return found
