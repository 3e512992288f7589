"""One step, the same for all stages: compute, record, penalise, differentiate, update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from avalanche.training.utils import trigger_plugins
from torch import Tensor

from avalanche_cetl.training.batch import Batch
from avalanche_cetl.training.checks import check_finite_loss
from avalanche_cetl.training.engine.parts import WHOLE, Part
from avalanche_cetl.training.shown import accuracy_of_labels
from avalanche_cetl.training.stages.base import Callbacks, TrainingStage


def take_step(
    host: Any, stage: TrainingStage, batch: Batch, part: Part = WHOLE, **kwargs: Any
) -> None:
    """Train on a mini-batch of a stage; with several to a step, the last one makes it.

    :param host: the strategy: its parts (``recipe``, ``engine``, ``networks``, ``allocation``,
        ``records``, ``optimizers``) and the loop of Avalanche's templates, whose names (``mbatch``,
        ``loss``, ``optimizer``, ...) stand for what they are there.
    :param stage: that trains.
    :param batch: in its place, on the networks' device.
    :param part: its place among the mini-batches of the step.
    :param kwargs: of Avalanche's callbacks.
    """
    ordinary = stage.callbacks is Callbacks.ALL
    if ordinary and batch.labelled:
        # The view is this step's own: another stage may read the same mini-batch.
        batch = replace(batch, tensors=[host.networks.view(batch.images), *batch.tensors[1:]])
    host.batch, host.mbatch = batch, batch.tensors
    if ordinary:
        host._before_training_iteration(**kwargs)
    if part.first:
        host.optimizer.zero_grad()
    host.loss = host.engine.compute(lambda: _loss(host, stage, batch, **kwargs), host.device)
    if stage.callbacks is not Callbacks.NONE:
        check_finite_loss(host, f"loss of {stage.label} with penalties", host.loss, batch.images)
    learns = host.loss.requires_grad or stage.callbacks is not Callbacks.NONE
    if learns:  # with a frozen T1 stage 1 has nothing to learn
        shown, host.loss = host.loss, host.loss * part.weight
        host.backward()
        host.loss = shown
    if ordinary:
        host._after_backward(**kwargs)
        if part.last:
            host._before_update(**kwargs)
            _clear_others(host, stage)
            host.optimizer_step()
            host._after_update(**kwargs)
        with host.engine.whole_batch(host, batch), accuracy_of_labels(host):
            host._after_training_iteration(**kwargs)
    elif part.last:
        own = host.optimizers[stage.label]
        if learns:
            own.step(host.optimizer, host.recipe.lr_factor(stage.kind))
        if stage.callbacks is Callbacks.PENALTIES:
            trigger_plugins(host, "hold_weights", optimizer=own.optimizer)
        trigger_plugins(host, "after_step", **kwargs)


def _loss(host: Any, stage: TrainingStage, batch: Batch, **kwargs: Any) -> Tensor:
    """Return the loss of a step: the stages' own, weighted, and all penalties."""
    ordinary = stage.callbacks is Callbacks.ALL
    if ordinary:
        host._before_forward(**kwargs)
        batch.tensors = host.mbatch  # which plugins may have changed
    if ordinary and batch.labelled:
        with host.networks.lone_sample(batch):
            host.mb_output = host.forward()
        host._after_forward(**kwargs)
        batch.tensors, batch.logits = host.mbatch, host.mb_output
    # Summed from the last one on, so that a sum does not depend on what stands before it.
    total: Any = None
    for term in reversed(list(_terms(host, stage, batch))):
        total = term if total is None else term + total
    if stage.callbacks is Callbacks.NONE:
        return total
    if ordinary and not batch.labelled:
        host._after_forward(**kwargs)
    host.loss = host._make_empty_loss()
    if total is not None:  # else plugins alone teach
        host.loss += total
    host._before_backward(**kwargs)
    return host.loss


def _terms(host: Any, stage: TrainingStage, batch: Batch) -> Iterator[Tensor]:
    """Yield the weighted losses of a step, and the penalty of its stage."""
    host.coupled = None
    for piece, rows in stage.pieces(batch):
        if piece.needs_source and not host.networks.has_source:
            continue
        # Of another stage, or step: its graph is gone.
        rows.coupled = host.networks.latest = None
        losses = piece.losses(host.networks, rows)
        logits = _logits(host.networks, rows)
        if logits is not None and rows.coupled is None and piece.reads == "target":
            rows.coupled = rows.without_decoder(logits)
        if stage.own_optimizer and stage.reads == "labelled":
            host.mb_output = logits
        for name, loss in losses.items():
            check_finite_loss(host, name, loss, rows.images)
            host.records.add(name, float(loss.detach()), rows.counted)
            yield host.recipe.weight(name) * rows.share * loss
        if rows.coupled is not None:
            host.coupled = rows.coupled
            if stage.own_optimizer or not batch.labelled:
                host.mb_output = rows.coupled.logits
    if stage.pays is not None:
        penalty = host.allocation.penalty(stage.pays.importance, host.model)
        if penalty is not None:
            host.records.add(stage.pays.name, float(penalty.detach()), batch.counted)
            yield penalty


def _logits(networks: Any, rows: Batch) -> Tensor | None:
    """Return T2's logits of the rows, from its latest pass; None where it did not run on them."""
    latest, networks.latest = networks.latest, None
    if latest is None or len(latest) != len(rows):
        return rows.logits
    return latest.float()


def _clear_others(host: Any, stage: TrainingStage) -> None:
    """Drop the gradients of parameters that the stage does not train."""
    if stage.trains is None:
        return
    own = {id(p) for p in stage.parameters(host.model)}
    for parameter in host.model.parameters():
        if id(parameter) not in own:
            parameter.grad = None
