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

from avalanche_cetl.information.gradients.bundles import Bundle, Layout
from avalanche_cetl.information.gradients.forms import Factors
from avalanche_cetl.information.gradients.layer_bundle import LayerBundle
from avalanche_cetl.information.gradients.precision import magnitude, single, without_autocast


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
        own = [params[name] for name in self.parameters if name in params]
        outputs = self.left.shape[:-1].numel()
        return (
            len(own) == len(self.parameters)
            and all(p.dim() > 0 and len(p) == outputs for p in own)
            and sum(p.numel() for p in own) == self.weights
        )

    def to(self, where: Any) -> LayerBasis:
        """Return it on a device, or in a floating-point type."""
        return replace(self, left=self.left.to(where), right=self.right.to(where))

    def matrix(self, values: Mapping[str, Tensor], lead: int = 0) -> Tensor:
        """Return weight and bias as one matrix ``(..., O, I)``, or one for each group.

        :param values: by parameter, ``(..., *shape)``.
        :param lead: number of leading dimensions that are not the parameter's.
        """
        weight = values[self.weight]
        sides = (*weight.shape[:lead], *self.left.shape[:-1])
        found = weight.reshape(*sides, -1)
        if self.bias is None:
            return found
        return torch.cat([found, values[self.bias].reshape(*sides, 1)], -1)

    def rotate(self, values: Mapping[str, Tensor], lead: int = 0) -> Tensor:
        """Return ``U^T W V``, ``(..., *shape)``, of weight and bias, in their type.

        Autocast does not change the type; see :meth:`matrix` for the arguments.
        """
        weight = values[self.weight]
        sides = (*weight.shape[:lead], *self.left.shape[:-1])
        whole = weight.reshape(*sides, -1)
        left, (right, row) = self.left.to(whole), self._sides(whole)
        with without_autocast(whole):
            first = _left_first(left, right)
            found = left.mT @ whole @ right if first else left.mT @ (whole @ right)
            if self.bias is not None:
                found = found + left.mT @ values[self.bias].reshape(*sides, 1) * row
        return found

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
            found = {self.weight: whole.reshape(shapes[self.weight])}
            if self.bias is not None:
                found[self.bias] = (left @ (directions @ row.mT)).reshape(shapes[self.bias])
        return found

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
        return frozenset(one.bias for one in self._layers.values() if one.bias is not None)

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
        self._layers = {name: LayerBasis(**one) for name, one in state.items()}

    def __getitem__(self, name: str) -> LayerBasis:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def columns_of(bundle: LayerBundle) -> Tensor:
    """Return the column of the right factor at each place of a row of the weight, ``(I,)``.

    Factors may have their columns in another order than the weight's dimensions.
    """
    probe = bundle.factors(slice(0, 1), 0)
    count = probe.right.shape[-1]
    grid = torch.arange(count, device=probe.right.device)
    return probe.restore(grid.reshape(*[1] * (probe.left.dim() - 2), count)).reshape(-1)


