"""Sources in other types than float32: half, double, bytes, scripted and quantised."""

import copy
import warnings

import pytest
import torch
from torch import nn

from avalanche_cetl import ModuleEncoder, TimmEncoder

SHAPE = (1, 8, 8)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)
    ).eval()


class Tokens(nn.Module):
    """Its last linear layer reads a sequence, and is not the last to run."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x):
        hidden = torch.relu(self.first(x[:, 0]))
        return torch.relu_(self.out(hidden)).mean(1)


def quantised(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("made", "tolerance"),
    [
        (lambda n: n.half(), 1e-2),
        (lambda n: n.bfloat16(), 3e-2),
        (lambda n: n.double(), 1e-6),
        (torch.jit.script, 1e-6),
        (lambda n: torch.jit.script(n).half(), 1e-2),
        (lambda n: torch.jit.trace(n, torch.rand(2, *SHAPE)), 1e-6),
        (lambda n: nn.Sequential(nn.Identity(), torch.jit.script(n)), 1e-6),
        (quantised, 3e-2),
    ],
    ids=["half", "bfloat16", "double", "script", "half script", "trace", "inner", "quantised"],
)
def test_features_and_logits_are_the_plain_networks_in_float32(made, tolerance, seed):
    plain, x = net(seed), torch.rand(5, *SHAPE)
    given = x.clone()
    encoder = ModuleEncoder(made(copy.deepcopy(plain)), input_shape=SHAPE)
    near = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(encoder(x), plain[:3](x), **near)
    torch.testing.assert_close(encoder.logits(x), plain(x), **near)
    assert encoder.classifies_features
    torch.testing.assert_close(encoder.classify(encoder(x)), plain(x), **near)
    assert (encoder.dim, encoder.num_classes) == (4, 3)
    assert torch.equal(x, given) and not any(p.requires_grad for p in encoder.parameters())
    torch.testing.assert_close(copy.deepcopy(encoder)(x), encoder(x))


def test_a_scripted_layer_that_reads_a_sequence():
    torch.manual_seed(0)
    plain, x = Tokens().eval(), torch.rand(3, *SHAPE)
    scripted = ModuleEncoder(torch.jit.script(plain), input_shape=SHAPE)
    wanted = torch.relu(plain.first(x[:, 0])).flatten(1)
    torch.testing.assert_close(scripted(x), wanted)
    torch.testing.assert_close(ModuleEncoder(plain, input_shape=SHAPE)(x), wanted)
    assert scripted.dim == 48 and not scripted.classifies_features


def test_layers_of_a_scripted_module_cannot_be_named_but_its_output_can():
    scripted = torch.jit.script(net())
    with pytest.raises(ValueError, match=r"before torch\.jit.*layer=''"):
        ModuleEncoder(scripted, "1", input_shape=SHAPE)
    x = torch.rand(2, *SHAPE)
    torch.testing.assert_close(ModuleEncoder(scripted, "", input_shape=SHAPE)(x), scripted(x))
    frozen = torch.jit.freeze(scripted)
    with pytest.raises(ValueError, match="layer=''"):
        ModuleEncoder(frozen, input_shape=SHAPE)
    torch.testing.assert_close(ModuleEncoder(frozen, "", input_shape=SHAPE)(x), scripted(x))


def test_a_statically_quantised_network_gives_the_values_that_its_integers_stand_for():
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = torch.ao.quantization.QuantWrapper(net()).eval()
        wrapped.qconfig = torch.ao.quantization.default_qconfig
        prepared = torch.ao.quantization.prepare(wrapped)
        prepared(torch.rand(64, *SHAPE))
        converted = torch.ao.quantization.convert(prepared)
    x = torch.rand(5, *SHAPE)
    encoder = ModuleEncoder(converted, input_shape=SHAPE)
    assert encoder(x).dtype == torch.float32 and not encoder(x).is_quantized
    torch.testing.assert_close(encoder(x), net()[:3](x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(encoder.logits(x), net()(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("made", [quantised, lambda n: torch.jit.freeze(torch.jit.script(n))])
def test_fingerprints_cover_weights_that_are_no_parameters(made):
    def fingerprint(seed):
        return ModuleEncoder(made(net(seed)), "", input_shape=SHAPE).fingerprint()

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)


def test_fingerprints_cover_the_code_of_scripted_modules():
    def fingerprint(activation):
        torch.manual_seed(0)
        module = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), activation), x)
        return ModuleEncoder(module, "", input_shape=SHAPE).fingerprint()

    x = torch.rand(1, *SHAPE)
    assert fingerprint(nn.ReLU()) != fingerprint(nn.Sigmoid())


def test_timm_networks_in_half_and_double_give_float32():
    encoder = TimmEncoder("test_resnet.r160_in1k", pretrained=False, image_size=32)
    x = torch.rand(2, 3, 32, 32)
    features, logits = encoder(x), encoder.logits(x)
    for cast, tolerance in ((encoder.double, 1e-4), (encoder.half, 3e-2)):
        cast()
        for got, wanted in ((encoder(x), features), (encoder.logits(x), logits)):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert encoder.classify(features).dtype == torch.float32


def test_bytes_are_scaled_unless_the_transform_reads_them():
    bytes_, shape = torch.randint(256, (3, *SHAPE), dtype=torch.uint8), SHAPE
    wanted = ModuleEncoder(net(), input_shape=shape)(bytes_.float() / 255)
    torch.testing.assert_close(ModuleEncoder(net(), input_shape=shape)(bytes_), wanted)
    seen = []

    def scaled(x):
        seen.append(x.dtype)
        return x.float() / 255 if x.dtype == torch.uint8 else x

    own = ModuleEncoder(net(), input_shape=shape, transform=scaled)
    torch.testing.assert_close(own(bytes_), wanted)
    assert seen[-1] == torch.uint8


def test_a_module_that_does_not_run_names_the_shape():
    with pytest.raises(ValueError, match=r"input_shape=\(1, 9, 9\)"):
        ModuleEncoder(net(), input_shape=(1, 9, 9))
