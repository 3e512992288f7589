"""Small networks of many kinds, as people write them.

Every entry makes a network that reads ``(N, ...)`` and gives class logits (as they are, or inside
what it returns).
"""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torchvision
from timm.layers import GatedMlp
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint


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


class Of(nn.Module):
    """Layers by name, and a forward pass given as a function of them and the input."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, torch.Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


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


KINDS = {
    "input overwritten by arithmetic": Network(
        lambda: Of(lambda m, x: m.o(x.sub_(0.5).div_(0.25)), o=nn.Linear(6, 3)), (6,)
    ),
    "input overwritten by an in-place layer": Network(
        lambda: nn.Sequential(nn.Hardtanh(0.2, 0.8, inplace=True), nn.Linear(6, 3)), (6,)
    ),
    "input overwritten by indexing": Network(
        lambda: Of(filled, o=nn.Linear(6, 3)), (6,)
    ),
    "input overwritten and used by a function": Network(
        lambda: Of(lambda m, x: x.mul_(2) @ m.w, w=weight(6, 3)), (6,)
    ),
    "squeeze": Network(
        lambda: Of(squeezed, c=nn.Conv2d(1, 5, 4), o=nn.Linear(5, 3)), (1, 4, 4), pair=True
    ),
    "squeeze and a function": Network(
        lambda: Of(lambda m, x: (m.c(x).squeeze() @ m.w), c=nn.Conv2d(1, 5, 4), w=weight(5, 3)),
        (1, 4, 4), pair=True,
    ),
    "packed sequence": Network(
        lambda: Of(
            packed, e=nn.Embedding(9, 4), r=nn.GRU(4, 4, batch_first=True), o=nn.Linear(4, 3)
        ),
        (5,), vocabulary=9,
    ),
    "packed, padded, two directions": Network(
        lambda: Of(
            packed_and_padded, e=nn.Embedding(9, 4), o=nn.Linear(8, 3),
            r=nn.LSTM(4, 4, batch_first=True, bidirectional=True),
        ),
        (5,), vocabulary=9,
    ),
    "two recurrent layers with a projection": Network(
        lambda: Of(
            lambda m, x: m.o(m.r(x)[0][:, -1]),
            r=nn.LSTM(3, 5, 2, batch_first=True, proj_size=2), o=nn.Linear(2, 3),
        ),
        (4, 3),
    ),
    "two recurrent layers in two directions": Network(
        lambda: Of(
            lambda m, x: m.o(m.r(x)[0].mean(1)),
            r=nn.GRU(3, 4, 2, batch_first=True, bidirectional=True), o=nn.Linear(8, 3),
        ),
        (4, 3),
    ),
    "plain recurrent layer with rectifiers": Network(
        lambda: Of(
            lambda m, x: m.o(m.r(x)[0][:, -1]),
            r=nn.RNN(3, 4, nonlinearity="relu", bias=False, batch_first=True), o=nn.Linear(4, 3),
        ),
        (4, 3),
    ),
    "recurrent layer with an initial state": Network(
        lambda: Of(
            lambda m, x: m.o(m.r(x, m.h.expand(1, len(x), 4).contiguous())[0][:, -1]),
            r=nn.GRU(3, 4, batch_first=True), h=weight(1, 1, 4), o=nn.Linear(4, 3),
        ),
        (4, 3),
    ),
    "recurrent layer read by its final state": Network(
        lambda: Of(
            lambda m, x: m.o(m.r(x)[1][0][-1]), r=nn.LSTM(3, 4, batch_first=True), o=nn.Linear(4, 3)
        ),
        (4, 3),
    ),
    "recurrent, time first": Network(
        lambda: Of(
            lambda m, x: m.o(m.r(x.transpose(0, 1))[0][-1]), r=nn.GRU(3, 4), o=nn.Linear(4, 3)
        ),
        (4, 3),
    ),
    "recurrent cell in a loop": Network(
        lambda: Of(cells, cell=nn.GRUCell(3, 4), o=nn.Linear(4, 3)), (4, 3)
    ),
    "autograd function of the old style": Network(
        lambda: Of(
            lambda m, x: m.o(torch.tanh(x @ Sign.apply(m.w))), w=weight(6, 5), o=nn.Linear(5, 3)
        ),
        (6,),
    ),
    "autograd function of the new style": Network(
        lambda: Of(
            lambda m, x: m.o(torch.tanh(x @ NewSign.apply(m.w))), w=weight(6, 5), o=nn.Linear(5, 3)
        ),
        (6,),
    ),
    "reentrant checkpoint": Network(
        lambda: Of(
            lambda m, x: checkpoint(m.o, torch.tanh(m.i(x)), use_reentrant=True),
            i=nn.Linear(6, 5), o=nn.Linear(5, 3),
        ),
        (6,),
    ),
    "reentrant checkpoint, first layer frozen": Network(
        lambda: Of(
            lambda m, x: checkpoint(m.o, torch.tanh(m.i(x)) + m.b, use_reentrant=True),
            i=nn.Linear(6, 5), b=weight(5), o=nn.Linear(5, 3),
        ),
        (6,), frozen=("i.weight",),
    ),
    "checkpoint": Network(
        lambda: Of(
            lambda m, x: checkpoint(lambda h: m.o(m.i(h).tanh() * m.s), x, use_reentrant=False),
            i=nn.Linear(6, 5), s=weight(5), o=nn.Linear(5, 3),
        ),
        (6,),
    ),
    "counter": Network(
        lambda: Of(count, calls=torch.zeros(()), w=weight(6, 5), o=nn.Linear(5, 3)), (6,)
    ),
    "running average in a buffer": Network(
        lambda: Of(average, mean=torch.zeros(6), i=nn.Linear(6, 4), o=nn.Linear(4, 3)), (6,)
    ),
    "running average, buffer replaced": Network(
        lambda: Of(replaced, mean=torch.zeros(6), i=nn.Linear(6, 4), o=nn.Linear(4, 3)), (6,)
    ),
    "kept attributes": Network(
        lambda: Of(remembered, i=nn.Linear(6, 4), o=nn.Linear(4, 3)), (6,)
    ),
    "energy": Network(lambda: Of(energy, i=nn.Linear(6, 4), o=nn.Linear(6, 3)), (6,)),
    "hyper network": Network(lambda: Of(hyper, make=nn.Linear(6, 18)), (6,)),
    "experts by the best gate": Network(
        lambda: Of(
            experts, gate=nn.Linear(6, 2),
            experts=nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)]),
        ),
        (6,),
    ),
    "filters by image": Network(lambda: Of(dynamic, make=nn.Linear(2, 54)), (2, 5, 5)),
    "complex weights": Network(
        lambda: Of(
            lambda m, x: m.o((torch.fft.rfft(x)[:, :3] @ m.w).abs()),
            w=nn.Parameter(torch.randn(3, 5, dtype=torch.cdouble)), o=nn.Linear(5, 3),
        ),
        (6,),
    ),
    "complex layer": Network(
        lambda: Of(
            lambda m, x: m.o(m.c(torch.complex(x, x.flip(1))).abs()),
            c=nn.Linear(6, 4, dtype=torch.cdouble), o=nn.Linear(4, 3),
        ),
        (6,),
    ),
    "pruned": Network(
        lambda: nn.Sequential(pruned(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)), (6,)
    ),
    "pruned convolution": Network(
        lambda: nn.Sequential(pruned(nn.Conv2d(1, 3, 3)), nn.ELU(), nn.Flatten(), nn.Linear(12, 3)),
        (1, 4, 4),
    ),
    "spectral norm": Network(
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)
        ),
        (6,),
    ),
    "orthogonal": Network(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 6)), nn.Linear(6, 3)), (6,)
    ),
    "low rank": Network(low_rank, (6,), frozen=("base.weight", "base.bias")),
    "dictionary": Network(
        lambda: Of(lambda m, x: {"logits": m.o(x), "loss": x.mean()}, o=nn.Linear(6, 3)),
        (6,), logits=lambda out: out["logits"],
    ),
    "tuple with a scalar and a hidden state": Network(
        lambda: Of(
            lambda m, x: (x.mean(), m.o(m.r(x)[0][:, -1]), m.r(x)[1]),
            r=nn.GRU(3, 4, batch_first=True), o=nn.Linear(4, 3),
        ),
        (4, 3), logits=lambda out: out[1],
    ),
    "same network for both halves": Network(
        lambda: Of(
            lambda m, x: m.o((m.i(x[:, :3]) - m.i(x[:, 3:])).abs()),
            i=nn.Linear(3, 4), o=nn.Linear(4, 3),
        ),
        (6,),
    ),
    "bilinear": Network(
        lambda: Of(lambda m, x: m.b(x[:, :2], x[:, 2:]), b=nn.Bilinear(2, 4, 3)), (6,)
    ),
    "parametric rectifier": Network(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.PReLU(5), nn.Linear(5, 3)), (6,)
    ),
    "root mean square norm": Network(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5), nn.Tanh(), nn.Linear(5, 3)), (6,)
    ),
    "local response norm": Network(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(16, 3)
        ),
        (1, 4, 4),
    ),
    "bag of words": Network(lambda: nn.EmbeddingBag(9, 3), (5,), vocabulary=9),
    "transformer encoder": Network(
        lambda: Of(
            lambda m, x: m.o(m.t(m.e(x))[:, 0]),
            e=nn.Embedding(9, 4), o=nn.Linear(4, 3),
            t=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), 2,
                enable_nested_tensor=False,
            ),
        ),
        (5,), vocabulary=9,
    ),
    "transformer encoder, sequence first": Network(
        lambda: Of(
            lambda m, x: m.o(m.t(x.transpose(0, 1)).mean(0)),
            t=nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1), o=nn.Linear(4, 3),
        ),
        (5, 4),
    ),
    "attention with separate key and value widths": Network(
        lambda: Of(
            lambda m, x: m.o(m.a(x, x[..., :3], x[..., :2])[0].mean(1)),
            a=nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True), o=nn.Linear(4, 3),
        ),
        (5, 4),
    ),
    "squeeze and excite": Network(
        lambda: Of(
            excited, c=nn.Conv2d(1, 4, 3), e=nn.Linear(4, 4), o=nn.Linear(4, 3),
        ),
        (1, 5, 5),
    ),
    "scripted": Network(
        lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))), (6,)
    ),
    "frozen backbone": Network(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3)
        ),
        (1, 4, 4), frozen=("0.weight", "0.bias"),
    ),
    "pixel shuffle and folding": Network(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.PixelShuffle(2), nn.Unfold(4, stride=4),
            nn.Flatten(), nn.Linear(128, 3),
        ),
        (1, 4, 4),
    ),
    "graph convolution": Network(
        lambda: Of(
            lambda m, x: m.o(torch.tanh(m.adjacency @ m.i(x)).mean(1)),
            adjacency=torch.rand(5, 5), i=nn.Linear(4, 4), o=nn.Linear(4, 3),
        ),
        (5, 4),
    ),
}  # fmt: skip


def tiny(name, size=32, **options):
    """A network of timm's, with random weights."""
    make = lambda: timm.create_model(name, pretrained=False, num_classes=3, **options)  # noqa: E731
    return Network(make, (3, size, size))


