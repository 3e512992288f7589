import pytest
import timm
import torch

from avalanche_cetl import TimmEncoder

TINY = "test_resnet.r160_in1k"


@pytest.mark.parametrize("pool", [None, "avg", "max", 2])
@pytest.mark.parametrize("layer", [0, -2, "layer2", "layer2.0.conv1"])
def test_layers_are_those_of_timm_pooled(layer, pool):
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


def test_a_grid_is_taken_of_the_last_map_and_of_tokens():
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
