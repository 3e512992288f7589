"""Per-sample gradients of a layer in a basis of its own: ``U^T G_n V``.

A layer's gradient is the matrix ``G_n`` of outputs by inputs, its weight flattened from the second
dimension on, with the bias as one more column where the basis has it. In a layer with groups each
group has a matrix. Where ``G_n`` comes as factors ``left right``, ``U^T left`` and ``right V`` are
its factors in the basis, so that what is known of factored gradients (squares of single outer
products, correlations in closed form) holds there too. Elsewhere the whole gradient is rotated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from avalanche_cetl.common.modes import without_autocast
from avalanche_cetl.information.gradients.closed_form import ClosedForm
from avalanche_cetl.information.gradients.grad_sample import GradSample, Layout
from avalanche_cetl.information.gradients.precision import magnitude, to_float32
from avalanche_cetl.information.gradients.registry import Factors


@dataclass(frozen=True)
class LayerBasis:
    """Leading eigenvectors of one layer's Kronecker factors, as columns.

    :ivar weight: the name of its weight.
    :ivar bias: the name of the bias that is folded in; None: none is.
    :ivar left: U, ``(O, r)``, or ``(G, O, r)`` for G groups.
    :ivar right: V, ``(I, s)`` or ``(G, I, s)``; I counts the bias.
    """

    weight: str
    bias: str | None
    left: Tensor
    right: Tensor

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters in the layer's matrix."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def shape(self) -> torch.Size:
        """Return the shape of what is measured in the basis, ``(r, s)`` or ``(G, r, s)``."""
        return torch.Size([*self.left.shape[:-2], self.left.shape[-1], self.right.shape[-1]])

    @property
    def weights(self) -> int:
        """Return the number of weights in the layer's matrix, ``G O I``."""
        return math.prod(self.left.shape[:-1]) * self.right.shape[-2]

    def fits(self, params: Mapping[str, Tensor]) -> bool:
        """Return whether a network has the layer's parameters, in the shapes of its matrix."""
        of_layer = [params[name] for name in self.parameters if name in params]
        outputs = self.left.shape[:-1].numel()
        return (
            len(of_layer) == len(self.parameters)
            and all(p.dim() > 0 and len(p) == outputs for p in of_layer)
            and sum(p.numel() for p in of_layer) == self.weights
        )

    def to(self, where: Any) -> LayerBasis:
        """Return it on a device, or in a floating-point type."""
        return replace(self, left=self.left.to(where), right=self.right.to(where))

    def rotate(self, values: Mapping[str, Tensor], lead: int = 0) -> Tensor:
        """Return ``U^T W V``, ``(..., *shape)``, of weight and bias, in their type.

        Autocast does not change the type.

        :param values: by parameter, ``(..., *shape)``.
        :param lead: number of leading dimensions that are not the parameter's.
        """
        weight = values[self.weight]
        sides = (*weight.shape[:lead], *self.left.shape[:-1])
        whole = weight.reshape(*sides, -1)
        left, (right, row) = self.left.to(whole), self._sides(whole)
        with without_autocast(whole):
            first = _left_first(left, right)
            directions = left.mT @ whole @ right if first else left.mT @ (whole @ right)
            if self.bias is not None:
                directions = directions + left.mT @ values[self.bias].reshape(*sides, 1) * row
        return directions

    def restore(self, directions: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Return ``U D V^T`` as weight and bias, in the type of D whatever autocast is set to.

        :param directions: D, ``shape``.
        :param shapes: of the parameters.
        """
        left, (right, row) = self.left.to(directions), self._sides(directions)
        with without_autocast(directions):
            if _left_first(left, right):
                whole = left @ (directions @ right.mT)
            else:
                whole = left @ directions @ right.mT
            params = {self.weight: whole.reshape(shapes[self.weight])}
            if self.bias is not None:
                params[self.bias] = (left @ (directions @ row.mT)).reshape(shapes[self.bias])
        return params

    def _sides(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of V that are the weight's, and the one that is the bias's, if any."""
        right = self.right.to(like)
        count = right.shape[-2] - (self.bias is not None)
        return right[..., :count, :], right[..., count:, :]


def _left_first(left: Tensor, right: Tensor) -> bool:
    """Return whether ``U^T W V`` takes fewer products from the left."""
    (outputs, r), (inputs, s) = left.shape[-2:], right.shape[-2:]
    return r * inputs * (outputs + s) <= outputs * s * (inputs + r)


class KroneckerBasis(Mapping[str, LayerBasis]):
    """The bases of a network's layers, by the name of the weight."""

    def __init__(self, layers: Mapping[str, LayerBasis]):
        self._layers = dict(layers)

    @property
    def folded(self) -> frozenset[str]:
        """Return the names of the biases that are part of a layer's matrix."""
        return frozenset(layer.bias for layer in self.values() if layer.bias is not None)

    def to(self, where: Any) -> KroneckerBasis:
        """Return it on a device, or in a floating-point type."""
        return KroneckerBasis({name: layer.to(where) for name, layer in self.items()})

    def renamed(self, name: Callable[[str], str]) -> KroneckerBasis:
        """Return it for a network whose parameters have other names.

        :param name: returns the new name of an old one.
        """
        layers = [
            replace(
                layer,
                weight=name(layer.weight),
                bias=None if layer.bias is None else name(layer.bias),
            )
            for layer in self.values()
        ]
        return KroneckerBasis({layer.weight: layer for layer in layers})

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return all layers as plain data."""
        return {name: dict(vars(layer)) for name, layer in self.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the layers of a state."""
        self._layers = {name: LayerBasis(**layer) for name, layer in state.items()}

    def __getitem__(self, name: str) -> LayerBasis:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def columns_of(sample: ClosedForm) -> Tensor:
    """Return the column of the right factor at each place of a row of the weight, ``(I,)``.

    Factors may have their columns in another order than the weight's dimensions.
    """
    probe = sample.factors(slice(0, 1), 0)
    count = probe.right.shape[-1]
    grid = torch.arange(count, device=probe.right.device)
    return probe.restore(grid.reshape(*[1] * (probe.left.dim() - 2), count)).reshape(-1)


class RotatedClosedForm(GradSample):
    """A layer's gradients in its basis, from factors in the basis."""

    def __init__(self, sample: ClosedForm, layer: LayerBasis):
        super().__init__(sample.params)
        self._sample, self._layer, self.name = sample, layer, sample.name
        columns = columns_of(sample)
        weight = layer.right[..., : len(columns), :]
        self._right = torch.empty_like(weight)
        self._right[..., columns, :] = weight
        self._bias = None if layer.bias is None else layer.right[..., -1:, :]

    def reached(self, loss: int) -> bool:
        """Return whether the loss reaches the layer."""
        return self._sample.reached(loss)

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients and what they take to make."""
        return self._sample.product_bytes + self._layer.shape.numel() * 4

    def _rotated(self, factors: Factors) -> Factors:
        """Return ``U^T left`` and ``right V``."""
        left = self._layer.left.to(factors.left).mT @ factors.left
        right = factors.right @ self._right.to(factors.right)
        if self._bias is not None:
            right = right + self._bias.to(right)
        return Factors(left, right, lambda t: t)

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute the rotated per-sample gradients of some rows.

        With many positions the gradient itself is the smaller matrix: it is then rotated in the
        place of its factors.
        """
        if not self._sample.depthwise and not self._rotates_whole():
            factors = self._rotated(self._sample.factors(rows, loss))
            return {self.name: factors.left @ factors.right}
        product, sums = self._sample.product(rows, loss)
        whole = product @ self._right.to(product)
        if self._bias is not None:
            whole = whole + sums * self._bias.to(whole)
        return {self.name: self._layer.left.to(whole).mT @ whole}

    def _rotates_whole(self) -> bool:
        """Return whether rotating the gradient takes fewer products than rotating its factors."""
        positions = self._sample.positions
        outputs, inputs = self._layer.left.shape[-2], self._right.shape[-2]
        r, s = self._layer.shape[-2:]
        of_factors = positions * (r * outputs + inputs * s + r * s)
        return positions * outputs * inputs + outputs * s * (inputs + r) < of_factors

    def outer(self, loss: int) -> Factors | None:
        """Return both factors, where there is one position."""
        factors = self._sample.outer(loss)
        return None if factors is None else self._rotated(factors)

    def layout(self, name: str) -> Layout:
        """Return the shape of the directions."""
        return Layout(self._layer.shape, lambda t: t)


class RotatedGradSamples(GradSample):
    """Gradients of any kind, those of layers with a basis rotated one by one."""

    def __init__(self, samples: Sequence[GradSample], layers: Sequence[LayerBasis]):
        self._samples, self._layers = list(samples), {layer.weight: layer for layer in layers}
        folded = {layer.bias for layer in layers}
        self._all = {n: p for sample in samples for n, p in sample.params.items()}
        super().__init__({n: p for n, p in self._all.items() if n not in folded})

    def reached(self, loss: int) -> bool:
        """Return whether the loss reaches any of them."""
        return any(sample.reached(loss) for sample in self._samples)

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients."""
        return sum(sample.row_bytes() for sample in self._samples)

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients of some rows, rotated where a layer has a basis."""
        gradients: dict[str, Tensor] = {}
        for sample in self._samples:
            if sample.reached(loss):
                gradients |= sample.in_shape(loss, rows)
        for name, parameter in self._all.items():
            if name not in gradients:
                like = to_float32(magnitude(parameter.detach()))
                gradients[name] = like.new_zeros(rows.stop - rows.start, *like.shape)
        return {
            name: self._layers[name].rotate(gradients, 1)
            if name in self._layers
            else gradients[name]
            for name in self.names
        }

    def layout(self, name: str) -> Layout:
        """Return the shape of the directions, or the parameter's."""
        if name in self._layers:
            return Layout(self._layers[name].shape, lambda t: t)
        return super().layout(name)


def rotated(samples: Sequence[GradSample], basis: KroneckerBasis) -> list[GradSample]:
    """Return the gradients of a batch with those of layers in a basis."""
    holder = {name: sample for sample in samples for name in sample.names}
    used: list[GradSample] = []
    in_basis: list[GradSample] = []
    whole: list[LayerBasis] = []
    for name, layer in basis.items():
        weight = holder.get(name)
        if weight is None:
            continue
        bias = None if layer.bias is None else holder.get(layer.bias)
        # A bias is one more input of its layer where its own gradient has a closed form too.
        folds = layer.bias is None or isinstance(bias, ClosedForm)
        if isinstance(weight, ClosedForm) and weight.factored and folds:
            in_basis.append(RotatedClosedForm(weight, layer))
        else:
            whole.append(layer)
        used += [sample for sample in (weight, bias) if sample is not None]
    if whole:
        names = [name for layer in whole for name in layer.parameters]
        inner = list(dict.fromkeys(holder[name] for name in names if name in holder))
        in_basis.append(RotatedGradSamples(inner, whole))
    return [sample for sample in samples if sample not in used] + in_basis
