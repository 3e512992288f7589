"""Grad samplers of recurrent layers: each of their weights is a linear layer over time steps.

The pre-activations of step t are ``W_ih x_t + b_ih`` and ``W_hh h_(t-1) + b_hh``. Once their
gradients are known, those of a weight are a sum of outer products over the steps, as of a linear
layer that reads a sequence. torch runs a whole recurrent layer in one operation, which has no
gradient for a single gate; so the layer is run again, step by step on all samples at once, and
differentiated with respect to the pre-activations. That takes some operations a step, where a
backward pass for each sample takes as many for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from avalanche_cetl.information.gradients.capture import Call

RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)

#: ``(z_ih, z_hh, h, c) -> (h, c)``, each ``(n, width)``.
Cell = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def can_be_unrolled(module: nn.Module) -> bool:
    """Return whether it is a recurrent layer whose weights have grad samplers: batch first."""
    return isinstance(module, RECURRENT) and module.batch_first


def calls_by_parameter(module: nn.Module, call: Call) -> dict[str, Call]:
    """Return, for each parameter of a recurrent layer, what a linear layer in its place would see.

    Gradients are of the layer's output sequence; the final state has to get its own from there.

    :param module: the recurrent layer.
    :param call: of the layer, with its sequence ``(n, T, I)`` and no initial state.
    :return: by parameter name a call with inputs ``(n, T, width)`` and, per loss, gradients
        ``(n, T, gates)``.
    :raises ValueError: for a call with an initial state or without a batch.
    """
    assert isinstance(module, RECURRENT)
    if call.steps is None:
        if len(call.inputs) + len(call.named) != 1 or call.x.dim() != 3:
            raise ValueError("a recurrent layer with an initial state has no closed form here.")
        call.steps = _unroll(module, call)
    return call.steps


class _Direction:
    """One direction of one layer, run step by step."""

    def __init__(self, module: nn.RNNBase, suffix: str, x: Tensor):
        def weight(name: str) -> Tensor:
            parameter: Tensor = getattr(module, f"{name}{suffix}")
            return parameter.detach()

        self.suffix, self.x = suffix, x.detach()
        reverse = suffix.endswith("_reverse")
        bias = (weight("bias_ih"), weight("bias_hh")) if module.bias else (None, None)
        z = nn.functional.linear(x, weight("weight_ih"), bias[0])
        self.z_ih = z if z.requires_grad else z.requires_grad_()
        size = module.proj_size or module.hidden_size
        h, c = (x.new_zeros(len(x), width).to(z.dtype) for width in (size, module.hidden_size))
        cell = _cell(module)
        project = weight("weight_hr") if module.proj_size else None
        count = x.shape[1]
        steps = range(count - 1, -1, -1) if reverse else range(count)
        #: Per step, in the sequence's order: input and output of W_hh, input and output of W_hr.
        self.before: list[Tensor] = [h] * count
        self.z_hh: list[Tensor] = [h] * count
        self.inside: list[Tensor] = [h] * count
        self.out: list[Tensor] = [h] * count
        for t in steps:
            self.before[t] = h.detach()
            self.z_hh[t] = nn.functional.linear(h, weight("weight_hh"), bias[1])
            if not self.z_hh[t].requires_grad:
                self.z_hh[t].requires_grad_()
            h, c = cell(self.z_ih[:, t], self.z_hh[t], h, c)
            if project is not None:
                self.inside[t] = h.detach()
                h = nn.functional.linear(h, project)
            self.out[t] = h

    def seen(self, gradients: Sequence[Sequence[Tensor] | None]) -> dict[str, Call]:
        """Return the calls of this direction's parameters.

        :param gradients: per loss, of :meth:`differentiated`; None where it does not reach.
        """
        count = len(self.out)

        def stacked(first: int) -> list[Tensor | None]:
            return [
                None if g is None else torch.stack(list(g[first : first + count]), 1)
                for g in gradients
            ]

        reads = Call((self.x,), {}, [None if g is None else g[0] for g in gradients])
        back = Call((torch.stack(self.before, 1),), {}, stacked(1))
        calls = {"weight_ih": reads, "bias_ih": reads, "weight_hh": back, "bias_hh": back}
        calls["weight_hr"] = Call((torch.stack(self.inside, 1),), {}, stacked(1 + count))
        return {f"{name}{self.suffix}": call for name, call in calls.items()}

    def differentiated(self) -> list[Tensor]:
        """Return what the losses are differentiated with respect to."""
        return [self.z_ih, *self.z_hh, *self.out]


def _unroll(module: nn.RNNBase, call: Call) -> dict[str, Call]:
    directions: list[_Direction] = []
    with torch.enable_grad():
        x = call.x.detach()
        for layer in range(module.num_layers):
            suffixes = (f"_l{layer}", f"_l{layer}_reverse")[: 1 + module.bidirectional]
            of_layer = [_Direction(module, suffix, x) for suffix in suffixes]
            x = torch.cat([torch.stack(direction.out, 1) for direction in of_layer], 2)
            directions += of_layer
    wanted = [tensor for direction in directions for tensor in direction.differentiated()]
    gradients: list[list[Tensor] | None] = []
    for g in call.gradients:
        if g is None:
            gradients.append(None)
            continue
        of_loss = torch.autograd.grad(
            x, wanted, g.to(x.dtype), retain_graph=True, allow_unused=True
        )
        pairs = zip(of_loss, wanted, strict=True)
        gradients.append([torch.zeros_like(t) if g is None else g for g, t in pairs])
    result: dict[str, Call] = {}
    start = 0
    for direction in directions:
        stop = start + len(direction.differentiated())
        result |= direction.seen([None if g is None else g[start:stop] for g in gradients])
        start = stop
    return result


def _cell(module: nn.RNNBase) -> Cell:
    """Return the step of a layer, by torch's own equations."""

    def lstm(z_ih: Tensor, z_hh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (z_ih + z_hh).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def gru(z_ih: Tensor, z_hh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        (r, z, n), (hr, hz, hn) = z_ih.chunk(3, 1), z_hh.chunk(3, 1)
        new = (n + (r + hr).sigmoid() * hn).tanh()
        keep = (z + hz).sigmoid()
        return (1 - keep) * new + keep * h, c

    def simple(z_ih: Tensor, z_hh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = z_ih + z_hh
        return (z.relu() if module.nonlinearity == "relu" else z.tanh()), c

    if isinstance(module, nn.LSTM):
        return lstm
    return gru if isinstance(module, nn.GRU) else simple
