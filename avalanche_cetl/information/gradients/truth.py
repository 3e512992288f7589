"""What routes are compared with: plain autograd's gradients of two samples.

Two are enough to see whether samples influence one another, and whether a gradient belongs to its
own sample. The loss is a made one, :func:`projection`, since a route has to be right for all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from avalanche_cetl.information.gradients.plain import Gradients, PlainGradients


def projection(outputs: Any, samples: int) -> Tensor:
    """Return a loss that depends on every output: all of them, with fixed irregular weights.

    The weights are ``sin(1.7 k + 0.3)`` for output k: neither 1.7 nor 0.3 is a fraction of pi, so
    none of them is 0 and no two are equal. (Equal weights would hide whatever a softmax or a norm
    in front of the outputs keeps constant.) They take no random numbers from the user's generators.

    :param outputs: a tensor, or tensors in tuples, lists and dicts.
    :param samples: n; outputs without a dimension of that size in front (or, as recurrent layers
        have it, behind the first) are left out.
    :return: ``(n,)``.
    :raises ValueError: when no output has one.
    """
    total: Tensor | None = None
    for leaf in tree_leaves(outputs):
        if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            continue
        if leaf.is_complex():
            leaf = torch.view_as_real(leaf)
        if leaf.dim() > 1 and leaf.shape[0] != samples and leaf.shape[1] == samples:
            leaf = leaf.transpose(0, 1)
        if not leaf.dim() or leaf.shape[0] != samples:
            continue
        flat = leaf.reshape(samples, -1)
        index = torch.arange(flat.shape[1], device=flat.device, dtype=torch.float64)
        weights = torch.sin(1.7 * index + 0.3).to(flat.dtype)
        part = (flat * weights).sum(1)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("the model gives no tensor with a row for each sample.")
    return total


class Activations:
    """Memory that a pass keeps for its backward pass, parameters left out."""

    def __init__(self, model: nn.Module):
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once; return the tensor."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def counted(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return a context that counts what autograd saves."""
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda t: t)

    @property
    def bytes(self) -> int:
        """The sum over storages."""
        return sum(self._sizes.values())


class Truth(NamedTuple):
    """Losses and plain autograd's gradients of two samples.

    :ivar values: ``(2,)``.
    :ivar gradients: per sample, by parameter name.
    :ivar sample_bytes: memory that a pass of one sample keeps, with room for torch.func.
    """

    values: Tensor
    gradients: list[Gradients]
    sample_bytes: int

    @classmethod
    def of(cls, plain: PlainGradients) -> Truth:
        """Run the first two samples, each on its own, on :func:`projection`."""
        activations = Activations(plain.model)
        with activations.counted():
            found = [plain.of(i, lambda out, rows: projection(out, len(rows))) for i in (0, 1)]
        values = torch.stack([value for value, _ in found])
        # Two passes, whose storages may or may not be the same; vmap holds about as much again.
        return cls(values, [gradients for _, gradients in found], 2 * activations.bytes)

    def reaches(self, name: str) -> bool:
        """Return whether a parameter's gradient is not zero in one sample or the other."""
        return any(g[name] is not None and bool(g[name].any()) for g in self.gradients)  # type: ignore[union-attr]
