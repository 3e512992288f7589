"""Measure GFI1, GFI2 and GFI3 of Algorithm 1 on the coupled model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_cetl.allocation.measure import Measurement, Task, gate
from avalanche_cetl.allocation.merged_basis import MergedBasis
from avalanche_cetl.allocation.output_likelihood import (
    DRAWN_AT_ONCE,
    OutputLikelihood,
    by_head,
    projected,
)
from avalanche_cetl.allocation.parameters import (
    anchors_of,
    bare,
    basis_of,
    check_held,
    grown,
    named_parameters,
    unwrapped,
    widened,
)
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.information.generalized import dwa_penalty
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis
from avalanche_cetl.information.likelihood import negative_log_likelihood, sample_targets
from avalanche_cetl.information.outputs import sample_output_vectors
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

    In a basis a layer has one entry, under the name of its weight, and that is by direction; a bias
    that is part of the layer has an anchor only.

    :ivar values: importance of every weight, >= 0, keyed as ``model.named_parameters()`` and of the
        parameter's shape; of a layer with a basis that of every direction, ``(r, s)`` or
        ``(G, r, s)``.
    :ivar anchors: the weights theta*, of all parameters that are held, in float32 at least.
    :ivar shared: per entry, the share in [0, 1] of its weights or directions with RF >= u; empty
        where no relative Fisher information was measured.
    :ivar sizes: per entry, its number of weights; of a layer with a basis all of its matrix.
    :ivar basis: of the layers whose importance is by direction; None: all is weight by weight.
    """

    values: dict[str, Tensor]
    anchors: dict[str, Tensor]
    shared: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    basis: KroneckerBasis | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, for checkpoints."""
        return vars(self) | {"basis": None if self.basis is None else self.basis.state_dict()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Importance:
        """Return the importance of a state; those of 0.2 have a share more, and maybe no basis."""
        known = {name: value for name, value in state.items() if name != "kept"}
        basis = state.get("basis")
        return cls(**known | {"basis": None if basis is None else basis_of(basis)})

    def to(self, device: torch.device) -> Importance:
        """Return it on a device."""
        moved = {n: v.to(device) for n, v in self.values.items()}
        anchors = {n: v.to(device) for n, v in self.anchors.items()}
        basis = None if self.basis is None else self.basis.to(device)
        return replace(self, values=moved, anchors=anchors, basis=basis)

    def penalty(self, model: CoupledModel, lam: float) -> Tensor:
        """DWA (eq. 11) at the model's current weights; those that have come since are free."""
        params = {  # S, which may be large, has none that is held
            f"{part}.{name}": p
            for part, module in bare(model).named_children()
            if part != "source"
            for name, p in named_parameters(module).items()
        }
        check_held(self.anchors.keys(), params, "CETLStrategy")
        self.grow(params)
        now = {name: widened(params[name]) for name in self.anchors}
        return dwa_penalty(now, self.anchors, self.values, lam, self.basis)

    def grow(self, params: Mapping[str, Tensor]) -> None:
        """Bring it to the shapes of a network that may have grown: new weights have no importance.

        :raises ValueError: when a parameter has shrunk, or a layer with groups has grown.
        """
        known = {name: params[name] for name in self.anchors if name in params}
        if all(p.shape == self.anchors[name].shape for name, p in known.items()):
            return
        held = MergedBasis(rank=1)  # a sum of one, which knows how a basis grows
        held.importance = dict(self.values)
        held.basis = KroneckerBasis({}) if self.basis is None else self.basis
        held.grow({name: p.shape for name, p in known.items()})
        self.values = held.importance
        self.basis = None if self.basis is None else held.basis
        self.anchors = self.anchors | {n: grown(self.anchors[n], p) for n, p in known.items()}

    def misfits(self, params: Mapping[str, Tensor]) -> list[str]:
        """Return the names of parameters whose importance does not go with a network's.

        :param params: the network's, by name.
        """
        layers = KroneckerBasis({}) if self.basis is None else self.basis
        shapes = {name: p.shape for name, p in params.items()}
        wrong = [name for name, own in self.anchors.items() if shapes.get(name) != own.shape]
        for name, value in self.values.items():
            layer = layers.get(name)
            if layer is None:
                fits = shapes.get(name) == value.shape
            else:
                fits = layer.shape == value.shape and layer.fits(params)
            wrong += [] if fits else [name]
        return wrong + [name for name in layers if name not in self.values]


