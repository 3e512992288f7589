"""The shared list of cases: networks whose per-sample gradients a naive loop computes."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from networks import Of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))  # the networks are in files beside this one
from case_networks import (
    Prompted,
    Residual,
    Standardised,
    Tied,
    Tokens,
    data_dependent,
    indexed,
    last_step,
    masked,
    mean,
    routed,
    sequence_first,
    shared,
    shared_convolution,
    sometimes_attends,
    unused,
)


@dataclass(frozen=True)
class Case:
    """A network, the shape of one input, and how its output is read."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    likelihood: str = "categorical"
    vocabulary: int = 0

    def make(self, n, seed=3):
        torch.manual_seed(seed)
        model = self.build().double()
        if self.vocabulary:
            x = torch.randint(self.vocabulary, (n, *self.shape))
        else:
            x = torch.randn(n, *self.shape, dtype=torch.float64)
        with torch.no_grad():
            out = model.eval()(x)
        if self.likelihood == "categorical":
            targets = torch.randint(out.shape[1], (n,))
        else:
            targets = torch.randn_like(out)
        return model.train(), x, targets

    def losses(self, out, targets):
        if self.likelihood == "categorical":
            return F.cross_entropy(out, targets, reduction="none")
        return 0.5 * (out - targets).flatten(1).pow(2).sum(1)

    def naive(self, model, x, targets):
        """One sample, one backward pass: per-sample gradients, obviously right."""
        model.eval()
        rows = []
        for i in range(len(x)):
            model.zero_grad()
            self.losses(model(x[i : i + 1]), targets[i : i + 1]).sum().backward()
            rows.append(
                {
                    name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                    for name, p in model.named_parameters()
                }
            )
        model.zero_grad()
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _normalised(layer, channels=4):
    return nn.Sequential(
        nn.Conv2d(2, channels, 3), layer, nn.Tanh(), mean(), nn.Linear(channels, 3)
    )


def _batch_norm():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net


def _conv(*args, kind=nn.Conv2d, **kwargs):
    return nn.Sequential(kind(*args, **kwargs), nn.Tanh(), mean())


def _up(layer, shape):
    return nn.Sequential(nn.Linear(5, 2 * shape**2), nn.Unflatten(1, (2, shape, shape)), layer)


def _attention():
    return nn.MultiheadAttention(4, 2, batch_first=True)


