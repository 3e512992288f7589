"""Importances of many experiences, each in a Kronecker basis of its own, as one in one basis.

Every old experience has a penalty ``sum_ij F_ij (U^T (W - W*) V)_ij^2`` in its own eigenbasis. To
keep them all costs memory and time that grow with their number. Here they become one, whenever an
experience ends:

1. The directions kept so far and the new ones are stacked, each weighted by the root of its
   importance. The leading left singular vectors of the stack are the basis that keeps most of the
   summed importance: those of ``sum_k U_k diag(F_k 1) U_k^T`` on the side of the outputs, and of
   ``sum_k V_k diag(F_k^T 1) V_k^T`` on the side of the inputs. They are found in the coordinates
   of what is kept and of what is new beside it.
2. The importance of a new direction ``u_i v_j^T`` is what all quadratics together have along it,
   ``F_ij = sum_k sum_ab (u_i . u_ka)^2 F_k,ab (v_ka . v_j)^2``: exact along every direction that
   is kept. What mixes two directions is left out, as it is in each experience's own basis.
3. The anchor is the newest weights. They are where the sum of the new task's loss and of the old
   quadratics was lowest when the experience ended, so that this sum, expanded around them, has no
   linear term (Laplace's approximation applied again and again; Huszar 2018). A mean of all
   anchors, which is exact for a diagonal, is far off here: what two directions mix is as large as
   the differences between anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.allocation.parameters import basis_of, grown
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, LayerBasis
from avalanche_cetl.information.gradients.precision import flush_denormals

Weights = dict[str, Tensor]

#: A layer's narrower side is kept whole up to so many times one experience's rank. Where a sum of
#: many experiences keeps fewer directions than such a side has, they are forgotten again: over
#: twenty permutations of all MNIST images 64 of 100 directions keep 76 %, 100 keep 91 %.
NARROW = 2
#: Directions of the wider side, as a multiple of the rank, and at most ``COPIES`` for each row of
#: the narrower side: that bounds the memory of a basis by so many copies of its layer.
ROOM, COPIES = 6, 4
#: Singular values below this part of the largest are rounding.
_ROUNDING = 1e-7


class MergedBasis:
    """The sum of importances, in one basis of limited rank.

    :param rank: most directions of one experience on either side of a layer. The sum keeps the
        narrower side whole where it has at most twice as many, else as many, and on the wider side
        up to six times as many.
    :ivar basis: the basis of every layer that has one.
    :ivar importance: F by direction, by the name of the weight; of other parameters by weight.
    :ivar count: how many experiences were taken in.
    """

    def __init__(self, rank: int):
        self.rank = rank
        self.basis = KroneckerBasis({})
        self.importance: Weights = {}
        self.count = 0

    @torch.no_grad()
    def add(
        self,
        importance: Mapping[str, Tensor],
        basis: KroneckerBasis,
        shapes: Mapping[str, torch.Size],
        decay: float = 1.0,
    ) -> None:
        """Let what is held fade, and take one more experience in.

        :param importance: of the new experience, in its basis.
        :param basis: of the new experience.
        :param shapes: of the network's parameters.
        :param decay: factor of what is held, >= 0.
        """
        self.grow(shapes)
        terms = [
            ({name: decay * value for name, value in self.importance.items()}, self.basis),
            (dict(importance), basis),
        ]
        layers, sums = {}, {}
        for name in dict.fromkeys([*self.basis, *basis]):
            whole = _whole([known[name] for _, known in terms if name in known])
            parts = [part for values, known in terms for part in _taken(whole, values, known)]
            layers[name], sums[name] = _together(whole, parts, self.rank)
        for values, _ in terms:
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value
        self.basis, self.importance = KroneckerBasis(layers), sums
        self.count += 1

    def grow(self, shapes: Mapping[str, torch.Size]) -> None:
        """Bring all to the shapes of a network that has grown; new weights have no importance.

        :raises ValueError: when a parameter has shrunk, or a layer with groups has grown.
        """
        layers = {
            name: _grown(layer, shapes[name]) if name in shapes else layer
            for name, layer in self.basis.items()
        }
        for name, value in self.importance.items():
            if name not in layers and name in shapes:
                self.importance[name] = grown(value, value.new_empty(shapes[name], device="meta"))
        self.basis = KroneckerBasis(layers)

    @property
    def directions(self) -> int:
        """Return the most directions that a side of a layer has; 0 without a layer."""
        return max((size for layer in self.basis.values() for size in layer.shape[-2:]), default=0)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        own = {"importance": self.importance, "count": self.count}
        return own | {"basis": self.basis.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state."""
        self.basis, self.importance = basis_of(state["basis"]), state["importance"]
        self.count = state.get("count", 0)

    def to(self, device: torch.device) -> None:
        """Move all of it to a device."""
        self.basis = self.basis.to(device)
        self.importance = {name: value.to(device) for name, value in self.importance.items()}


