"""Small networks of many kinds, as people write them.

Every entry makes a network that reads ``(N, ...)`` and gives class logits (as they are, or inside
what it returns).
"""

import timm
import torch
import torchvision
from timm.layers import GatedMlp
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from zoo_networks import (
    Network,
    NewSign,
    Of,
    Sign,
    average,
    cells,
    count,
    dynamic,
    energy,
    excited,
    experts,
    filled,
    hyper,
    low_rank,
    packed,
    packed_and_padded,
    pruned,
    remembered,
    replaced,
    squeezed,
    weight,
)

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
