"""Measure GFI1, GFI2 and GFI3 of Algorithm 1 on the coupled model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_cetl.allocation.measure import Measurement, Task, gate
from avalanche_cetl.allocation.readout import Readout, by_head
from avalanche_cetl.allocation.sample import Sample
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.information.generalized import dwa_penalty
from avalanche_cetl.information.likelihood import negative_log_likelihood, sample_targets
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

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, for checkpoints."""
        return dict(vars(self))

    def to(self, device: torch.device) -> Importance:
        """Return it on a device."""
        moved = {n: v.to(device) for n, v in self.values.items()}
        anchors = {n: v.to(device) for n, v in self.anchors.items()}
        return replace(self, values=moved, anchors=anchors)

    def penalty(self, model: CoupledModel, lam: float) -> Tensor:
        """DWA (eq. 11) at the model's current weights."""
        return dwa_penalty(dict(model.named_parameters()), self.anchors, self.values, lam)


def measure(
    model: CoupledModel,
    pair: Pair,
    sample: Sample,
    settings: GFISettings,
    kind: Literal["fisher", "gfi"],
    generator: torch.Generator,
    processes: Processes | None = None,
) -> Importance:
    """Measure one importance of Algorithm 1 at the model's current weights.

    :param sample: target rows on the model's device. Their labels are read only by the
        empirical Fisher of L_c, which draws the unknown ones from the model; without features
        S runs.
    :param kind: ``"fisher"`` ignores the partner; ``"gfi"`` gates with it.
    :param generator: CPU generator of drawn targets and of the gate.
    :param processes: that share the rows out; all have the same sample and generator.
    """
    params = model.decoder_parameters() if pair.weights == "decoder" else model.target_parameters()
    params = {name: p for name, p in params.items() if p.requires_grad}
    heads: tuple[int, ...] = ()
    if model.target.heads_by_task:
        heads = tuple(sample.tasks.unique().tolist())
    outputs = (pair.keep, pair.partner) if kind == "gfi" else (pair.keep,)
    images, features = sample.images, sample.features
    with torch.no_grad(), evaluation_mode(model):
        if features is None:
            features = images.flatten(1) if model.source is None else model.source_features(images)
        goals = _goals(model, features, sample, settings.fisher, generator)
    measurement = Measurement(
        TargetTasks(model, outputs, heads),
        (features, images),
        params,
        settings,
        processes or Processes(None),
    )
    tasks = [coupled_task(name, heads, goals[name], sample.tasks) for name in outputs]
    relative = None
    if kind == "fisher":
        fisher = measurement.fisher(tasks[0])
    else:
        fisher, relative = measurement.relative(*tasks)
    values, shared = gate(fisher, relative, settings, generator)
    return Importance(
        values=values,
        anchors={name: params[name].detach().clone() for name in values},
        shared=shared,
        kept={name: float((value > 0).float().mean()) for name, value in values.items()},
        sizes={name: value.numel() for name, value in values.items()},
    )


def coupled_task(output: str, heads: tuple[int, ...], goal: Tensor, task_labels: Tensor) -> Task:
    """Return the negative log likelihood of one of the coupled model's outputs, at its targets."""
    if output == "logits":
        nll = negative_log_likelihood("categorical")
        if heads:
            loss, goal = by_head(nll, heads, goal, task_labels)
            return Task(lambda outputs, targets: loss(outputs.logits, targets), goal)
        return Task(lambda outputs, targets: nll(outputs.logits, targets), goal)
    nll = negative_log_likelihood("gaussian")
    index = Outputs._fields.index(f"{output}_reconstruction")
    return Task(lambda outputs, targets: nll(outputs[index], targets), goal)


def _goals(
    model: CoupledModel,
    features: Tensor,
    sample: Sample,
    fisher: str,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return what each output's likelihood is taken at, by the kind of Fisher information."""
    images, labels = sample.images, sample.labels
    reconstructed, logits = model.decode_target(images)
    if model.target.heads_by_task:
        drawn = Readout("categorical").draw(model, images, sample.tasks, generator)
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