def _whole(layers: list[LayerBasis]) -> LayerBasis:
    """Return the first basis, with the bias where any basis has it."""
    bias = next((layer.bias for layer in layers if layer.bias is not None), None)
    return _with_bias(layers[0], bias)


def _taken(
    whole: LayerBasis, values: Weights, basis: KroneckerBasis
) -> list[tuple[LayerBasis, Tensor]]:
    """Take what is known of a layer out of ``values``: importances, each with its basis.

    A weight or a bias that was measured by itself has the basis of its own coordinates.
    """
    found = []
    name, bias = whole.weight, whole.bias
    outputs, inputs = whole.left.shape[:-1], whole.right.shape[:-1]
    count = inputs[-1] - (bias is not None)
    if name in basis:
        found.append((_with_bias(basis[name], bias), values.pop(name)))
    elif name in values:
        own = replace(whole, left=_unit(whole.left), right=_unit(whole.right, 0, count))
        found.append((own, values.pop(name).reshape(*outputs, -1)))
    if bias in values:
        own = replace(whole, left=_unit(whole.left), right=_unit(whole.right, count))
        found.append((own, values.pop(bias).reshape(*outputs, 1)))
    return found


def _unit(side: Tensor, first: int = 0, end: int | None = None) -> Tensor:
    """Return the unit vectors of some coordinates of a side as columns, for every group."""
    size = side.shape[-2]
    end = size if end is None else end
    found = side.new_zeros(*side.shape[:-1], end - first)
    found[..., first:end, :] = torch.eye(end - first, dtype=side.dtype, device=side.device)
    return found


def _together(
    whole: LayerBasis, parts: list[tuple[LayerBasis, Tensor]], rank: int
) -> tuple[LayerBasis, Tensor]:
    """Return several quadratics of a layer as one."""
    limits = _limits(whole.left.shape[-2], whole.right.shape[-2], rank)
    first, value = parts[0]
    if len(parts) == 1 and first.shape[-2] <= limits[0] and first.shape[-1] <= limits[1]:
        return first, value
    values = [value.clamp_min(0) for _, value in parts]
    left, of_left = _leading([one.left for one, _ in parts], [f.sum(-1) for f in values], limits[0])
    right, of_right = _leading(
        [one.right for one, _ in parts], [f.sum(-2) for f in values], limits[1]
    )
    total = left.new_zeros(())
    for u, f, v in zip(of_left, values, of_right, strict=True):
        total = total + u.square() @ f.to(u) @ v.square().mT
    kind = parts[0][1].dtype
    left, right, total = (flush_denormals(one, kind) for one in (left, right, total))
    return replace(whole, left=left, right=right), total


def _limits(outputs: int, inputs: int, rank: int) -> tuple[int, int]:
    """Return how many directions all experiences together keep on either side."""
    size = min(outputs, inputs)
    narrow = size if size <= NARROW * rank else rank
    wide = max(rank, min(ROOM * rank, COPIES * size))
    return (wide, narrow) if outputs > inputs else (narrow, wide)


