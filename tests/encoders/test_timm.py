import glob
import os

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from avalanche_cetl import TimmEncoder
from avalanche_cetl.features.command import photo_transform

TINY = "test_resnet.r160_in1k"
FAMILIES = [
    "resnetv2_50",
    "resnext26ts",
    "seresnext26t_32x4d",
    "regnety_002",
    "densenet121",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "tf_efficientnet_lite0",
    "ghostnet_050",
    "mnasnet_050",
    "convnext_atto",
    "convnextv2_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "levit_128s",
    "repvgg_a0",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "poolformer_s12",
    "pvt_v2_b0",
    "hrnet_w18_small",
    "lcnet_050",
    "cait_xxs24_224",
    "fastvit_t8",
    "starnet_s1",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_give_pooled_features_layers_and_logits(name):
    encoder = TimmEncoder(name, pretrained=False)
    x = torch.rand(2, 3, 40, 40)
    assert encoder(x).shape == (2, encoder.dim)
    head = getattr(encoder.module, "head_hidden_size", None) or encoder.module.num_features
    assert encoder.dim == head
    assert encoder.logits(x).shape == (2, 1000) and encoder.num_classes == 1000
    last = TimmEncoder(name, pretrained=False, layer=-1)
    assert last.dim == last.module.feature_info[-1]["num_chs"]


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
    import avalanche_cetl.encoders.timm_models as module

    def fail(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(module.timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"weights=.*\n?.*pretrained=False"):
        TimmEncoder("resnet10t")


@pytest.mark.parametrize("pool", [None, "avg", "max", 2])
@pytest.mark.parametrize("layer", [0, -2, "layer2", "layer2.0.conv1"])
def test_layers_are_what_timm_gives(layer, pool):
    encoder = TimmEncoder(TINY, pretrained=False, layer=layer, pool=pool, image_size=32)
    x = torch.rand(3, 3, 32, 32)
    names = [info["module"] for info in encoder.module.feature_info]
    if layer == "layer2.0.conv1":
        maps = encoder.module.layer2[0].conv1(
            encoder.module.layer1(encoder.module.maxpool(_stem(encoder.module, x)))
        )
    else:
        index = names.index(layer) if isinstance(layer, str) else layer % len(names)
        plain = timm.create_model(TINY, features_only=True).eval()
        plain.load_state_dict(encoder.module.state_dict(), strict=False)
        maps = plain(x)[index]
    wanted = {
        "max": lambda m: m.amax((2, 3)),
        2: lambda m: torch.nn.functional.adaptive_avg_pool2d(m, 2).flatten(1),
    }.get(pool, lambda m: m.mean((2, 3)))(maps)
    torch.testing.assert_close(encoder.encode(x), wanted)
    assert encoder.dim == wanted.shape[1]


def _stem(module, x):
    return module.act1(module.bn1(module.conv1(x)))


def test_a_grid_of_the_last_map_and_of_tokens():
    encoder = TimmEncoder(TINY, pretrained=False, pool=2, image_size=64)
    x = torch.rand(2, 3, 64, 64)
    maps = encoder.module.forward_features(x)
    wanted = torch.nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)
    torch.testing.assert_close(encoder.encode(x), wanted)
    for name in ("test_vit.r160_in1k", "swin_tiny_patch4_window7_224"):
        vit = TimmEncoder(name, pretrained=False, pool=2)
        assert vit(x).shape == (2, vit.module.num_features * 4)
    swin = TimmEncoder("swin_tiny_patch4_window7_224", pretrained=False, pool=7)
    seen = swin.preprocess(x)
    maps = swin.module.forward_features(seen).permute(0, 3, 1, 2)
    torch.testing.assert_close(swin.encode(seen), maps.flatten(1))


def test_fingerprints_know_layer_pool_size_and_weights():
    def made(seed=0, **options):
        torch.manual_seed(seed)
        return TimmEncoder(TINY, pretrained=False, **options).fingerprint()

    found = {
        made(), made(seed=1), made(layer=-1), made(layer=-2), made(layer=-1, pool="max"),
        made(image_size=64), made(input_mean=[0.5], input_std=[0.5]),
    }  # fmt: skip
    assert len(found) == 7 and made() in found


def test_state_dicts_as_training_scripts_save_them(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model(TINY)
    state = model.state_dict()
    wrapped = {"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3}
    for number, content in enumerate((state, {"model": state}, wrapped)):
        torch.save(content, tmp_path / f"{number}.pth")
        encoder = TimmEncoder(TINY, weights=str(tmp_path / f"{number}.pth"))
        for name, tensor in encoder.module.state_dict().items():
            assert torch.equal(tensor, state[name])


class _Code:
    def __reduce__(self):
        return (os.system, ("exit 1",))


def test_weights_that_do_not_fit_are_listed(tmp_path):
    save_file(timm.create_model(TINY).state_dict(), tmp_path / "good.safetensors")
    state = load_file(tmp_path / "good.safetensors")
    state["extra.weight"] = torch.zeros(2)
    state["fc.bias"] = torch.zeros(7)
    del state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError) as problem:
        TimmEncoder(TINY, weights=tmp_path / "bad.safetensors")
    text = str(problem.value)
    assert "1 missing: conv1" in text and "1 unexpected: extra.weight" in text
    assert "fc.bias (7,) for (1000,)" in text


def test_weight_files_that_hold_something_else(tmp_path):
    files = {
        "code.pth": _Code(), "list.pth": [1, 2], "names.pth": {"a": "b"},
    }  # fmt: skip
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    for name in ("cut.safetensors", "cut.pth", "empty.pth"):
        (tmp_path / name).write_bytes(b"" if name == "empty.pth" else b"\x04\x00garbage")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=r"plain tensors|no state dict"):
            TimmEncoder(TINY, weights=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet9000"}, "near it: resnet"),
        ({"name": "\u00e9"}, "list_models"),
        ({"weights": "missing.safetensors"}, "no such file"),
        ({"input_mean": [0.5]}, "input_std"),
        ({"layer": 99}, "out of range"),
        ({"layer": "nowhere"}, "layer1"),
        ({"layer": ""}, "layer1"),
        ({"pool": 0}, "pool=0"),
        ({"pool": "middle", "layer": 1}, "middle"),
        ({"name": "test_vit.r160_in1k", "pool": ""}, "no pooled features"),
        ({"name": "vit_tiny_patch16_224", "image_size": 100}, "100 px"),
        ({"name": "volo_d1_224", "pool": 2}, "no square"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**{"name": TINY, "pretrained": False, **arguments})


def test_imagenet_samples_are_recognised():
    foolbox = pytest.importorskip("foolbox")
    files = sorted(glob.glob(os.path.join(os.path.dirname(foolbox.__file__), "data", "imagenet_*")))
    encoder = TimmEncoder("tf_efficientnet_lite0", weights="package")
    photo = photo_transform(encoder.size[0], encoder.crop)
    images = torch.stack([photo(Image.open(file).convert("RGB")) for file in files])
    labels = [int(os.path.splitext(file)[0].split("_")[-1]) for file in files]
    right = sum(
        a == b for a, b in zip(encoder.logits(images).argmax(1).tolist(), labels, strict=True)
    )
    assert len(files) == 20 and right >= 17


@pytest.mark.parametrize(
    ("name", "layer", "channels"),
    [
        ("swin_tiny_patch4_window7_224", "norm", 768),
        ("swin_tiny_patch4_window7_224", "layers.2.blocks.0", 384),
        ("nest_tiny", "levels.0.transformer_encoder.0", 96),
        ("mixer_s32_224", "blocks.1", 512),
        ("mixer_s32_224", "blocks.1.mlp_tokens", 512),
        ("vit_tiny_patch16_224", "blocks.0.mlp.fc1", 768),
        ("convnext_atto", "stages.1.blocks.0", 80),
        ("maxvit_rmlp_pico_rw_256", "stages.1.blocks.0", 64),
        (TINY, "layer2.0", 48),
    ],
)
def test_any_modules_map_is_averaged_over_its_positions(name, layer, channels):
    encoder = TimmEncoder(name, pretrained=False, layer=layer)
    x = torch.rand(1, *_input(encoder))
    maps = []
    handle = encoder.module.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: maps.append(output.clone())
    )
    with torch.no_grad():
        encoder.module(x)
    handle.remove()
    (axis,) = (i for i, size in enumerate(maps[0].shape) if i and size == channels)
    positions = [i for i in range(1, maps[0].dim()) if i != axis]
    torch.testing.assert_close(encoder.encode(x), maps[0].mean(positions), rtol=1e-4, atol=1e-5)
    assert encoder.dim == channels


def _input(encoder):
    return encoder.preprocessing.channels, *encoder.size


def test_a_map_whose_sizes_leave_its_channels_open_asks_for_them():
    options = {"name": "resnet10t", "pretrained": False, "image_size": 32, "layer": "layer1.0"}
    first = TimmEncoder(**options, channels_last=False)
    assert first.fingerprint() != TimmEncoder(**options, channels_last=True).fingerprint()
    with pytest.raises(ValueError, match="goes with the name of a module"):
        TimmEncoder(TINY, pretrained=False, channels_last=True)
    with pytest.raises(ValueError, match="for one image"):
        TimmEncoder("swin_tiny_patch4_window7_224", False, layer="layers.0.blocks.0.attn.proj")


def _saved(path, **options):
    torch.manual_seed(1)
    model = timm.create_model(TINY, **options).eval()
    save_file(model.state_dict(), path)
    return model


def test_fine_tuned_weights_have_their_classes_and_channels(tmp_path):
    file = tmp_path / "tuned.safetensors"
    model = _saved(file, num_classes=7, in_chans=1)
    encoder = TimmEncoder(TINY, weights=file, num_classes=7, in_chans=1, mean=[0.2], std=[0.3])
    x = torch.rand(2, 1, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(encoder.logits(x), model((x - 0.2) / 0.3))
    assert encoder.num_classes == 7 and encoder(x).shape == (2, encoder.dim)
    colour = x.expand(-1, 3, -1, -1)
    torch.testing.assert_close(encoder(colour), encoder(x), rtol=1e-4, atol=1e-5)
    averaged = TimmEncoder(TINY, pretrained=False, in_chans=1).preprocessing
    own = TimmEncoder(TINY, pretrained=False).preprocessing
    torch.testing.assert_close(averaged.mean.flatten(), own.mean.mean().view(1))


def test_weights_without_classifier_and_classifiers_that_are_not_wanted(tmp_path):
    model = _saved(tmp_path / "whole.safetensors", num_classes=7)
    model.reset_classifier(0)
    save_file(model.state_dict(), tmp_path / "headless.safetensors")
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        wanted = model(x)
    for file in ("whole", "headless"):
        weights = tmp_path / f"{file}.safetensors"
        encoder = TimmEncoder(TINY, weights=weights, num_classes=0)
        torch.testing.assert_close(encoder.encode(x), wanted)
        assert encoder.num_classes is None
        with pytest.raises(ValueError, match="no classifier"):
            encoder.logits(x)


@pytest.mark.parametrize(
    ("saved", "remedy"),
    [
        ({"num_classes": 7}, "num_classes=7"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"in_chans": 1}, "in_chans=1"),
    ],
)
def test_weights_that_do_not_fit_say_which_argument_makes_them_fit(tmp_path, saved, remedy):
    _saved(tmp_path / "w.safetensors", **saved)
    with pytest.raises(ValueError, match=remedy):
        TimmEncoder(TINY, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": True, "num_classes": 10}, "would be random"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"num_classes": True}, "num_classes=True"),
        ({"in_chans": 0}, "in_chans=0"),
    ],
)
def test_classes_and_channels_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**{"name": TINY, "pretrained": False, **arguments})


def test_a_layer_is_read_before_the_next_one_writes_into_its_output():
    encoder = TimmEncoder(TINY, pretrained=False, image_size=32, layer="layer2.0.bn1")
    assert encoder(torch.rand(3, 3, 32, 32)).shape == (3, encoder.dim)
    kept = encoder._intermediate(torch.rand(3, 3, 32, 32), "layer2.0.bn1")
    assert float(kept.min()) < 0  # the rectifier that follows works in place


def test_weights_and_stores_under_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _saved(tmp_path / "w.safetensors")
    encoder = TimmEncoder(TINY, weights="~/w.safetensors")
    assert encoder.num_classes == 1000
