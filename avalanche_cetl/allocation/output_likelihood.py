"""How a measurement reads a network: which output, through whose head, under which likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.allocation.sample import TaskSample
from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.common.picks import Output, check_output, pick
from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis
from avalanche_cetl.information.likelihood import (
    check_targets,
    negative_log_likelihood,
    sample_targets,
)
from avalanche_cetl.information.outputs import (
    Likelihood,
    check_outputs,
    normal_like,
    projected_outputs,
    sample_output_vectors,
    vectors_of,
)
from avalanche_cetl.models.targets import mask_values, reads_task_labels

#: Images that a network reads at once when targets are drawn.
DRAWN_AT_ONCE = 256
#: Weights of a head's outputs, by the task label of the head (0 without heads by task) and their
#: number; None: all are equal.
Weights = Callable[[int, int], Tensor | None]


class OutputLikelihood:
    """The tensor that a likelihood reads out of a network's output, and its likelihood.

    Networks with heads by task (Avalanche's ``MultiTaskModule``) read each image through the head
    of its own task, whatever tasks a batch mixes.

    :param likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``; see
        :func:`negative_log_likelihood`.
    :param output: a callable, or an index or key, that picks the tensor out of the network's
        output; None: the output is the tensor.
    :raises ValueError: for another likelihood.
    :raises TypeError: for another kind of ``output``.
    """

    def __init__(self, likelihood: Likelihood = "categorical", output: Output | None = None):
        self.nll = negative_log_likelihood(likelihood)
        check_output(output)
        self.likelihood, self.output = likelihood, output

    def pick(self, found: Any) -> Tensor:
        """Return the tensor out of a network's output."""
        tensor: Tensor = pick(found, self.output)
        return tensor

    def outputs(self, model: nn.Module, images: Tensor, task: int) -> Tensor:
        """Return the tensor for some images, all of them through the head of one task."""
        return self.pick(_through(model, images, task))

    def draw(
        self,
        model: nn.Module,
        images: Tensor,
        tasks: Tensor,
        generator: torch.Generator,
        fisher: str = "sampled",
        weights: Weights | None = None,
    ) -> Tensor:
        """Draw what the network's own output is measured with for each image, in eval mode.

        :param model: the network.
        :param images: ``(N, ...)``.
        :param tasks: whose head each image takes, ``(N,)``.
        :param generator: of the draws.
        :param fisher: ``"logits"``: a vector, see :func:`sample_output_vectors`; it is 0 where the
            image's own head has no output. Else a target, see :func:`sample_targets`.
        :param weights: of class logits, for ``"logits"`` alone; None: all of a head are equal.
        """
        by_head = reads_task_labels(model)
        drawn: Tensor | None = None
        with torch.no_grad(), evaluation_mode(model):
            for task, rows in _by_task(model, tasks):
                # A few at a time: they may be many more than a mini-batch has.
                pieces = images[rows].split(DRAWN_AT_ONCE)
                outputs = torch.cat([self.outputs(model, piece, task) for piece in pieces])
                if fisher == "logits":
                    own = _of_head(model, outputs)
                    part = sample_output_vectors(
                        own,
                        self.likelihood,
                        generator,
                        weights(task if by_head else 0, own.shape[1])
                        if weights is not None and self.likelihood == "categorical"
                        else None,
                    )
                else:
                    part = sample_targets(outputs, self.likelihood, generator)
                if drawn is None:
                    drawn = part.new_zeros(len(images), *part.shape[1:])
                elif part.dim() == drawn.dim() == 2:  # heads may have several sizes
                    part, drawn = _as_wide(part, drawn), _as_wide(drawn, part)
                drawn[rows] = part
        assert drawn is not None
        return drawn

    def vectors_later(
        self,
        model: nn.Module,
        sample: TaskSample,
        generator: torch.Generator,
        weights: Weights | None = None,
    ) -> tuple[Callable[[Any, Any], Tensor], Tensor] | None:
        """Return what ``draw(..., fisher="logits")`` and ``task`` give, without a pass of its own.

        :param model: the network.
        :param sample: its images and tasks.
        :param generator: of the draws.
        :param weights: see :meth:`draw`.
        :return: a loss per image that makes the vectors of its outputs, and what it makes them of;
            None where all outputs have to be seen first: with heads by task, and with masks.
        """
        if reads_task_labels(model) or mask_values(model):
            return None
        with torch.no_grad(), evaluation_mode(model):
            first = self.outputs(model, sample.images[:2], 0)
        own = None
        if weights is not None and self.likelihood == "categorical":
            own = weights(0, first.shape[1])

        def loss(found: Any, normal: Tensor) -> Tensor:
            outputs = self.pick(found)
            return projected(outputs, vectors_of(outputs, self.likelihood, normal, own))

        return loss, normal_like(first, len(sample.images), generator)

    def targets(
        self,
        model: nn.Module,
        sample: TaskSample,
        generator: torch.Generator,
        fisher: str = "sampled",
        weights: Weights | None = None,
    ) -> Tensor:
        """Return the data's labels, unknown ones (below 0) drawn from the network.

        Targets of a Gaussian are all known, or none of them.

        :param model: the network.
        :param sample: the images, and their labels where they are known.
        :param generator: of the draws.
        :param fisher: ``"logits"`` reads no labels: vectors are drawn.
        :param weights: see :meth:`draw`.
        :raises ValueError: for labels that the likelihood does not know.
        """
        images, labels, tasks = sample
        if labels is None or fisher == "logits":
            return self.draw(model, images, tasks, generator, fisher, weights)
        check_targets(self._filled(labels), self.likelihood)
        if self.likelihood == "gaussian" or bool((labels >= 0).all()):
            return labels
        drawn = self.draw(model, images, tasks, generator)
        if drawn.numel() == labels.numel():
            drawn = drawn.reshape(labels.shape)
        return torch.where(labels >= 0, labels, drawn)

    def _filled(self, labels: Tensor) -> Tensor:
        """Return labels with 0, a class of every classifier, in the place of unknown ones."""
        return labels if self.likelihood == "gaussian" else torch.where(labels < 0, 0, labels)

    def check(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        tasks: Tensor,
        fisher: str = "sampled",
    ) -> int:
        """Raise ValueError unless some images and their labels have a likelihood, and say why.

        :param model: the network.
        :param images: one or two of the experience, ``(N, ...)``.
        :param labels: of these images, ``(N, ...)``; negative class indices are unknown. None: the
            network alone is checked.
        :param tasks: task label of each image, ``(N,)``.
        :param fisher: ``"logits"`` reads no labels, and none are checked.
        :return: how many outputs an image has, at most.
        """
        count = 0
        known = None if labels is None or fisher == "logits" else self._filled(labels)
        if known is not None:
            check_targets(known, self.likelihood)
        with torch.no_grad(), evaluation_mode(model):
            for task, rows in _by_task(model, tasks):
                try:
                    found = self.outputs(model, images[rows], task)
                except (LookupError, TypeError, AttributeError) as problem:
                    if self.output is None:
                        raise
                    raise ValueError(
                        f"output={self.output!r} does not pick a tensor out of what the network "
                        f"gives: {type(problem).__name__}: {problem}"
                    ) from problem
                outputs = check_outputs(found, self.likelihood)
                count = max(count, outputs[0].numel())
                per_image = len(outputs) == len(images[rows])
                try:
                    if not per_image:
                        values = outputs.new_zeros(0)
                    elif known is None:
                        values = projected_outputs(outputs, torch.ones_like(outputs))
                    else:
                        values = self.nll(outputs, known[rows])
                except (RuntimeError, IndexError) as problem:
                    what = "themselves"
                    if labels is not None:
                        what = f"labels of shape {tuple(labels.shape)} and type {labels.dtype}"
                    raise ValueError(
                        f"likelihood={self.likelihood!r} cannot compare outputs of shape "
                        f"{tuple(outputs.shape)} with {what}: {problem}. Give "
                        "likelihood='bernoulli' for labels of yes and no, 'gaussian' for real "
                        "values, or output= to pick the tensor that goes with the labels."
                    ) from problem
                if values.shape != (len(images[rows]),):
                    raise ValueError(
                        f"the network gave outputs of shape {tuple(outputs.shape)} for "
                        f"{len(images[rows])} images: their first dimension has to be the images."
                    )
        return count

    def view(self, model: nn.Module, *tasks: Tensor) -> View:
        """Return the network as a measurement calls it, with the heads that these tasks need."""
        if not reads_task_labels(model):
            return View(self, model, ())
        needed = torch.cat([t.reshape(-1) for t in tasks]).unique().tolist()
        return View(self, _Heads(model, needed), tuple(needed))


class View:
    """A network as a measurement calls it: ``module(images)``, with losses that read it.

    :ivar module: the network itself, or a module that gives the outputs of several heads.
    :ivar heads: the tasks whose heads it gives; empty for a network without heads by task.
    """

    def __init__(self, likelihood: OutputLikelihood, module: nn.Module, heads: tuple[int, ...]):
        self.likelihood, self.module, self.heads = likelihood, module, heads
        self._prefix = "model." if heads else ""

    def rename(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters under the names that they have in ``module``."""
        return {self._prefix + name: p for name, p in params.items()}

    def rename_basis(self, basis: KroneckerBasis) -> KroneckerBasis:
        """Return a basis under the names that its parameters have in ``module``."""
        return basis.renamed(lambda name: self._prefix + name)

    def restore_basis(self, basis: KroneckerBasis) -> KroneckerBasis:
        """Return a basis under the parameters' own names."""
        return basis.renamed(lambda name: name.removeprefix(self._prefix))

    def restore(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return values under the parameters' own names."""
        return {name.removeprefix(self._prefix): value for name, value in values.items()}

    def task(
        self, labels: Tensor, tasks: Tensor, fisher: str = "sampled"
    ) -> tuple[Callable[[Any, Any], Tensor], Any]:
        """Return a loss per image, and its targets: each image through the head of its task.

        :param labels: of all images, ``(N, ...)``; for ``"logits"`` vectors, of which units that
            a head has grown by since they were drawn have no part.
        :param tasks: of all images, ``(N,)``; not read without heads by task.
        :param fisher: ``"logits"`` projects the outputs; else it is the negative log likelihood.
        """
        pick, nll = self.likelihood.pick, self.likelihood.nll
        if fisher == "logits":
            nll = projected

        def of_output(output: Any, labels: Any) -> Tensor:
            return nll(pick(output), labels)

        if not self.heads:
            return of_output, labels
        return by_head(of_output, self.heads, labels, tasks)


def projected(outputs: Tensor, vectors: Tensor) -> Tensor:
    """Return ``u^T z`` of every image, ``(N,)``, for vectors of a narrower or a wider head."""
    if outputs.dim() == 2 == vectors.dim():
        vectors = F.pad(vectors, (0, outputs.shape[1] - vectors.shape[1]))
    return projected_outputs(outputs, vectors)


def _of_head(model: nn.Module, outputs: Tensor) -> Tensor:
    """Return outputs with minus infinity for those that are none of the head's.

    Avalanche's classifiers write a constant in the place of units whose class they have not seen,
    and its networks with heads by task fill every head up with zeros to the widest one.
    """
    fill = mask_values(model)
    fill += [0] if reads_task_labels(model) else []
    if not fill or outputs.dim() != 2:
        return outputs
    none = torch.stack([outputs.eq(value).all(0) for value in set(fill)]).any(0)
    return outputs if bool(none.all()) else outputs.masked_fill(none, -math.inf)


def _as_wide(vectors: Tensor, others: Tensor) -> Tensor:
    """Return vectors ``(N, K)`` filled up with zeros to the width of others."""
    return F.pad(vectors, (0, max(0, others.shape[-1] - vectors.shape[-1])))


def by_head(
    loss: Callable[[Any, Any], Tensor], heads: Sequence[int], labels: Tensor, tasks: Tensor
) -> tuple[Callable[[Any, Any], Tensor], Any]:
    """Return a loss of several heads' outputs, each image through its own, and its targets.

    :param loss: ``(one head's output, labels) -> (N,)``.
    :param heads: the tasks of the heads, in the order of the outputs.
    :param labels: of all images, ``(N, ...)``.
    :param tasks: of all images, ``(N,)``.
    """
    used = tasks.unique().tolist()
    places = [heads.index(task) for task in used]
    if len(used) == 1:
        return lambda outputs, labels: loss(outputs[places[0]], labels), labels

    def each(outputs: Any, targets: Any) -> Tensor:
        labels, tasks = targets
        total = torch.zeros(())
        for task, place in zip(used, places, strict=True):
            own = tasks == task
            # Labels of another task may be none of this head's classes: 0 is one always.
            mine = own.reshape(-1, *[1] * (labels.dim() - 1))
            values = loss(outputs[place], torch.where(mine, labels, 0))
            total = total + torch.where(own, values, 0)
        return total

    return each, (labels, tasks)


class _Heads(nn.Module):
    """A network with heads by task; gives the outputs of several, for every image.

    A pass may write buffers that the one before it needs for its gradients, as the masks of
    Avalanche's PackNet: every pass but the first writes into copies. The measurement, which runs
    in evaluation mode, puts the buffers themselves back.
    """

    def __init__(self, model: nn.Module, tasks: list[int]):
        super().__init__()
        self.model, self.tasks = model, tuple(tasks)

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        found: list[Any] = []
        for task in self.tasks:
            if found:
                self._copy_buffers()
            found.append(_through(self.model, x, task))
        return tuple(found)

    def _copy_buffers(self) -> None:
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.clone()


def _through(model: nn.Module, images: Tensor, task: int) -> Any:
    """The network's output, where it has heads by task through that one."""
    if not reads_task_labels(model):
        return model(own_copy(images))
    return model(own_copy(images), torch.full((len(images),), task, device=images.device))


def _by_task(model: nn.Module, tasks: Tensor) -> Iterator[tuple[int, Any]]:
    """Every task among the rows with its rows; all at once without heads by task."""
    found = tasks.unique().tolist()
    if len(found) == 1 or not reads_task_labels(model):
        yield found[0], slice(None)
        return
    for task in found:
        yield task, tasks == task
