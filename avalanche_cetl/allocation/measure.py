"""Measure GFI1, GFI2 and GFI3 of Algorithm 1 on the coupled model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from avalanche_cetl.allocation.readout import Readout, by_head
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.information.fisher import fisher_information
from avalanche_cetl.information.generalized import (
    dwa_penalty,
    generalized_fisher,
    normalize_importance,
    shared_weights,
)
from avalanche_cetl.information.likelihood import (
    Loss,
    negative_log_likelihood,
    sample_targets,
    select,
)
from avalanche_cetl.information.relative import fisher_and_relative
from avalanche_cetl.models.coupled import CoupledModel, Outputs, TargetTasks


@dataclass(frozen=True)
class Pair:
    """Whose weights, which task to keep, and its partner for relative Fisher information."""

    name: str
    weights: Literal["decoder", "target"]
    keep: str
    partner: str


#: The table of Algorithm 1: outputs are named as :class:`TargetTasks` names them.
PAIRS = {
    "GFI1": Pair("GFI1", "decoder", keep="source", partner="target"),
    "GFI2": Pair("GFI2", "decoder", keep="target", partner="source"),
    "GFI3": Pair("GFI3", "target", keep="target", partner="logits"),
}


@dataclass
class Importance:
    """One measured importance: GFI (or plain Fisher) and the theta* it was measured at.

    :ivar values: importance of every weight, >= 0, keyed as ``model.named_parameters()``.
    :ivar anchors: the weights theta*.
    :ivar shared: per parameter, the share in [0, 1] of its weights with RF >= u.
    :ivar kept: per parameter, the share in [0, 1] of its weights with importance > 0.
    :ivar sizes: per parameter, its number of weights.
    """

    values: dict[str, Tensor]
    anchors: dict[str, Tensor]
    shared: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def penalty(self, model: CoupledModel, lam: float) -> Tensor:
        """DWA (eq. 11) at the model's current weights."""
        return dwa_penalty(dict(model.named_parameters()), self.anchors, self.values, lam)


class Sample(NamedTuple):
    """Target rows: images ``(N, C, H, W)``, labels ``(N,)`` (-1: unknown), S's features or None."""

    images: Tensor
    labels: Tensor
    features: Tensor | None = None


def measure(
    model: CoupledModel,
    pair: Pair,
    sample: Sample,
    settings: GFISettings,
    importance: Literal["fisher", "gfi"],
    generator: torch.Generator,
    processes: Processes | None = None,
    task_labels: Tensor | None = None,
) -> Importance:
    """Measure one importance of Algorithm 1 at the model's current weights.

    :param sample: target rows on the model's device. Their labels are read only by the
        empirical Fisher of L_c, which draws the unknown ones from the model; without features
        S runs.
    :param importance: ``"fisher"`` ignores the partner; ``"gfi"`` gates with it.
    :param generator: CPU generator of drawn targets and of the gate.
    :param processes: that share the rows out; all have the same sample and generator.
    :param task_labels: of the rows, ``(N,)``, for a T2 with heads by task.
    """
    params = model.decoder_parameters() if pair.weights == "decoder" else model.target_parameters()
    params = {name: p for name, p in params.items() if p.requires_grad}
    heads: tuple[int, ...] = ()
    if model.target.heads_by_task:
        assert task_labels is not None
        heads = tuple(task_labels.unique().tolist())
    outputs = (pair.keep, pair.partner) if importance == "gfi" else (pair.keep,)
    tasks = TargetTasks(model, outputs, heads)
    images, _, features = sample
    with torch.no_grad(), evaluation_mode(model):
        if features is None:
            features = images.flatten(1) if model.source is None else model.source_features(images)
        goals = _goals(model, features, sample, task_labels, settings.fisher, generator)
    own, group = slice(None), None
    if processes is not None and 1 < processes.size <= len(images):
        own, group = slice(processes.rank, None, processes.size), processes.group
    inputs = (features[own], images[own])
    names = (pair.keep, pair.partner)
    losses = {name: _loss_of(name, heads, goals[name], task_labels) for name in outputs}
    goals = {name: select(goal, own) for name, (_, goal) in losses.items()}
    if importance == "fisher":
        fisher = fisher_information(
            tasks,
            inputs,
            losses[pair.keep][0],
            params,
            targets=goals[pair.keep],
            process_group=group,
        )
        values = fisher
        shared: dict[str, float] = {}
    else:
        fisher, relative = fisher_and_relative(
            tasks,
            inputs,
            (losses[names[0]][0], losses[names[1]][0]),
            params,
            targets=(goals[names[0]], goals[names[1]]),
            estimator=settings.estimator,
            normalize_samples=settings.normalize_samples,
            process_group=group,
        )
        values = generalized_fisher(
            fisher,
            relative,
            threshold=settings.threshold,
            probability=settings.probability,
            generator=generator,
        )
        shared = {
            name: float(mask.float().mean())
            for name, mask in shared_weights(relative, settings.threshold).items()
        }
    if settings.normalize:
        values = normalize_importance(values)
    return Importance(
        values=values,
        anchors={name: params[name].detach().clone() for name in values},
        shared=shared,
        kept={name: float((value > 0).float().mean()) for name, value in values.items()},
        sizes={name: value.numel() for name, value in values.items()},
    )


def _loss_of(
    output: str, heads: tuple[int, ...], goal: Tensor, task_labels: Tensor | None
) -> tuple[Loss, Any]:
    """Negative log likelihood of one of the coupled model's outputs, and its targets."""
    if output == "logits":
        nll = negative_log_likelihood("categorical")
        if heads:
            assert task_labels is not None
            loss, goal = by_head(nll, heads, goal, task_labels)
            return lambda outputs, targets: loss(outputs.logits, targets), goal
        return lambda outputs, targets: nll(outputs.logits, targets), goal
    nll = negative_log_likelihood("gaussian")
    index = Outputs._fields.index(f"{output}_reconstruction")
    return lambda outputs, targets: nll(outputs[index], targets), goal


def _goals(
    model: CoupledModel,
    features: Tensor,
    sample: Sample,
    task_labels: Tensor | None,
    fisher: str,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """What each output's likelihood is taken at, by the kind of Fisher information."""
    images, labels, _ = sample
    reconstructed, logits = model.decode_target(images)
    if model.target.heads_by_task:
        assert task_labels is not None
        drawn = Readout("categorical").draw(model, images, task_labels, generator)
    else:
        drawn = sample_targets(logits, "categorical", generator)
    source = model.reconstruct_source(features=features) if model.source is not None else images
    if fisher == "empirical":
        known = torch.where(labels >= 0, labels, drawn)
        return {"source": images, "target": source, "logits": known}
    # Both reconstructions are of the same image: one noise for both. Independent draws would
    # make the two Fisher values of a weight differ by chance alone, and RF would shrink to
    # nothing however much the tasks share.
    noise = sample_targets(torch.zeros_like(images), "gaussian", generator)
    return {"source": source + noise, "target": reconstructed + noise, "logits": drawn}