def measure_importance(
    model: CoupledModel,
    pair: Pair,
    sample: Batch,
    settings: GFISettings,
    kind: Literal["fisher", "gfi"],
    generator: torch.Generator,
    processes: Processes | None = None,
) -> Importance:
    """Measure one importance of Algorithm 1 at the model's current weights.

    :param model: the coupled network.
    :param pair: whose weights are measured, for which task, with which partner.
    :param sample: target rows on the model's device. Their labels are read only by the
        empirical Fisher of L_c, which draws the unknown ones from the model; without features
        S runs.
    :param settings: of the measurement.
    :param kind: ``"fisher"`` ignores the partner; ``"gfi"`` gates with it, unless the gate is none
        in the Kronecker basis. That basis is the one of the task to keep.
    :param generator: CPU generator of drawn targets and of the gate.
    :param processes: that share the rows out; all have the same sample and generator.
    """
    with unwrapped(model):
        params = (
            model.decoder_parameters() if pair.weights == "decoder" else model.target_parameters()
        )
        params = {name: p for name, p in params.items() if p.requires_grad}
        heads: tuple[int, ...] = ()
        if model.target.heads_by_task:
            heads = tuple(sample.tasks.unique().tolist())
        # Without a gate RF decides nothing; weight by weight its shares are still recorded.
        gated = kind == "gfi" and (settings.gates or settings.basis == "diagonal")
        outputs = (pair.keep, pair.partner) if gated else (pair.keep,)
        images, features = sample.images, sample.features
        with torch.no_grad(), evaluation_mode(model):
            if features is None and model.source is not None:
                pieces = images.split(DRAWN_AT_ONCE)
                features = torch.cat([model.source_features(piece) for piece in pieces])
            elif features is None:
                features = images.flatten(1)
            goals = _goals(model, features, sample, settings.fisher, generator)
        measurement = Measurement(
            TargetTasks(model, outputs, heads),
            (features, images),
            params,
            settings,
            processes or Processes(None),
        )
        tasks = [
            coupled_task(name, heads, goals[name], sample.tasks, settings.fisher)
            for name in outputs
        ]
        relative = None
        if gated:
            measurement.choose_basis(tasks[0])
            fisher, relative = measurement.relative(*tasks)
        else:
            fisher = measurement.fisher(tasks[0])
    basis = measurement.basis
    values, shared = gate(fisher, relative, settings, generator, basis)
    layers = {} if basis is None else dict(basis)
    held = {*values, *(name for layer in layers.values() for name in layer.parameters)}
    return Importance(
        values=values,
        anchors=anchors_of({name: p for name, p in params.items() if name in held}),
        shared=shared,
        sizes={n: layers[n].weights if n in layers else v.numel() for n, v in values.items()},
        basis=basis,
    )


def coupled_task(
    output: str,
    heads: tuple[int, ...],
    goal: Tensor,
    task_labels: Tensor,
    fisher: str = "sampled",
) -> Task:
    """Return one of the coupled model's outputs as a task.

    :param output: as :class:`TargetTasks` names it.
    :param heads: the tasks whose logits it computes.
    :param goal: targets of the negative log likelihood; for ``"logits"`` vectors of the outputs.
    :param task_labels: of all images, ``(N,)``.
    :param fisher: the kind of Fisher information.
    """
    loss = negative_log_likelihood("categorical" if output == "logits" else "gaussian")
    if fisher == "logits":
        loss = projected
    if output == "logits":
        if heads:
            each, goal = by_head(loss, heads, goal, task_labels)
            return Task(lambda outputs, targets: each(outputs.logits, targets), goal)
        return Task(lambda outputs, targets: loss(outputs.logits, targets), goal)
    index = Outputs._fields.index(f"{output}_reconstruction")
    return Task(lambda outputs, targets: loss(outputs[index], targets), goal)


def _goals(
    model: CoupledModel,
    features: Tensor,
    sample: Batch,
    fisher: str,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return what each output's likelihood is taken at, by the kind of Fisher information."""
    images, labels = sample.images, sample.labels
    # A few at a time: they may be many more than a mini-batch has.
    decoded = [model.decode_target(piece) for piece in images.split(DRAWN_AT_ONCE)]
    reconstructed = torch.cat([image for image, _ in decoded])
    if model.target.heads_by_task or fisher == "logits":
        drawn = OutputLikelihood("categorical").draw(model, images, sample.tasks, generator, fisher)
    else:
        logits = torch.cat([own for _, own in decoded])
        drawn = sample_targets(logits, "categorical", generator)
    source = images
    if model.source is not None:
        parts = features.split(DRAWN_AT_ONCE)
        source = torch.cat([model.reconstruct_source(features=part) for part in parts])
    if fisher == "empirical":
        known = torch.where(labels >= 0, labels, drawn)
        return {"source": images, "target": source, "logits": known}
    # Both reconstructions are of the same image: one noise, or one vector, for both. Independent
    # draws would make the two Fisher values of a weight differ by chance alone, and RF would shrink
    # to nothing however much the tasks share.
    if fisher == "logits":
        vectors = sample_output_vectors(images, "gaussian", generator)
        return {"source": vectors, "target": vectors, "logits": drawn}
    noise = sample_targets(torch.zeros_like(images), "gaussian", generator)
    return {"source": source + noise, "target": reconstructed + noise, "logits": drawn}
