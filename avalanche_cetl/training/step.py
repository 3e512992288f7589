"""One step, the same for all stages: compute, record, penalise, differentiate, update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

from avalanche.training.utils import trigger_plugins
from torch import Tensor

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.labels import features_in
from avalanche_cetl.plugins.base import check_loss
from avalanche_cetl.training.checks import check_finite_loss
from avalanche_cetl.training.engine import WHOLE, MicroBatch
from avalanche_cetl.training.host import Host
from avalanche_cetl.training.shown import accuracy_of_labels
from avalanche_cetl.training.stages import Callbacks, TrainingStage


def take_step(
    host: Host,
    stage: TrainingStage,
    batches: dict[str, Batch],
    place: MicroBatch = WHOLE,
    **kwargs: Any,
) -> None:
    """Train on a mini-batch of a stage; with several to a step, the last one makes it.

    :param host: the strategy.
    :param stage: that trains.
    :param batches: by the rows that they hold, on the networks' device; without the labelled ones
        a merged step computes the losses of target rows alone.
    :param place: among the mini-batches of the step.
    :param kwargs: of Avalanche's callbacks.
    """
    ordinary = stage.callbacks is Callbacks.ALL
    rows = stage.reads if stage.reads in batches else "target"
    batch = batches[rows]
    if ordinary and rows == stage.reads:
        # The view is this step's own: another stage may read the same mini-batch.
        batch = copy(batch)
        batch.tensors = [host.networks.view(batch.images), *batch.tensors[1:]]
        batches = {**batches, rows: batch}
    for one in batches.values():
        one.begin_step()
    host.batches, host.mbatch = batches, batch.tensors
    own = host.optimizers.get(stage.label)
    if ordinary:
        trigger_plugins(host, "before_training_iteration", **kwargs)
    if place.first:
        host.optimizer.zero_grad()
        if own is not None:
            own.zero_grad()
    host.loss = host.engine.compute(lambda: _loss(host, stage, batch, **kwargs), host.device)
    if stage.callbacks is not Callbacks.NONE:
        name = f"loss of {stage.label} with penalties"
        check_finite_loss(name, host.loss, batch.images, host.clock, stage.label)
    learns = host.loss.requires_grad or ordinary
    if learns:  # with a frozen T1 stage 1 has nothing to learn
        shown, host.loss = host.loss, host.loss * place.weight
        host.backward()
        host.loss = shown
    if ordinary:
        trigger_plugins(host, "after_backward", **kwargs)
        if place.last:
            trigger_plugins(host, "before_update", **kwargs)
            _clear_others(host, stage)
            host.optimizer_step()
            trigger_plugins(host, "after_update", **kwargs)
        with host.engine.whole_batch(host, batch), accuracy_of_labels(host, host.mbatch[1]):
            trigger_plugins(host, "after_training_iteration", **kwargs)
    elif place.last:
        assert own is not None, "a stage without all callbacks has an optimiser of its own"
        if learns:
            own.step(host.optimizer, host.recipe.lr_factor(stage))
        if stage.callbacks is Callbacks.PENALTIES:
            trigger_plugins(host, "hold_weights", optimizer=own.optimizer)
        trigger_plugins(host, "after_step", **kwargs)


def _loss(host: Host, stage: TrainingStage, batch: Batch, **kwargs: Any) -> Tensor:
    """Return the loss of a step: the stages' own, weighted, and all penalties."""
    ordinary = stage.callbacks is Callbacks.ALL
    reads = stage.reads in host.batches
    if ordinary:
        trigger_plugins(host, "before_forward", **kwargs)
        batch.tensors = host.mbatch  # which plugins may have changed
        if reads:
            with host.networks.lone_sample(batch):
                host.mb_output = host.forward()
            trigger_plugins(host, "after_forward", **kwargs)
            batch.tensors = host.mbatch
            batch.features = features_in(host.adapted_dataset, batch.tensors)
            batch.logits = host.mb_output
    # Summed from the last one on, so that a sum does not depend on what stands before it.
    total: Tensor | None = None
    for term in reversed(list(_terms(host, stage, batch))):
        total = term if total is None else term + total
    if stage.callbacks is Callbacks.NONE:
        return host._make_empty_loss() if total is None else total
    if not (ordinary and reads):
        fits = batch.latest is not None and len(batch.latest) == len(batch)
        host.mb_output = batch.latest if fits else None
    if ordinary and not reads:
        trigger_plugins(host, "after_forward", **kwargs)
    host.loss = host._make_empty_loss()
    if total is not None:  # else plugins alone teach
        host.loss += total
    trigger_plugins(host, "before_backward", **kwargs)
    return host.loss


def _terms(host: Host, stage: TrainingStage, batch: Batch) -> Iterator[Tensor]:
    """Yield the weighted losses of a step, and the penalty of its stage."""
    networks, own = host.networks, stage.own_optimizer
    for piece, rows in stage.pieces(host.batches):
        if piece.needs_source and not networks.has_source:
            continue
        networks.latest, before = None, rows.latest
        losses = piece.losses(networks, rows)
        _check(host, piece, losses)
        latest, networks.latest = networks.latest, None
        # What the stage has set stays, and so does the output of Avalanche's own forward pass.
        if latest is not None and rows.latest is before and (own or piece.reads == "target"):
            rows.logits = latest.float()
        for name, loss in losses.items():
            check_finite_loss(name, loss, rows.images, host.clock, stage.label)
            host.meters.add(name, float(loss.detach()), rows.counted)
            yield host.recipe.weight(name) * rows.share * loss
    if stage.pays is not None:
        penalty = host.allocation.penalty(stage.pays.importance, host.model)
        if penalty is not None:
            host.meters.add(stage.pays.name, float(penalty.detach()), batch.counted)
            yield penalty


def _check(host: Host, piece: TrainingStage, losses: Any) -> None:
    """Raise TypeError or ValueError for losses that are not those that the stage names."""
    owner = f"stage {piece.label!r}"
    if not isinstance(losses, Mapping):
        raise TypeError(f"{owner}: losses() returns a dict of losses by name, got {losses!r}.")
    for name, loss in losses.items():
        if name not in piece.names:
            raise ValueError(
                f"{owner} gave the loss {name!r}, and its names are {piece.names!r}: write all "
                "names of its losses there."
            )
        constant = isinstance(loss, Tensor) and not loss.requires_grad
        if constant and not piece.may_be_constant:
            module = host.networks.modules.get(piece.label)
            own = [] if module is None else module.parameters()
            learns = any(p.requires_grad for p in (*piece.parameters(host.model), *own))
            check_loss(owner, name, loss, learns)
        else:
            check_loss(owner, name, loss, False)


def _clear_others(host: Host, stage: TrainingStage) -> None:
    """Drop the gradients of parameters that the stage does not train."""
    if stage.trains is None:
        return
    own = {id(p) for p in stage.parameters(host.model)}
    for group in host.optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own:
                parameter.grad = None
