"""How the networks of the zoo are put together: from layers and a forward pass each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from networks import Of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True)
class Network:
    """How to make a network, what it reads, and where its logits are.

    :ivar vocabulary: of whole numbers that it reads; 0: it reads floats.
    :ivar pair: it loses the batch axis of a single sample.
    :ivar frozen: names of parameters that require no gradient.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0
    pair: bool = False
    logits: Callable = staticmethod(lambda out: out)  # noqa: RUF009
    frozen: tuple[str, ...] = ()

    def make(self, n, seed=0):
        torch.manual_seed(seed)
        model = self.build().double().eval()
        if self.vocabulary:
            x = torch.randint(1, self.vocabulary, (n, *self.shape))
        else:
            x = torch.rand(n, *self.shape, dtype=torch.float64)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        return model, x

    def loss(self, out, targets):
        return F.cross_entropy(self.logits(out), targets, reduction="none")

    def naive(self, x, targets):
        """Mean of squared gradients: one sample after another, on a network of the same seed."""
        model, _ = self.make(len(x))
        params = dict(model.named_parameters())
        total = {name: torch.zeros_like(p).abs() for name, p in params.items()}
        for i in range(len(x)):
            for p in params.values():
                p.grad = None
            rows = [i, i] if self.pair else [i]
            self.loss(model(x[rows].clone()), targets[rows]).mean().backward()
            for name, p in params.items():
                if p.grad is not None:
                    total[name] += p.grad.abs() ** 2 / len(x)
        return {name: value for name, value in total.items() if params[name].requires_grad}


class Sign(torch.autograd.Function):
    """A straight-through estimator of the old style, which torch.func does not take."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class NewSign(torch.autograd.Function):
    """The same for torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sign()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


def weight(*shape):
    return nn.Parameter(torch.randn(*shape) / 2)


def pruned(layer, name="weight"):
    return prune.random_unstructured(layer, name, 0.5)


def low_rank():
    """A frozen layer with a trainable change of rank 2 (LoRA)."""
    return Of(
        lambda m, x: m.o(torch.tanh(m.base(x) + x @ m.a @ m.b)),
        base=nn.Linear(6, 5), a=weight(6, 2), b=weight(2, 5), o=nn.Linear(5, 3),
    )  # fmt: skip


def packed(m, x):
    lengths = (x > 2).sum(1).clamp(min=1).cpu()
    run = pack_padded_sequence(m.e(x), lengths, batch_first=True, enforce_sorted=False)
    return m.o(m.r(run)[1][0])


def packed_and_padded(m, x):
    lengths = (x > 2).sum(1).clamp(min=1).cpu()
    run = pack_padded_sequence(m.e(x), lengths, batch_first=True, enforce_sorted=False)
    padded, _ = pad_packed_sequence(m.r(run)[0], batch_first=True, total_length=x.shape[1])
    return m.o(padded.sum(1))


def cells(m, x):
    h = x.new_zeros(len(x), 4)
    for t in range(x.shape[1]):
        h = m.cell(x[:, t], h)
    return m.o(h)


def count(m, x):
    m.calls += 1
    return m.o(torch.tanh(x @ m.w))


def average(m, x):
    m.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
    return m.o(torch.tanh(m.i(x)))


def replaced(m, x):
    m.mean = 0.9 * m.mean + 0.1 * x.detach().mean(0)
    return m.o(torch.tanh(m.i(x)) + m.mean[:4] * 0)


def remembered(m, x):
    m.seen = m.__dict__.get("seen", 0) + len(x)
    m.last = torch.tanh(m.i(x))
    return m.o(m.last)


def energy(m, x):
    """The gradient of a scalar with respect to the input, as energy models have it."""
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        value = torch.tanh(m.i(z)).square().sum()
        (slope,) = torch.autograd.grad(value, z, create_graph=True)
    return m.o(slope)


def hyper(m, x):
    """The weights of one layer are the output of another."""
    w = m.make(x).view(len(x), 3, 6)
    return (w @ x.unsqueeze(2)).squeeze(2)


def experts(m, x):
    gate = m.gate(x)
    best = gate.argmax(1)
    out = x.new_zeros(len(x), 3)
    for k, expert in enumerate(m.experts):
        rows = best == k
        if rows.any():
            out[rows] = expert(x[rows]) * gate[rows, k : k + 1].sigmoid()
    return out


def dynamic(m, x):
    """Filters that depend on the image, all images in one grouped convolution."""
    n, c, height, width = x.shape
    w = m.make(x.mean((2, 3))).view(n * 3, c, 3, 3)
    out = F.conv2d(x.reshape(1, n * c, height, width), w, groups=n)
    return out.view(n, 3, -1).mean(2)


def excited(m, x):
    maps = m.c(x)
    scale = m.e(maps.mean((2, 3))).sigmoid()
    return m.o((maps * scale[:, :, None, None]).mean((2, 3)))


def filled(m, x):
    x[:, 0] = 1.0
    return m.o(x)


def squeezed(m, x):
    return m.o(torch.relu(m.c(x)).squeeze())