def _leading(sides: list[Tensor], weights: list[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
    """Return the directions that hold most of several sets of directions together.

    They are the leading eigenvectors of ``sum_k U_k diag(w_k) U_k^T``, found in the coordinates of
    the first set and of what the others have beside it.

    :param sides: ``([G,] d, r_k)`` each, with orthonormal columns.
    :param weights: ``([G,] r_k)`` each, >= 0.
    :param rank: most directions that are kept.
    :return: the directions, ``([G,] d, r)``, and of each set its coordinates in them,
        ``([G,] r, r_k)``.
    """
    base, others = sides[0], [side.to(sides[0]) for side in sides[1:]]
    within = [base.mT @ side for side in others]
    beside = [side - base @ inner for side, inner in zip(others, within, strict=True)]
    roots = [weight.sqrt().unsqueeze(-2).to(base) for weight in weights]
    if beside and base.shape[-1] < base.shape[-2]:
        stacked = torch.cat([side * root for side, root in zip(beside, roots[1:], strict=True)], -1)
        more, sizes, _ = torch.linalg.svd(stacked, full_matrices=False)
        rounding = max(_ROUNDING, 32 * torch.finfo(base.dtype).eps)
        above = sizes > rounding * max(float(root.max()) for root in roots)
        more = more[..., : min(int(above.sum(-1).max()), base.shape[-2] - base.shape[-1])]
        more = more - base @ (base.mT @ more)  # once more, for what rounding has left
        base = torch.cat([base, torch.linalg.qr(more).Q], -1)
    # In these coordinates the first set is a part of the unit matrix.
    others = [base.mT @ side for side in others]
    first, count = sides[0].shape[-1], base.shape[-1]
    matrix = torch.diag_embed(F.pad(weights[0].to(base), (0, count - first)))
    for inner, root in zip(others, roots[1:], strict=True):
        matrix = matrix + (inner * root) @ (inner * root).mT
    turn = _turned(matrix, rank)
    return base @ turn, [turn[..., :first, :].mT, *(turn.mT @ inner for inner in others)]


def _turned(matrix: Tensor, rank: int) -> Tensor:
    """Return the leading eigenvectors of a matrix as columns, at most ``rank`` of them."""
    # In float64: bases are turned again and again, and have to stay orthonormal.
    values, vectors = torch.linalg.eigh(matrix.double())
    above = values > _ROUNDING**2 * values[..., -1:]
    kept = max(1, min(rank, int(above.sum(-1).max())))
    leading: Tensor = vectors[..., -kept:].flip(-1).to(matrix)
    return leading


def _with_bias(layer: LayerBasis, bias: str | None) -> LayerBasis:
    """Return a basis of weight and bias; without a bias, it has no part of it."""
    if layer.bias == bias:
        return layer
    return replace(layer, bias=bias, right=F.pad(layer.right, (0, 0, 0, 1)))


def _grown(layer: LayerBasis, shape: torch.Size) -> LayerBasis:
    """Return a layer's basis for a weight that has grown: 0 where it is new."""
    left, right = layer.left, layer.right
    groups = left.shape[0] if left.dim() == 3 else 1
    kernel = shape[2:].numel()
    inputs = (right.shape[-2] - (layer.bias is not None)) // kernel
    old = (groups * left.shape[-2], inputs)
    if old == (shape[0], shape[1]):
        return layer
    if groups > 1 or old[0] > shape[0] or old[1] > shape[1]:
        raise ValueError(
            f"{layer.weight!r} was held with {old[0]} outputs and {old[1]} inputs and is now of "
            f"shape {tuple(shape)}: layers may grow between experiences, those with groups not, "
            "and none may shrink."
        )
    rows = inputs * kernel
    weight, rest = right[:rows], right[rows:]
    weight = F.pad(weight, (0, 0, 0, (shape[1] - inputs) * kernel))
    return replace(
        layer,
        left=F.pad(left, (0, 0, 0, shape[0] - old[0])),
        right=torch.cat([weight, rest]),
    )
