import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from avalanche_cetl import Encoder, ModuleEncoder, TimmEncoder


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def test_module_encoder_reads_pre_logits_and_logits():
    net = _net().eval()
    encoder = ModuleEncoder(net, input_shape=(1, 8, 8))
    x = torch.rand(5, 1, 8, 8)
    assert encoder.dim == 6 and encoder.num_classes == 3
    torch.testing.assert_close(encoder(x), net[:6](x))
    torch.testing.assert_close(encoder.logits(x), net(x))


def test_a_named_layer_is_flattened():
    encoder = ModuleEncoder(_net(), "2", input_shape=(1, 8, 8))
    assert encoder.dim == 36 and encoder(torch.rand(2, 1, 8, 8)).shape == (2, 36)


def test_frozen_for_good_and_apart_from_the_original():
    net = _net()
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


def test_a_transform_comes_first():
    plain = ModuleEncoder(_net(), input_shape=(1, 8, 8))
    pooled = ModuleEncoder(
        _net(), input_shape=(1, 16, 16), transform=lambda x: nn.functional.avg_pool2d(x, 2)
    )
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(pooled(x), plain(nn.functional.avg_pool2d(x, 2)))
    torch.testing.assert_close(pooled.logits(x), plain.logits(nn.functional.avg_pool2d(x, 2)))


def test_fingerprints_tell_weights_and_layers_apart():
    one = ModuleEncoder(_net(), input_shape=(1, 8, 8))
    assert one.fingerprint() == ModuleEncoder(_net(), input_shape=(1, 8, 8)).fingerprint()
    assert one.fingerprint() != ModuleEncoder(_net(), "2", input_shape=(1, 8, 8)).fingerprint()
    other = _net()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    assert one.fingerprint() != ModuleEncoder(other, input_shape=(1, 8, 8)).fingerprint()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: ModuleEncoder(3, input_shape=(1, 8, 8)), TypeError),
        (lambda: ModuleEncoder(_net(), "nope", input_shape=(1, 8, 8)), ValueError),
        (lambda: ModuleEncoder(nn.ReLU(), input_shape=(1, 8, 8)), ValueError),
        (lambda: TimmEncoder("no_such_model", pretrained=False), ValueError),
        (lambda: TimmEncoder("resnet10t", weights="missing.safetensors"), ValueError),
        (lambda: TimmEncoder("resnet10t", pretrained=False, input_mean=[0.5]), ValueError),
    ],
)
def test_bad_arguments(make, error):
    with pytest.raises(error):
        make()


def test_timm_preprocessing_is_timms_own():
    encoder = TimmEncoder("test_resnet.r160_in1k", pretrained=False)
    config = timm.data.resolve_data_config({}, model=encoder.module)
    x = torch.rand(2, 3, 32, 32)
    seen = encoder.preprocess(x)
    assert seen.shape[1:] == config["input_size"]
    raw = torch.nn.functional.interpolate(
        x, config["input_size"][1:], mode=config["interpolation"], antialias=True
    ).clamp(0, 1)
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(seen, (raw - mean) / std)
    assert encoder(x).shape == (2, encoder.dim)
    torch.testing.assert_close(encoder.logits(x), encoder.module(seen))
    assert encoder.dim == encoder.module.head_hidden_size


@pytest.mark.parametrize(
    "name", ["test_resnet.r160_in1k", "test_vit.r160_in1k", "test_efficientnet.r160_in1k"]
)
def test_timm_families_grey_images_and_normalised_input(name):
    encoder = TimmEncoder(name, pretrained=False)
    grey = torch.rand(2, 1, 28, 28)
    features = encoder(grey)
    assert features.shape == (2, encoder.dim) and not features.requires_grad
    torch.testing.assert_close(features, encoder(grey.expand(-1, 3, -1, -1)))
    normalised = TimmEncoder(name, pretrained=False, input_mean=[0.3], input_std=[0.2])
    normalised.module.load_state_dict(encoder.module.state_dict())
    torch.testing.assert_close(normalised((grey - 0.3) / 0.2), features, rtol=1e-3, atol=1e-4)
    encoder.train()
    assert not any(m.training for m in encoder.modules())


def test_timm_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = TimmEncoder(
        "test_resnet.r160_in1k", weights=tmp_path / "w.safetensors", image_size=64
    )
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(
        encoder.encode(x), model.eval().forward_head(model.forward_features(x), pre_logits=True)
    )


def test_imagenet_weights_out_of_a_package():
    encoder = TimmEncoder("tf_efficientnet_lite0", weights="package")
    assert (encoder.dim, encoder.num_classes) == (1280, 1000)
    assert encoder.size == (224, 224)
    # Trained weights, not random ones: a picture of stripes is something to be sure about.
    stripes = (torch.arange(224) // 14 % 2).float().expand(1, 3, 224, 224)
    assert encoder.logits(stripes).softmax(1).max() > 0.05
    with pytest.raises(ValueError, match="not for 'resnet10t'"):
        TimmEncoder("resnet10t", weights="package")


def test_a_missing_weight_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="offline"):
        TimmEncoder("tf_efficientnet_lite1", weights="package")


def test_a_failed_download_says_both_remedies(monkeypatch):
    import avalanche_cetl.encoders.timm as module

    def fail(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(module.timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"weights=.*\n?.*pretrained=False"):
        TimmEncoder("resnet10t")


def test_a_user_adds_an_encoder_in_a_few_lines():
    class Mean(Encoder):
        def __init__(self):
            super().__init__()
            self.dim = 3
            self.freeze()

        def encode(self, x):
            return x.mean((2, 3))

    encoder = Mean()
    assert encoder(torch.rand(4, 3, 8, 8)).shape == (4, 3)
    with pytest.raises(ValueError, match="no classifier"):
        encoder.logits(torch.rand(4, 3, 8, 8))