def vision(name, size=32, **options):
    """A network of torchvision's, with random weights."""
    make = lambda: torchvision.models.get_model(name, weights=None, num_classes=3, **options)  # noqa: E731
    return Network(make, (3, size, size))


STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
TOKENS = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 3}
MIXER = {"num_classes": 3, "img_size": 32, "patch_size": 16, "num_blocks": 2, "embed_dim": 24}
GATED = {"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp, "mlp_ratio": 4}
FAMILIES = {
    "torchvision mobilenet_v2": vision("mobilenet_v2", width_mult=0.25),
    "torchvision shufflenet_v2": vision("shufflenet_v2_x0_5"),
    "torchvision squeezenet": vision("squeezenet1_1"),
    "torchvision vision transformer": Network(
        lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, 12, 16, num_classes=3),
        (3, 16, 16),
    ),
    "torchvision swin": Network(
        lambda: torchvision.models.SwinTransformer(
            [2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=3, stochastic_depth_prob=0.0
        ),
        (3, 16, 16),
    ),
    "torchvision densenet": Network(
        lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3), (3, 32, 32)
    ),
    "torchvision resnet": Network(
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3
        ),
        (3, 32, 32),
    ),
    "vit": tiny("vit_tiny_patch16_224", **TOKENS),
    "deit": tiny("deit_tiny_distilled_patch16_224", **TOKENS),
    "beit": tiny("beit_base_patch16_224", **TOKENS),
    "cait": tiny("cait_xxs24_224", **TOKENS),
    "convnext": tiny("convnext_atto", **STAGES),
    "inception_next": tiny("inception_next_atto", **(STAGES | {"dims": (16, 16, 24, 32)})),
    "mambaout": tiny("mambaout_femto", **STAGES),
    "mixer": Network(lambda: MlpMixer(**MIXER), (3, 32, 32)),
    "gmlp": Network(
        lambda: MlpMixer(**GATED, **MIXER),
        (3, 32, 32),
    ),
    "resmlp": Network(
        lambda: MlpMixer(block_layer=ResBlock, norm_layer=Affine, mlp_ratio=4, **MIXER),
        (3, 32, 32),
    ),
    "convmixer": Network(lambda: ConvMixer(16, 2, num_classes=3), (3, 28, 28)),
    "lcnet": tiny("lcnet_035"),
    "mobilenetv3": tiny("mobilenetv3_small_050"),
    "ghostnet": tiny("ghostnet_050"),
    "resnet10t": tiny("resnet10t"),
}  # fmt: skip
NETWORKS = KINDS | FAMILIES
