import pytest
import timm
import torch
from safetensors.torch import save_file

from avalanche_cetl import TimmEncoder

TINY = "test_resnet.r160_in1k"


def _saved(path, **options):
    torch.manual_seed(1)
    model = timm.create_model(TINY, **options).eval()
    save_file(model.state_dict(), path)
    return model


def test_a_failed_download_names_both_remedies(monkeypatch):
    import avalanche_cetl.encoders.timm_models as module

    def fail(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(module.timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"weights=.*\n?.*pretrained=False"):
        TimmEncoder("resnet10t")


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


def test_weights_without_classifier_load_and_unwanted_classifiers_are_left_out(tmp_path):
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
def test_weights_that_do_not_fit_name_the_argument_that_makes_them_fit(tmp_path, saved, remedy):
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
def test_classes_and_channels_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**{"name": TINY, "pretrained": False, **arguments})


def test_weights_under_the_home_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _saved(tmp_path / "w.safetensors")
    encoder = TimmEncoder(TINY, weights="~/w.safetensors")
    assert encoder.num_classes == 1000
