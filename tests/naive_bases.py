"""Kronecker bases that are drawn, and what is measured in them by loops over directions."""

import torch

from avalanche_cetl.information.gradients.eigenbasis import LayerBasis


def drawn_layer(seed, shape, rank=99, *, weight="w", bias="b", groups=None):
    """An orthonormal basis of a layer whose weight has a shape."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if groups is None else (groups,)

    def side(size):
        square = torch.randn(*lead, size, size, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(square).Q[..., :rank].contiguous()

    inputs = torch.Size(shape[1:]).numel() + (bias is not None)
    return LayerBasis(weight, bias, side(shape[0] // (groups or 1)), side(inputs))


def drawn_values(seed, shape, zeros=True):
    """Importances, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.where(found < 0.2, 0, found) if zeros else found


def drawn_weights(seed, shapes):
    """Weights, or distances from an anchor, by parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def sides(layer):
    """U and V of every group."""
    if layer.left.dim() == 2:
        return [(layer.left, layer.right)]
    return list(zip(layer.left, layer.right, strict=True))


def matrices(layer, values):
    """Weight and bias as one matrix of every group."""
    groups = len(sides(layer))
    found = []
    for k in range(groups):
        rows = len(values[layer.weight]) // groups
        own = slice(k * rows, (k + 1) * rows)
        matrix = values[layer.weight][own].flatten(1)
        if layer.bias is not None:
            matrix = torch.cat([matrix, values[layer.bias][own].unsqueeze(1)], 1)
        found.append(matrix)
    return found


def rotated(layer, values):
    """``U^T W V`` of weight and bias, group by group."""
    pairs = zip(sides(layer), matrices(layer, values), strict=True)
    parts = [left.T @ matrix @ right for (left, right), matrix in pairs]
    return torch.stack(parts).reshape(layer.shape)


def directions(layer):
    """Every direction: its place in the importance, its group, u and v."""
    for k, (left, right) in enumerate(sides(layer)):
        for i in range(left.shape[1]):
            for j in range(right.shape[1]):
                place = (i, j) if layer.left.dim() == 2 else (k, i, j)
                yield place, k, left[:, i], right[:, j]


def along(layer, group, u, v, shapes):
    """The direction ``u v^T`` of a group as weight and bias, 0 in all other parameters."""
    found = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    rows = slice(group * len(u), (group + 1) * len(u))
    matrix = torch.outer(u, v)
    if layer.bias is not None:
        found[layer.bias][rows] = matrix[:, -1]
        matrix = matrix[:, :-1]
    found[layer.weight][rows] = matrix.reshape(found[layer.weight][rows].shape)
    return found


def quadratic(importance, basis, away):
    """``sum_ij F_ij (u_i^T W v_j)^2`` of layers with a basis, ``sum_i F_i w_i^2`` of the others."""
    total = torch.zeros((), dtype=torch.float64)
    for name, value in importance.items():
        if name not in basis:
            total = total + (value * away[name] ** 2).sum()
            continue
        parts = matrices(basis[name], away)
        for place, group, u, v in directions(basis[name]):
            total = total + value[place] * (u @ parts[group] @ v) ** 2
    return total
