"""The registry of grad samplers: closed forms of a parameter's per-sample gradients.

A layer's forward pass reads inputs and parameters; the gradient of its output is known from one
backward pass of the whole batch. A grad sampler (the word is that of opacus) computes from these
two what the parameter's gradient is for every sample on its own, for all samples at once. Those of
torch's layers (:mod:`~avalanche_cetl.information.gradients.grad_samplers`) are registered here as
a user's are.

None is trusted because it is registered: :mod:`~avalanche_cetl.information.gradients.verification`
compares it with a loop over single samples. One that gives other values is left aside for a slower
way, and a warning names it where it is a user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

#: ``(layer, inputs, gradient) -> per-sample gradients``, see :func:`register_layer_gradients`.
Function = TypeVar("Function", bound=Callable[..., Any])


class Factors(NamedTuple):
    """Per-sample gradients as sums of outer products, ``G_n = sum_t left[n, :, t] right[n, t, :]``.

    The sum is over positions (tokens, pixels). With a single position the squares of ``G_n`` and
    their logarithms come from the factors alone, and ``G_n`` is never made.

    :ivar left: ``(n, O, T)``, or ``(n, G, O, T)`` for G groups.
    :ivar right: ``(n, T, I)``, or ``(n, G, T, I)``.
    :ivar restore: maps ``(..., O, I)`` (or ``(..., G, O, I)``) to ``(..., *weight.shape)``.
    """

    left: Tensor
    right: Tensor
    restore: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GradSampler:
    """A closed form of one parameter's per-sample gradients.

    :ivar layer_type: that it is registered for.
    :ivar function: computes the gradients.
    :ivar factored: whether it returns :class:`Factors` in the place of the gradients.
    :ivar by_step: whether it reads the calls that its parameter has in an unrolled recurrent layer.
    """

    layer_type: type[nn.Module]
    function: Callable[..., Any]
    factored: bool
    by_step: bool = False

    @property
    def builtin(self) -> bool:
        """Whether it is this package's own."""
        module = self.function.__module__ or ""  # functions made by exec() have none
        return module.startswith(__name__.partition(".")[0] + ".")


_grad_samplers: dict[type[nn.Module], dict[str, GradSampler]] = {}
_registrations = 0


def register_layer_gradients(
    *layer_types: type[nn.Module], parameter: str
) -> Callable[[Function], Function]:
    """Register a closed form of the per-sample gradients of a parameter of a layer of one's own.

    The decorated function is called as ``function(layer, inputs, gradient)``, where

    - ``layer`` is the module,
    - ``inputs`` is the tuple of what one call of it was given, positional arguments first. Tensors
      with a row for each sample hold ``n`` rows of the batch, all else is as it was given,
    - ``gradient`` ``(n, ...)`` is the gradient of its output (of the first, if there are several),

    and returns the gradient of the parameter for each of the ``n`` samples, ``(n, *shape)``, with
    the parameter's shape. Gradients of several calls, and of layers that share the parameter, are
    added up by the caller. Tensors are detached; half precision comes as float32.

    The form counts for layers of these types and, unless they have a form of their own, of types
    derived from them. It may replace one of torch's. Registering the same type and parameter again
    replaces the form; there is no way to remove one. Parameters without a form, complex ones, and
    those whose form does not agree with autograd go by torch.func or a backward pass per sample,
    and in the last case a warning tells which form was refused and why.

    :param layer_types: for which it counts.
    :param parameter: name of the parameter in the layer, as ``"weight"``.
    :return: a decorator that returns the function as it is.
    :raises TypeError: for anything but types of modules and a name.

    >>> import torch
    >>> from avalanche_cetl import fisher_information
    >>> class Scale(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gamma = nn.Parameter(torch.tensor([1.0, 2.0]))
    ...
    ...     def forward(self, x):
    ...         return x * self.gamma
    >>> @register_layer_gradients(Scale, parameter="gamma")
    ... def scale_gradients(layer, inputs, gradient):
    ...     return gradient * inputs[0]
    >>> x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [1.0, 1.0]])
    >>> fisher_information(Scale(), x, loss=lambda out: out.sum(1))["gamma"]
    tensor([3.6667, 1.6667])
    """
    return _registering(layer_types, parameter, factored=False)


def register_layer_factors(
    *layer_types: type[nn.Module], parameter: str
) -> Callable[[Function], Function]:
    """Register a closed form that returns :class:`Factors`, see :func:`register_layer_gradients`.

    It is the faster of the two for weights whose per-sample gradients are sums of outer products,
    as in linear layers and convolutions.
    """
    return _registering(layer_types, parameter, factored=True)


def registered_for(layer_type: type[nn.Module], parameter: str) -> GradSampler | None:
    """Return the grad sampler of a type of layer, or of the nearest of its bases."""
    for base in layer_type.__mro__:
        if parameter in _grad_samplers.get(base, ()):
            return _grad_samplers[base][parameter]
    return None


def unmatched(layer: nn.Module) -> Iterator[tuple[str, GradSampler]]:
    """Yield the user's forms that are registered for a layer's type, of parameters it has not."""
    for base in type(layer).__mro__:
        for parameter, sampler in _grad_samplers.get(base, {}).items():
            if not sampler.builtin and not hasattr(layer, parameter):
                yield parameter, sampler


def registrations() -> int:
    """Return how often grad samplers were registered: routes found before hold no more."""
    return _registrations


def _registering(
    layer_types: tuple[type[nn.Module], ...], parameter: str, factored: bool
) -> Callable[[Function], Function]:
    if not layer_types or not all(
        isinstance(k, type) and issubclass(k, nn.Module) for k in layer_types
    ):
        raise TypeError(
            f"a closed form is registered for types of layers, got {layer_types}; write "
            '@register_layer_gradients(MyLayer, parameter="weight").'
        )
    if not isinstance(parameter, str):
        raise TypeError(f"parameter={parameter!r} has to be a parameter's name in the layer.")

    def register(function: Function) -> Function:
        global _registrations
        for layer_type in layer_types:
            sampler = GradSampler(layer_type, function, factored)
            _grad_samplers.setdefault(layer_type, {})[parameter] = sampler
        _registrations += 1
        return function

    return register
