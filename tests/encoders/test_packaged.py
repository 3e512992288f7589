import pytest
import torch

from avalanche_cetl import TimmEncoder


def test_imagenet_weights_come_out_of_a_package():
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
