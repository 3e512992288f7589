import glob
import os

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

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


def test_weights_from_a_file_are_those_of_the_model(tmp_path):
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


def test_fingerprints_cover_layer_pool_size_and_weights():
    def made(seed=0, **options):
        torch.manual_seed(seed)
        return TimmEncoder(TINY, pretrained=False, **options).fingerprint()

    found = {
        made(), made(seed=1), made(layer=-1), made(layer=-2), made(layer=-1, pool="max"),
        made(image_size=64), made(input_mean=[0.5], input_std=[0.5]),
    }  # fmt: skip
    assert len(found) == 7 and made() in found


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
def test_models_layers_and_pools_that_cannot_be_are_refused(arguments, message):
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


def test_a_layer_is_read_before_the_next_one_writes_into_its_output():
    encoder = TimmEncoder(TINY, pretrained=False, image_size=32, layer="layer2.0.bn1")
    assert encoder(torch.rand(3, 3, 32, 32)).shape == (3, encoder.dim)
    averages = encoder(torch.rand(3, 3, 32, 32))
    assert float(averages.min()) < 0  # the rectifier that follows works in place