class RotatedLayer(Bundle):
    """A layer's gradients in its basis, from factors in the basis."""

    def __init__(self, bundle: LayerBundle, layer: LayerBasis):
        super().__init__(bundle.params)
        self._bundle, self._layer, self.name = bundle, layer, bundle.name
        columns = columns_of(bundle)
        weight = layer.right[..., : len(columns), :]
        self._right = torch.empty_like(weight)
        self._right[..., columns, :] = weight
        self._bias = None if layer.bias is None else layer.right[..., -1:, :]

    def alive(self, loss: int) -> bool:
        """Return whether the loss reaches the layer."""
        return self._bundle.alive(loss)

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients and what they take to make."""
        return self._bundle.factor_bytes + self._layer.shape.numel() * 4

    def factors(self, rows: slice, loss: int) -> Factors:
        """Return ``U^T left`` and ``right V`` of some samples."""
        return self._rotated(self._bundle.factors(rows, loss))

    def _rotated(self, found: Factors) -> Factors:
        left = self._layer.left.to(found.left).mT @ found.left
        right = found.right @ self._right.to(found.right)
        if self._bias is not None:
            right = right + self._bias.to(right)
        return Factors(left, right, lambda t: t)

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute the rotated per-sample gradients of some rows.

        With many positions the gradient itself is the smaller matrix: it is then rotated in the
        place of its factors.
        """
        found = self._bundle.factors(rows, loss)
        if not self._rotates_whole(found):
            found = self._rotated(found)
            return {self.name: found.left @ found.right}
        whole = found.left @ found.right @ self._right.to(found.right)
        if self._bias is not None:
            whole = whole + found.left.sum(-1, keepdim=True) * self._bias.to(whole)
        return {self.name: self._layer.left.to(whole).mT @ whole}

    def _rotates_whole(self, factors: Factors) -> bool:
        """Return whether rotating the gradient takes fewer products than rotating its factors."""
        (outputs, positions), inputs = factors.left.shape[-2:], factors.right.shape[-1]
        r, s = self._layer.shape[-2:]
        of_factors = positions * (r * outputs + inputs * s + r * s)
        return positions * outputs * inputs + outputs * s * (inputs + r) < of_factors

    def outer(self, loss: int) -> Factors | None:
        """Return both factors, where there is one position."""
        return None if self._bundle.outer(loss) is None else self.factors(slice(None), loss)

    def layout(self, name: str) -> Layout:
        """Return the shape of the directions."""
        return Layout(self._layer.shape, lambda t: t)


class RotatedWhole(Bundle):
    """Gradients of whole bundles, those of layers with a basis rotated one by one."""

    def __init__(self, bundles: Sequence[Bundle], layers: Sequence[LayerBasis]):
        self._bundles, self._layers = list(bundles), {one.weight: one for one in layers}
        folded = {one.bias for one in layers}
        params = {n: p for bundle in bundles for n, p in bundle.params.items()}
        super().__init__({n: p for n, p in params.items() if n not in folded})
        self._all = params

    def alive(self, loss: int) -> bool:
        """Return whether the loss reaches any of them."""
        return any(bundle.alive(loss) for bundle in self._bundles)

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients."""
        return sum(bundle.row_bytes() for bundle in self._bundles)

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients of some rows, rotated where a layer has a basis."""
        found = {}
        for bundle in self._bundles:
            if bundle.alive(loss):
                for name, value in bundle.gradients(loss, rows).items():
                    whole = bundle.layout(name).restore(value)
                    found[name] = whole.reshape(len(whole), *self._all[name].shape)
        for name, parameter in self._all.items():
            if name not in found:
                like = single(magnitude(parameter.detach()))
                found[name] = like.new_zeros(rows.stop - rows.start, *like.shape)
        return {
            name: self._layers[name].rotate(found, 1) if name in self._layers else found[name]
            for name in self.names
        }

    def layout(self, name: str) -> Layout:
        """Return the shape of the directions, or the parameter's."""
        if name in self._layers:
            return Layout(self._layers[name].shape, lambda t: t)
        return super().layout(name)


def rotated(bundles: Sequence[Bundle], basis: KroneckerBasis) -> list[Bundle]:
    """Return the bundles of a batch with their layers' gradients in a basis."""
    holder = {name: bundle for bundle in bundles for name in bundle.names}
    used: list[Bundle] = []
    found: list[Bundle] = []
    whole: list[LayerBasis] = []
    for name, layer in basis.items():
        own = holder.get(name)
        if own is None:
            continue
        bias = None if layer.bias is None else holder.get(layer.bias)
        # A bias is one more input of its layer where its own gradient has a closed form too.
        folds = layer.bias is None or isinstance(bias, LayerBundle)
        if isinstance(own, LayerBundle) and own.factored and folds:
            found.append(RotatedLayer(own, layer))
        else:
            whole.append(layer)
        used += [one for one in (own, bias) if one is not None]
    if whole:
        names = [name for one in whole for name in (one.weight, one.bias) if name is not None]
        inner = list(dict.fromkeys(holder[name] for name in names if name in holder))
        found.append(RotatedWhole(inner, whole))
    return [bundle for bundle in bundles if bundle not in used] + found
