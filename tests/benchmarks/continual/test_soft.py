import pytest
import torch

from avalanche_cetl import CICNN, ModuleEncoder, transfer_benchmark, with_source_features
from benchmarks.continual import soft


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Images of four classes with stored features, two in an experience; test set; S."""
    for name, value in {"CLASSES": 4, "STEP": 2, "MEMORY": 4, "EPOCHS": 1, "BATCH": 8}.items():
        monkeypatch.setattr(soft, name, value)
    torch.manual_seed(0)
    images, labels = torch.rand(24, 3, 32, 32), torch.arange(24) % 4
    encoder = ModuleEncoder(CICNN(3, (3, 32, 32), width=0.1), input_shape=(3, 32, 32))
    benchmark = transfer_benchmark((images, labels), (images, labels))
    stored = with_source_features(benchmark, encoder, cache_dir=tmp_path)
    return stored.train_stream[0].dataset, (images, labels), encoder


def test_experiences_are_of_classes_of_their_own_and_have_the_features_of_their_images(made):
    train, _, encoder = made
    first, second = soft.stream(train, 0)
    classes = [set(one.classes_in_this_experience) for one in (first, second)]
    assert classes[0] | classes[1] == {0, 1, 2, 3} and len(classes[0]) == len(classes[1]) == 2
    image, features = first.dataset[0][0], first.dataset.source_features[0]
    torch.testing.assert_close(encoder(image[None])[0], features.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", list(soft.METHODS))
def test_every_method_trains_over_the_stream(made, method):
    train, test, encoder = made
    found = soft.run(method, 0, train, test, encoder)
    assert 0 <= found["accuracy"] <= 100 and found["seconds"] >= 0
