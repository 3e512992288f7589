"""Sources in other types than float32: half, double, bytes, scripted and quantised."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import timm
import torch
from networks import Of
from networks import normalised_convolution as network
from torch import nn

from avalanche_cetl import ModuleEncoder, TimmEncoder


def test_module_encoder_reads_pre_logits_and_logits():
    net = network().eval()
    encoder = ModuleEncoder(net, input_shape=(1, 8, 8))
    x = torch.rand(5, 1, 8, 8)
    assert encoder.dim == 6 and encoder.num_classes == 3
    torch.testing.assert_close(encoder(x), net[:6](x))
    torch.testing.assert_close(encoder.logits(x), net(x))


def test_a_named_layer_is_flattened():
    encoder = ModuleEncoder(network(), "2", input_shape=(1, 8, 8))
    assert encoder.dim == 36 and encoder(torch.rand(2, 1, 8, 8)).shape == (2, 36)


def test_an_encoder_stays_frozen_and_apart_from_the_original():
    net = network()
    encoder = ModuleEncoder(net, input_shape=(1, 8, 8))
    outer = nn.Sequential(encoder, nn.Linear(6, 2)).train()
    x = torch.rand(5, 1, 8, 8)
    before = encoder(x)
    outer(x)
    with torch.no_grad():
        net[0].weight.zero_()
    assert outer.training and not any(m.training for m in encoder.modules())
    assert not encoder(x).requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(encoder(x), before)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_network_whose_weights_have_a_graph_is_a_source(norm):
    net = network()
    norm(net[4])
    x = torch.rand(5, 1, 8, 8)
    net(x)  # with gradients: the weight that it makes is no leaf
    encoder = ModuleEncoder(net, input_shape=(1, 8, 8))
    torch.testing.assert_close(encoder.logits(x), net.eval()(x))
    assert not encoder(x).requires_grad


def test_a_transform_comes_first():
    plain = ModuleEncoder(network(), input_shape=(1, 8, 8))
    pooled = ModuleEncoder(
        network(), input_shape=(1, 16, 16), transform=lambda x: nn.functional.avg_pool2d(x, 2)
    )
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(pooled(x), plain(nn.functional.avg_pool2d(x, 2)))
    torch.testing.assert_close(pooled.logits(x), plain.logits(nn.functional.avg_pool2d(x, 2)))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: ModuleEncoder(3, input_shape=(1, 8, 8)), TypeError),
        (lambda: ModuleEncoder(network(), "nope", input_shape=(1, 8, 8)), ValueError),
        (lambda: ModuleEncoder(nn.ReLU(), input_shape=(1, 8, 8)), ValueError),
    ],
)
def test_modules_and_layers_that_cannot_be_are_refused(make, error):
    with pytest.raises(error):
        make()


def answers(form):
    """A network whose logits are a part of what it gives."""
    return Of(lambda m, x: form(m.net(x), x), net=network())


FORMS = {
    "dict": (lambda z, x: {"logits": z, "features": x}, "logits"),
    "tuple": (lambda z, x: (x, z), 1),
    "object": (lambda z, x: SimpleNamespace(logits=z), "logits"),
    "callable": (lambda z, x: [{"a": (z, x)}], lambda found: found[0]["a"][0]),
}


@pytest.mark.parametrize(("form", "output"), FORMS.values(), ids=FORMS)
def test_logits_are_picked_out_of_what_the_module_gives(form, output):
    module, x = answers(form).eval(), torch.rand(5, 1, 8, 8)
    found = ModuleEncoder(module, input_shape=(1, 8, 8), output=output)
    plain = ModuleEncoder(module.net, input_shape=(1, 8, 8))
    assert found.num_classes == 3 and found.classifies_features
    for encoder in (found, plain):
        assert torch.equal(encoder.logits(x), module.net(x))
    assert torch.equal(found(x), plain(x))
    assert torch.equal(found.classify(found(x)), plain.classify(plain(x)))


def test_without_output_the_features_are_there_and_the_message_names_the_type_and_its_parts():
    encoder = ModuleEncoder(answers(FORMS["dict"][0]), input_shape=(1, 8, 8))
    assert encoder.num_classes is None and encoder(torch.rand(2, 1, 8, 8)).shape == (2, 6)
    with pytest.raises(ValueError, match=r"a dict with the keys \['logits', 'features'\].*output="):
        encoder.logits(torch.rand(2, 1, 8, 8))


def test_maps_as_output_are_named_where_logits_are_asked_for():
    encoder = ModuleEncoder(network()[:2], "1", input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"a tensor of shape \(1, 4, 3, 3\)"):
        encoder.cheapest_logits(torch.rand(2, 1, 8, 8))


def test_a_dict_as_the_feature_itself_needs_output():
    module = answers(FORMS["dict"][0])
    with pytest.raises(ValueError, match=r"gives a dict with the keys"):
        ModuleEncoder(module, "", input_shape=(1, 8, 8))
    assert ModuleEncoder(module, "", input_shape=(1, 8, 8), output="features").dim == 64


@pytest.mark.parametrize("output", ["nope", 7, lambda found: found.nope, lambda found: found])
def test_an_output_that_is_not_there_is_refused_with_what_is(output):
    with pytest.raises(ValueError, match=r"a dict with the keys \['logits', 'features'\]"):
        ModuleEncoder(answers(FORMS["dict"][0]), input_shape=(1, 8, 8), output=output)


def test_fingerprints_tell_outputs_apart():
    made = [
        ModuleEncoder(answers(FORMS["dict"][0]), input_shape=(1, 8, 8), output=output)
        for output in (None, "logits", "features")
    ]
    assert len({encoder.fingerprint() for encoder in made}) == 3


def _convolutional():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("ask", ["__call__", "logits"])
def test_images_of_another_size_are_read_as_they_are_with_one_warning(ask):
    net = _convolutional()
    encoder, x = ModuleEncoder(net, input_shape=(1, 16, 16)), torch.rand(3, 1, 8, 8)
    read = getattr(encoder, ask)
    with pytest.warns(RuntimeWarning, match=r"\(1, 8, 8\).*\(1, 16, 16\).*transform=") as told:
        found = read(x), read(x)
    assert len(told) == 1 and torch.equal(*found)
    assert torch.equal(encoder.logits(x), net(x))


@pytest.mark.parametrize(
    ("shape", "transform"),
    [((1, 8, 8), None), ((1, 16, 16), lambda x: nn.functional.interpolate(x, (16, 16)))],
)
def test_images_of_the_size_that_the_network_reads_bring_no_warning(shape, transform):
    encoder = ModuleEncoder(_convolutional(), input_shape=shape, transform=transform)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(torch.rand(3, 1, 8, 8)), encoder.logits(torch.rand(3, 1, 8, 8))


@pytest.mark.parametrize("last", [nn.Tanh(), nn.Hardtanh(-1e-3, 1e-3)])
def test_a_function_behind_the_last_layer_is_not_left_out_of_logits(last):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6, bias=False), nn.Linear(6, 3, bias=False))
    encoder, x = ModuleEncoder(nn.Sequential(net, last), input_shape=(1, 8, 8)), torch.rand(4, 64)
    x = x.reshape(4, 1, 8, 8)
    assert not encoder.classifies_features
    assert torch.equal(encoder.cheapest_logits(x, encoder(x)), last(net(x)))


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


class Gated(nn.Module):
    """Its classifier is registered first and runs last, behind two other linear layers."""

    def __init__(self, last=None, **heads):
        super().__init__()
        torch.manual_seed(0)
        self.classifier = nn.Linear(8, 3)
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)
        self.heads, self.last = nn.ModuleDict(heads), last

    def pooled(self, x):
        maps = self.body(x)
        gate = torch.sigmoid(self.up(torch.relu(self.down(maps.mean((2, 3))))))
        return (maps * gate[:, :, None, None]).mean((2, 3))

    def forward(self, x):
        features = self.pooled(x)
        if self.last is not None:
            return self.last(self, features)
        return self.classifier(features)


def then(activation):
    return lambda self, h: activation(self.classifier(h))


def averaged(self, h):
    return (self.classifier(h) + self.heads["other"](h[:, :4])) / 2


def summed(self, h):
    return self.classifier(h).add_(self.heads["other"](h[:, :4]))


def with_projection(self, h):
    return self.classifier(h), self.heads["other"](h[:, :4])


ENDS = {  # network, arguments of the encoder, features that are read
    "first": (lambda: Gated(), {}, 8),
    "half": (lambda: Gated().half(), {}, 8),
    "double": (lambda: Gated().double(), {}, 8),
    "quantised": (lambda: quantised(Gated()), {}, 8),
    "trace": (lambda: torch.jit.trace(Gated(), torch.rand(2, *SHAPE)), {}, 8),
    "log softmax": (lambda: Gated(then(lambda z: z.log_softmax(1))), {}, 8),
    "in place": (lambda: Gated(then(torch.relu_)), {}, 8),
    "maps": (lambda: Gated(then(lambda z: z[:, :, None])), {}, 8),
    "noise": (lambda: Gated(then(lambda z: z + torch.randn_like(z))), {}, 8),
    "averaged": (lambda: Gated(averaged, other=nn.Linear(4, 3)), {}, 4),
    "summed in place": (lambda: Gated(summed, other=nn.Linear(4, 3)), {}, 4),
    "several": (lambda: Gated(with_projection, other=nn.Linear(4, 5)), {"output": 0}, 8),
    "unused": (lambda: Gated(other=nn.Linear(4, 5)), {}, 8),
}


@pytest.mark.parametrize(("make", "arguments", "dim"), ENDS.values(), ids=ENDS)
def test_features_are_what_the_last_linear_layer_to_run_reads(make, arguments, dim):
    encoder = ModuleEncoder(make().eval(), input_shape=SHAPE, **arguments)
    x = torch.rand(5, *SHAPE)
    wanted = Gated().eval().pooled(x)[:, :dim]
    torch.testing.assert_close(encoder(x), wanted, rtol=3e-2, atol=3e-2)
    assert encoder.dim == dim


def test_a_classifier_registered_first_classifies_the_features():
    net, x = Gated().eval(), torch.rand(5, *SHAPE)
    encoder = ModuleEncoder(net, input_shape=SHAPE)
    assert encoder.classifies_features
    assert torch.equal(encoder.classify(encoder(x)), net(x))


def test_fingerprints_tell_a_classifier_registered_first_from_the_layer_read_before():
    assert "before='classifier'" in repr(ModuleEncoder(Gated(), input_shape=SHAPE))
    assert "before=" not in repr(ModuleEncoder(net(), input_shape=SHAPE))


def _attending():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 8), nn.TransformerEncoder(layer, 1))


BACKBONES = {
    "gated": (lambda: Gated(lambda self, h: h), (8,)),
    "pooled tokens": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, depth=1, num_classes=0
        ),
        (192,),
    ),
    "tokens": (_attending, (64,)),
    "trace": (lambda: torch.jit.trace(Gated(lambda self, h: h), torch.rand(2, *SHAPE)), (8,)),
}


@pytest.mark.parametrize(("make", "shape"), BACKBONES.values(), ids=BACKBONES)
def test_a_backbone_without_classifier_needs_the_name_of_a_layer(make, shape):
    backbone, x = make().eval(), torch.rand(2, *SHAPE)
    with pytest.raises(ValueError, match=r"that is no classifier\. Say layer=''"):
        ModuleEncoder(backbone, input_shape=SHAPE)
    encoder = ModuleEncoder(backbone, "", input_shape=SHAPE)
    torch.testing.assert_close(encoder(x), backbone(x).flatten(1))
    assert (encoder.dim,) == shape


def test_attention_whose_linear_layer_does_not_run_itself_is_no_earlier_layers_input():
    def forward(m, x):
        tokens = m.first(x[:, 0])
        return m.mix(tokens, tokens, tokens)[0].mean(1)

    mix = nn.MultiheadAttention(8, 2, batch_first=True)
    with pytest.raises(ValueError, match="did not run"):
        ModuleEncoder(Of(forward, first=nn.Linear(8, 8), mix=mix), input_shape=SHAPE)


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
