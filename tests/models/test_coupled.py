import copy

import pytest
import torch
from torch import nn

from avalanche_cetl import CICNN, CoupledModel, Encoder, ModuleEncoder, ReversedDecoder, as_target
from avalanche_cetl.models.coupled import TargetTasks

SHAPE = (1, 12, 12)


def _source(**arguments):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
    )
    return ModuleEncoder(net, input_shape=SHAPE, **arguments)


def _model():
    return CoupledModel.build(_source(), CICNN(3, SHAPE, width=0.1), SHAPE)


def test_the_forward_pass_is_the_targets_classifier():
    model = _model().eval()
    x = torch.rand(4, *SHAPE)
    torch.testing.assert_close(model(x), model.target(x))
    reconstruction, logits = model.decode_target(x)
    torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(reconstruction, model.reconstruct_target(x))
    assert model.reconstruct_source(x).shape == reconstruction.shape == x.shape


def test_features_and_images_give_the_same_reconstruction():
    model = _model().eval()
    x = torch.rand(4, *SHAPE)
    torch.testing.assert_close(
        model.reconstruct_source(x), model.reconstruct_source(features=model.source(x))
    )


def test_train_never_reaches_the_source():
    model = _model()
    before = copy.deepcopy(model.source.state_dict())
    model.train()
    assert model.target.training and model.decoder.training
    assert not any(m.training for m in model.source.modules())
    model.reconstruct_source(torch.rand(8, *SHAPE)).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.source.parameters())
    for name, value in model.source.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_dict_leaves_the_source_out_and_loads_back_strictly():
    model, other = _model(), _model()
    model.fit_source_statistics(torch.randn(20, 100))
    state = model.state_dict()
    assert not any(name.startswith("source.") for name in state)
    other.load_state_dict(state)
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name])
    assert other.source_statistics_fitted
    incomplete = {k: v for k, v in state.items() if k != "target.module.head.bias"}
    with pytest.raises(RuntimeError, match=r"head\.bias"):
        other.load_state_dict(incomplete)


def test_the_state_dict_of_a_part_of_a_larger_module_has_no_source():
    outer = nn.ModuleDict({"coupled": _model()})
    state = outer.state_dict()
    assert state and not any(".source." in name for name in state)
    outer.load_state_dict(state)


def test_parameters_split_into_decoder_and_target():
    model = _model()
    both = {**model.decoder_parameters(), **model.target_parameters()}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert both.keys() == trainable
    assert not model.decoder_parameters().keys() & model.target_parameters().keys()


def test_names_and_order_of_parameters_are_the_models_own_and_s_is_not_walked_through():
    model = _model()
    model.decoder.register_parameter("tied", next(model.target.parameters()))
    names = [name for name, _ in model.named_parameters()]
    model.source.named_modules = None
    assert list(model.target_parameters()) == [n for n in names if n.startswith("target.")]
    decoder = ("decoder.", "source_adapter.", "target_adapter.")
    assert list(model.decoder_parameters()) == [n for n in names if n.startswith(decoder)]


def test_a_model_without_source_network_reconstructs_its_target_alone():
    model = CoupledModel.build(None, CICNN(3, SHAPE, width=0.1), SHAPE)
    assert model.reconstruct_target(torch.rand(2, *SHAPE)).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="no source"):
        model.reconstruct_source(torch.rand(2, *SHAPE))


def test_the_view_for_importance_shares_names_and_parameters():
    model = _model().eval()
    view = TargetTasks(model)
    names = dict(view.named_parameters())
    for name, parameter in {**model.decoder_parameters(), **model.target_parameters()}.items():
        assert names[name] is parameter
    x = torch.rand(3, *SHAPE)
    outputs = view(model.source(x), x)
    torch.testing.assert_close(outputs.source_reconstruction, model.reconstruct_source(x))
    torch.testing.assert_close(outputs.target_reconstruction, model.reconstruct_target(x))
    torch.testing.assert_close(outputs.logits, model(x))


def test_all_of_it_is_on_the_target_s_device():
    """The device "meta" stands for a GPU: it shows what is left elsewhere."""
    source = ModuleEncoder(CICNN(3, (1, 8, 8), width=0.05), input_shape=(1, 8, 8))
    model = CoupledModel.build(source, CICNN(3, (1, 8, 8), width=0.1).to("meta"), (1, 8, 8))
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}


def test_a_timm_name_is_a_target():
    model = CoupledModel.build(None, "resnet10t", (3, 32, 32))
    assert model.reconstruct_target(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)


def test_sources_and_shapes_that_do_not_fit_are_refused():
    target = CICNN(3, SHAPE, width=0.1)
    with pytest.raises(TypeError, match="ModuleEncoder"):
        CoupledModel.build(nn.Linear(2, 2), target, SHAPE)
    trainable = _source().requires_grad_(True)
    with pytest.raises(ValueError, match="frozen"):
        CoupledModel.build(trainable, target, SHAPE)
    with pytest.raises(ValueError, match="cannot read"):
        CoupledModel.build(_source(), target, (3, 12, 12))
    with pytest.raises(ValueError, match="decoder writes"):
        CoupledModel(_source(), nn.Linear(102, 7), target, input_shape=SHAPE)
    with pytest.raises(ValueError, match="input_shape"):
        CoupledModel(_source(), nn.Linear(102, 7), target)


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


class Own(Encoder):
    """An encoder of a user's: what it gives for images, and its ``dim`` where it has one."""

    def __init__(self, gives, frozen=True, **attributes):
        super().__init__()
        self.gives, self.layer = gives, nn.Linear(1, 1)
        for name, value in attributes.items():
            setattr(self, name, value)
        if frozen:
            self.freeze()

    def encode(self, x):
        return self.gives(x)


def six(x):
    return x.flatten(1)[:, :6]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (lambda: Own(six), "Own has no dim: set it in __init__"),
        (lambda: Own(six, dim="6"), r"Own.dim is '6': an int >= 1"),
        (lambda: Own(six, dim=6.0), r"Own.dim is 6.0: an int >= 1"),
        (lambda: Own(six, dim=-1), "Own.dim is -1: an int >= 1"),
        (lambda: Own(six, dim=5), r"Own.dim is 5, but it gives features \(2, 6\)"),
        (lambda: Own(lambda x: six(x)[:1], dim=6), "Own gives 1 rows of features for 2 images"),
        (lambda: Own(lambda x: x.mean(), dim=6), r"Own.encode\(\) gave a scalar"),
        (lambda: Own(lambda x: (six(x),), dim=6), r"Own.encode\(\) gave a tuple"),
        (lambda: Own(lambda x: six(x).numpy(), dim=6), r"Own.encode\(\) gave a ndarray"),
        (lambda: Own(six, frozen=False, dim=6), r"self.freeze\(\) at the end of Own.__init__"),
        (lambda: type("Bare", (Encoder,), {"dim": 6})(), "Bare has no method encode"),
    ],
    ids=["no dim", "text", "float", "negative", "another", "rows", "scalar", "tuple", "numpy",
         "not frozen", "no encode"],
)  # fmt: skip
def test_an_encoder_of_a_users_is_checked_when_the_model_is_made(source, told):
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=told):
        CoupledModel.build(source(), CICNN(3, SHAPE, width=0.1), SHAPE)
