import torch
from torch import nn

from avalanche_cetl import CICNN, CoupledModel, ModuleEncoder, ReversedDecoder, as_target

SHAPE = (1, 12, 12)


def _source(**arguments):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
    )
    return ModuleEncoder(net, input_shape=SHAPE, **arguments)


def _model():
    return CoupledModel.build(_source(), CICNN(3, SHAPE, width=0.1), SHAPE)


def test_features_are_standardised():
    model = _model()
    features = torch.randn(200, 100) * 7 + 3
    features[:, 0] = 5.0
    model.fit_source_statistics(features)
    standard = model.source_adapter[0](features)
    torch.testing.assert_close(standard.mean(0), torch.zeros(100), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard[:, 1:].std(0, correction=0), torch.ones(99))
    assert standard[:, 0].abs().max() < 1e-5


def test_features_that_hardly_ever_fire_are_not_blown_up():
    model = _model()
    features = torch.randn(200, 100)
    features[:, 0] = 0.0
    features[7, 0] = 1e-3
    model.fit_source_statistics(features)
    unseen = torch.zeros(1, 100)
    unseen[0, 0] = 1.0
    assert model.source_adapter[0](unseen).abs().max() < 20


def test_widths_that_differ_get_an_adapter():
    target = as_target(CICNN(3, SHAPE, width=0.1))
    decoder = ReversedDecoder(CICNN(3, SHAPE, width=0.05), SHAPE)
    model = CoupledModel(_source(), decoder, target)
    assert isinstance(model.target_adapter, nn.Linear)
    assert "target_adapter.weight" in model.decoder_parameters()
    assert isinstance(_model().target_adapter, nn.Identity)