IMAGE = (2, 6, 7)
CASES = {
    "linear": Case(lambda: nn.Linear(5, 3), (5,)),
    "linear without bias": Case(lambda: nn.Linear(5, 3, bias=False), (5,)),
    "mlp": Case(lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), (5,)),
    "relu mlp": Case(lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)), (5,)),
    "tokens": Case(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), mean(2)), (6, 4)),
    "two token axes": Case(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), mean(3)), (3, 2, 4)),
    "conv": Case(lambda: _conv(2, 3, 3), IMAGE),
    "conv of many channels": Case(lambda: _conv(9, 4, (3, 2), padding=1), (9, 5, 4)),
    "conv stride": Case(lambda: _conv(2, 3, 3, stride=2, padding=1), IMAGE),
    "conv stride, many channels": Case(lambda: _conv(8, 3, 3, stride=(2, 1)), (8, 6, 7)),
    "conv dilation": Case(lambda: _conv(2, 3, 2, dilation=(2, 3), padding=(0, 2)), IMAGE),
    "conv groups": Case(lambda: _conv(4, 6, 3, groups=2), (4, 5, 5)),
    "conv depthwise": Case(lambda: _conv(4, 8, 3, groups=4, stride=2, bias=False), (4, 6, 5)),
    "conv depthwise with bias": Case(lambda: _conv(4, 4, 3, groups=4, padding=1), (4, 6, 6)),
    "conv same": Case(lambda: _conv(2, 3, 4, padding="same"), IMAGE),
    "conv circular": Case(lambda: _conv(2, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv reflect": Case(lambda: _conv(2, 3, 3, padding=(1, 2), padding_mode="reflect"), IMAGE),
    "conv to one pixel": Case(lambda: _conv(2, 3, (6, 7)), IMAGE),
    "conv 1x1": Case(lambda: _conv(9, 3, 1), (9, 4, 4)),
    "conv 1d": Case(lambda: _conv(2, 3, 3, stride=2, padding=1, kind=nn.Conv1d), (2, 9)),
    "conv 3d": Case(lambda: _conv(2, 3, 2, stride=2, kind=nn.Conv3d), (2, 4, 5, 4)),
    "transposed": Case(lambda: _up(nn.ConvTranspose2d(2, 1, 3, 2), 3), (5,), "gaussian"),
    "transposed, padded": Case(
        lambda: _up(nn.ConvTranspose2d(2, 3, 4, 2, padding=1, output_padding=1), 3),
        (5,),
        "gaussian",
    ),
    "transposed, dilated, grouped": Case(
        lambda: _up(nn.ConvTranspose2d(2, 4, 3, dilation=2, groups=2), 3), (5,), "gaussian"
    ),
    "transposed from one pixel": Case(
        lambda: _up(nn.ConvTranspose2d(2, 9, 3), 1), (5,), "gaussian"
    ),
    "transposed 1d": Case(
        lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.ConvTranspose1d(1, 2, 3, 2)),
        (5,),
        "gaussian",
    ),
    "batch norm": Case(_batch_norm, (5,)),
    "batch norm without statistics": Case(
        lambda: _normalised(nn.BatchNorm2d(4, track_running_stats=False)), IMAGE
    ),
    "group norm": Case(lambda: _normalised(nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": Case(lambda: _normalised(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "layer norm": Case(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), (5,)
    ),
    "layer norm over tokens": Case(
        lambda: nn.Sequential(nn.LayerNorm((6, 4)), nn.Linear(4, 3), nn.Tanh(), mean(2)), (6, 4)
    ),
    "embedding": Case(
        lambda: nn.Sequential(
            nn.Embedding(7, 4, padding_idx=2), nn.Tanh(), mean(2), nn.Linear(4, 3)
        ),
        (6,),
        vocabulary=7,
    ),
    "dropout": Case(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)), (5,)),
    "shared layer": Case(lambda: Of(shared, layer=nn.Linear(5, 5), head=nn.Linear(5, 3)), (5,)),
    "shared convolution": Case(
        lambda: Of(shared_convolution, conv=nn.Conv2d(2, 2, 3, padding=1)), IMAGE
    ),
    "tied weights": Case(lambda: Tied(functional=False), (6,), vocabulary=7),
    "tied by a function": Case(lambda: Tied(functional=True), (6,), vocabulary=7),
    "residual": Case(Residual, IMAGE),
    "class token": Case(Tokens, (5, 4)),
    "torch's attention": Case(lambda: Tokens("torch"), (5, 4)),
    "parameter of shape (1, ...) indexed": Case(
        lambda: Of(indexed, bias=nn.Parameter(torch.randn(1, 5)), head=nn.Linear(5, 3)), (5,)
    ),
    "sequence first": Case(lambda: Of(sequence_first, layer=nn.Linear(4, 3)), (5, 4)),
    "convolution with its own forward": Case(
        lambda: nn.Sequential(Standardised(2, 3, 3), nn.Tanh(), mean()), IMAGE
    ),
    "weight norm": Case(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))), (5,)
    ),
    "recurrent": Case(lambda: nn.Sequential(nn.GRU(4, 3, batch_first=True), last_step()), (5, 4)),
    "data dependent": Case(lambda: Of(data_dependent, layer=nn.Linear(5, 3)), (5,)),
    "prompt, number, table": Case(Prompted, (5, 4)),
    "table of seven rows": Case(lambda: Prompted(7), (5, 4)),
    "mask of seven rows": Case(
        lambda: Of(
            masked,
            attend=_attention(),
            mask=torch.ones(7, 7, dtype=torch.bool).triu(1),
            head=nn.Linear(4, 3),
        ),
        (7, 4),
    ),
    "sometimes attends": Case(
        lambda: Of(sometimes_attends, attend=_attention(), head=nn.Linear(4, 3)), (5, 4)
    ),
    "lstm": Case(lambda: nn.Sequential(nn.LSTM(4, 3, batch_first=True), last_step()), (5, 4)),
    "identity parametrization": Case(
        lambda: nn.Sequential(
            nn.utils.parametrize.register_parametrization(nn.Linear(5, 3), "weight", nn.Identity())
        ),
        (5,),
    ),
    "embedding scaled by frequency": Case(
        lambda: nn.Sequential(
            nn.Embedding(3, 4, scale_grad_by_freq=True), nn.Tanh(), mean(2), nn.Linear(4, 3)
        ),
        (6,),
        vocabulary=3,
    ),
    "experts": Case(
        lambda: Of(
            routed,
            trunk=nn.Linear(5, 4),
            experts=nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]),
        ),
        (5,),
    ),
    "unused and dead": Case(
        lambda: Of(
            unused,
            trunk=nn.Linear(5, 4),
            dead=nn.Linear(5, 3),
            unused=nn.Linear(4, 2),
            head=nn.Linear(4, 3),
        ),
        (5,),
    ),
    "max pooling": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
        IMAGE,
    ),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture
def named_case():
    return CASES.__getitem__
