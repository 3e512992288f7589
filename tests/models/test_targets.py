import copy

import pytest
import timm
import torch
import torchvision
from avalanche.models import IncrementalClassifier
from networks import Of
from torch import nn

from avalanche_cetl import CICNN, as_target


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 47), (96, 96), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_cicnn_takes_the_sizes_it_promises(size, channels):
    model = CICNN(7, (channels, *size), width=0.1)
    assert model(torch.zeros(2, channels, *size)).shape == (2, 7)


def test_cicnn_has_the_papers_layers():
    model = CICNN(10, (3, 32, 32))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(convolutions) == 5 and len(linear) == 3
    assert all(c.kernel_size == (3, 3) for c in convolutions)
    for layer, alexnet in zip(convolutions, (96, 256, 384, 384, 256), strict=True):
        assert alexnet / 4 <= layer.out_channels <= alexnet / 2
    for layer in linear[:2]:
        assert 4096 / 4 <= layer.out_features <= 4096 / 2
    # "less than 10% parameters of AlexNet", which has 61 M
    assert sum(p.numel() for p in CICNN(10, (3, 96, 96)).parameters()) < 6.1e6


def test_cicnn_starts_with_activations_of_even_size():
    torch.manual_seed(0)
    model = CICNN(10, (3, 32, 32), width=0.5)
    x = torch.randn(64, 3, 32, 32)
    sizes = []
    for layer in [*model.features, *model.hidden]:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            sizes.append(x.square().mean().item())
    assert all(0.2 < size < 20 for size in sizes)


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_shape": (3, 4, 4)},
        {"input_shape": (3, 32)},
        {"width": 0},
        {"num_classes": 0},
        {"dropout": 1.0},
    ],
)
def test_cicnn_rejects_bad_arguments(arguments):
    with pytest.raises(ValueError):
        CICNN(**arguments)


def test_the_code_is_what_the_last_linear_layer_reads():
    net = CICNN(4, (1, 8, 8), width=0.1).eval()
    target = as_target(net)
    x = torch.rand(3, 1, 8, 8)
    code, logits = target.encode(x)
    torch.testing.assert_close(code, net.forward_features(x))
    torch.testing.assert_close(logits, net(x))
    torch.testing.assert_close(target(x), net(x))


class Gated(nn.Module):
    """Its classifier is registered first and runs last, behind two other linear layers."""

    def __init__(self, classifier, **others):
        super().__init__()
        self.classifier, self.body = classifier, nn.Conv2d(1, 8, 3, padding=1)
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)
        self.others = nn.ModuleDict(others)

    def pooled(self, x):
        maps = self.body(x)
        return (maps * self.up(self.down(maps.mean((2, 3))))[:, :, None, None]).mean((2, 3))

    def forward(self, x):
        features = self.pooled(x)
        logits = self.classifier(features)
        if self.others:  # a head for training alone
            self.others["projection"](features[:, :4])
        return logits


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(
    ("make", "classes"),
    [
        (lambda: Gated(nn.Linear(8, 3)), 3),
        (lambda: Gated(nn.Linear(8, 3), projection=nn.Linear(4, 5)), 3),
        (lambda: Gated(nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1))), 3),
        (lambda: Gated(IncrementalClassifier(8, 3)), 3),
    ],
    ids=["plain", "other head", "log softmax", "incremental"],
)
def test_the_last_linear_layer_is_the_last_to_run(make, classes, measured):
    net, x = make().eval(), torch.rand(3, 1, 8, 8)
    target = as_target(net)
    if measured:
        assert target.measure((1, 8, 8)) == (8, classes)
    code, logits = target.encode(x)
    assert torch.equal(code, net.pooled(x)) and torch.equal(logits, net(x))


def test_a_new_classifier_is_found_where_the_old_one_was_replaced():
    net, x = Gated(nn.Linear(8, 3)).eval(), torch.rand(3, 1, 8, 8)
    target = as_target(net)
    target.measure((1, 8, 8))
    net.classifier = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    assert torch.equal(target.encode(x)[0], net.classifier[:2](net.pooled(x)))
    assert target.measure((1, 8, 8)) == (6, 4)


def test_a_code_that_was_not_measured_has_gradients_of_torch_func():
    net, x = Gated(nn.Linear(8, 3)).eval(), torch.rand(1, 1, 8, 8)
    found = torch.func.grad(lambda x: as_target(net).encode(x)[0].sum())(x)
    wanted = torch.func.grad(lambda x: net.pooled(x).sum())(x)
    assert torch.equal(found, wanted)


def test_a_network_with_auxiliary_heads_has_the_code_of_its_own_classifier():
    net = torchvision.models.googlenet(init_weights=False, num_classes=3).train()
    assert as_target(net).measure((3, 32, 32)) == (1024, 3)


def test_a_named_layer_is_the_code():
    net = CICNN(4, (1, 8, 8), width=0.1).eval()
    code, _ = as_target(net, code="features.5").encode(torch.rand(2, 1, 8, 8))
    assert code.shape == (2, 10 * 2 * 2)


def test_copies_do_not_write_into_the_original():
    target = as_target(CICNN(4, (1, 8, 8), width=0.1))
    twin = copy.deepcopy(target)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    x = torch.rand(2, 1, 8, 8)
    assert twin.encode(x)[0].abs().sum() == 0 and target.encode(x)[0].abs().sum() > 0


def test_timm_models_and_their_names_are_targets():
    target = as_target("resnet10t", num_classes=5)
    assert target.measure((3, 64, 64)) == (512, 5)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    assert as_target(vit).measure((3, 32, 32)) == (192, 3)


def test_wrapping_twice_changes_nothing():
    target = as_target(CICNN(4, (1, 8, 8), width=0.1))
    assert as_target(target) is target


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: as_target(CICNN(), code="nowhere"), ValueError),
        (lambda: as_target(42), TypeError),
        (lambda: as_target(nn.Conv2d(1, 1, 1)).encode(torch.zeros(1, 1, 2, 2)), ValueError),
        (lambda: as_target(CICNN()).measure((1, 28, 28)), ValueError),
    ],
)
def test_targets_without_code_or_layers_are_refused(make, error):
    with pytest.raises(error):
        make()


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (lambda out: {"logits": out}, "dict"),
        (lambda out: (out, out), "tuple"),
        (lambda out: out.flatten(), r"\(6,\)"),
        (lambda out: out[:, :, None, None], r"\(2, 3, 1, 1\)"),
    ],
    ids=["dict", "tuple", "flat", "maps"],
)
def test_targets_that_give_no_logits_are_refused(last, kind):
    network = Of(lambda m, x: last(m.layer(x.flatten(1))), layer=nn.Linear(64, 3))
    with pytest.raises(ValueError, match=f"gives {kind} for 2 images.*logits"):
        as_target(network).measure((1, 8, 8))


def test_a_cicnn_gives_the_same_values_to_the_bit():
    torch.manual_seed(0)
    net, x = CICNN(3, (1, 8, 8), width=0.1), torch.rand(4, 1, 8, 8)
    code, logits = as_target(net).encode(x)
    assert torch.equal(logits, net(x)) and torch.equal(code, net.forward_features(x))


def test_the_width_counts_for_every_layer():
    narrow = CICNN(10, (3, 32, 32), width=0.25)
    sizes = [m.weight.shape[0] for m in narrow.modules() if hasattr(m, "weight")]
    assert sizes == [8, 24, 32, 32, 24, 256, 256, 10]
