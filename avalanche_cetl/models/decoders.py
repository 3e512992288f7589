"""The shared decoder T1, the target network with its layers reversed (section 4.1.1); its adapters.

Adapters lead from S's features, and from T2's code, to the code that the decoder reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.common.standardize import floored_deviation
from avalanche_cetl.models.reversal import from_shapes, reverse_chain, trace_chain
from avalanche_cetl.models.targets import Target, as_target, init_he
from avalanche_cetl.models.unpool import Unpool, Upsampling, fusible, unpool_and_convolve


class ReversedDecoder(nn.Module):
    """T1: reads a code of the target's width, writes an image of exactly the input's shape.

    A target whose layers follow one another is traced and reversed layer by layer: linear
    to linear, convolution to transposed convolution (each with the number of kernels of its
    counterpart), pooling to unpooling, flatten to unflatten, rectifiers between. A pooling
    down to one pixel has kept no position, so its reverse is a linear layer. A target with
    branches (ResNet, timm models) gets a decoder laid out from the shapes of its feature
    maps instead: a linear layer to the smallest map, then unpooling and a 3x3 transposed
    convolution per resolution. Normalisation and dropout have no reverse. The output is
    linear (no squashing); weights start as He et al. 2015, the last layer at a tenth of it.

    :param target: the target network T2; any module that :func:`as_target` takes.
    :param input_shape: shape of one input, ``(C, H, W)`` (or ``(D,)`` for vectors).
    :param unpool: ``"nearest"`` or ``"zeros"``, see :class:`Unpool`.
    :ivar code_dim: width of the code it reads.
    :ivar mirrored: True when the target was reversed layer by layer.
    :raises ValueError: when the target does not take ``input_shape``.
    """

    def __init__(
        self,
        target: Target | nn.Module | str,
        input_shape: Sequence[int],
        unpool: Upsampling = "nearest",
    ):
        super().__init__()
        target = as_target(target)
        self.input_shape = tuple(int(size) for size in input_shape)
        self.code_dim, _ = target.measure(self.input_shape)
        with evaluation_mode(target), torch.no_grad():
            chain = trace_chain(target, self.input_shape)
            if chain is not None:
                layers = reverse_chain(chain, self.input_shape, unpool)
            else:
                layers = from_shapes(target, self.code_dim, self.input_shape, unpool)
        self.mirrored = chain is not None
        self.layers = nn.Sequential(*layers)
        init_he(self.layers)
        last = [m for m in self.layers if isinstance(m, nn.Linear) or hasattr(m, "output_padding")]
        with torch.no_grad():
            # A first reconstruction near zero: otherwise the first steps only shrink it.
            last[-1].get_parameter("weight").mul_(0.1)

    def forward(self, code: Tensor) -> Tensor:
        """Return reconstructions ``(N, *input_shape)`` of codes ``(N, code_dim)``."""
        return self.forward_hidden(code)[0]

    def forward_hidden(self, code: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return reconstructions, and the hidden layers' outputs (after each rectifier)."""
        if code.dim() != 2 or code.shape[1] != self.code_dim:
            raise ValueError(f"expected codes (N, {self.code_dim}), got {tuple(code.shape)}.")
        hidden = []
        x = code
        layers = list(self.layers)
        while layers:
            layer = layers.pop(0)
            if layers and isinstance(layer, Unpool) and fusible(layer, layers[0], x):
                x = unpool_and_convolve(x, layers.pop(0))  # type: ignore[arg-type]
                continue
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                hidden.append(x)
        return x, hidden


class Standardize(nn.Module):
    """Standardise features with the mean and deviation of the target training data.

    The statistics are buffers, so a checkpoint keeps them. Until they are fitted the layer
    changes nothing.

    :param dim: number of features.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Compute mean and standard deviation of features ``(N, dim)``.

        Deviations have a floor, see :func:`avalanche_cetl.common.standardize.floored_deviation`;
        where no feature varies at all they count as 1.

        :raises ValueError: for a wrong width, no rows, or values that are not finite.
        """
        if features.dim() != 2 or features.shape[1] != len(self.mean) or not len(features):
            raise ValueError(
                f"expected source features (N, {len(self.mean)}), got {tuple(features.shape)}."
            )
        if not torch.isfinite(features).all():
            raise ValueError("the source network gave features that are not finite.")
        std = floored_deviation(features, correction=0)
        self.mean.copy_(features.mean(0))
        self.std.copy_(std if std.any() else torch.ones_like(std))
        self.fitted.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """Return standardised features ``(N, dim)``."""
        return (features.to(self.mean.dtype) - self.mean) / self.std


def source_adapter(dim: int, width: int) -> nn.Sequential:
    """Return what S's features pass on their way to the decoder: standardised, then linear.

    :param dim: number of S's features.
    :param width: of the code that the decoder reads.
    """
    return nn.Sequential(Standardize(dim), _linear(dim, width))


def target_adapter(dim: int, width: int) -> nn.Module:
    """Return what T2's code passes: nothing where the widths agree, else a linear layer.

    :param dim: width of T2's code.
    :param width: of the code that the decoder reads.
    """
    return nn.Identity() if dim == width else _linear(dim, width)


def _linear(dim: int, width: int) -> nn.Linear:
    layer = nn.Linear(dim, width)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    return layer
