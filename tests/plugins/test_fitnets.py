import coupled_runs
import pytest
import torch
from avalanche.training.plugins import LRSchedulerPlugin
from coupled_runs import SHAPE, strategy
from loss_runs import coupled, trained
from networks import Of
from torch import nn

from avalanche_cetl import CETLPlugin, FitNetsHints, ModuleEncoder
from avalanche_cetl.plugins import fitnets
from avalanche_cetl.plugins.hints import hint_loss
from avalanche_cetl.training import Stage


@pytest.mark.parametrize("source_layer", [None, "0", "4"])
@pytest.mark.parametrize("target_layer", ["features.0", "hidden"])
def test_a_guided_layer_comes_nearer_to_its_hint(teacher, few, source_layer, target_layer):
    """Maps and vectors on either side; the regressor learns and T2's layer moves."""
    plugin = FitNetsHints(target_layer=target_layer, source_layer=source_layer)
    model = coupled(teacher)
    first = trained(model, few, plugin, train_epochs=1).round_losses["L_fitnet"]
    weights = [p.detach().clone() for p in plugin.regressor.parameters()]
    last = trained(model, few, plugin, train_epochs=5).round_losses["L_fitnet"]
    assert last < first
    moved = [
        not torch.equal(a, b) for a, b in zip(weights, plugin.regressor.parameters(), strict=True)
    ]
    assert all(moved)


def test_the_regressor_follows_the_schedule(teacher, few):
    model = coupled(teacher)
    plugin = FitNetsHints(target_layer="features.0", source_layer="0")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    plugins = [plugin, LRSchedulerPlugin(schedule)]
    run = strategy(model, optimizer=optimizer, variant="e", train_epochs=3, plugins=plugins)
    run.train(few.train_stream)
    (group,) = plugin.state_dict()["moments"]["param_groups"]
    assert group.keys() == optimizer.state_dict()["param_groups"][0].keys()
    assert group["momentum"] == 0.9 and group["lr"] == pytest.approx(0.1 * 0.5**2)


@pytest.mark.parametrize("source_layer", [None, "0"])
def test_a_regressor_in_half_precision_keeps_its_weights(teacher, few, source_layer):
    plugin = FitNetsHints(target_layer="features.0", source_layer=source_layer)
    s = trained(coupled(teacher), few, plugin, precision="bfloat16")
    assert {p.dtype for p in plugin.regressor.parameters()} == {torch.float32}
    plain = trained(
        coupled(teacher), few, FitNetsHints(target_layer="features.0", source_layer=source_layer)
    )
    assert s.round_losses["L_fitnet"] == pytest.approx(plain.round_losses["L_fitnet"], rel=0.1)


def channels_last():
    """A convolution whose map is turned round, normalised, and overwritten."""
    return Of(
        lambda m, x: m.head(m.act(m.norm(m.conv(x).permute(0, 2, 3, 1))).mean((1, 2))),
        conv=nn.Conv2d(1, 6, 3, padding=1), norm=nn.LayerNorm(6),
        act=nn.ReLU(inplace=True), head=nn.Linear(6, 3),
    )  # fmt: skip


@pytest.mark.parametrize(("layer", "source_layer"), [("norm", "act"), ("act", "norm")])
def test_hints_are_maps_with_their_channels_second_as_the_layers_gave_them(
    few, layer, source_layer, monkeypatch
):
    torch.manual_seed(0)
    teacher = ModuleEncoder(channels_last(), input_shape=SHAPE)
    hints, seen = [], []

    class Spy(FitNetsHints):
        def loss(self, strategy, batch):
            found = super().loss(strategy, batch)
            seen.append((batch.images, hints[-1]))
            return found

    def spied(found, hint):
        hints.append(hint)
        return hint_loss(found, hint)

    monkeypatch.setattr(fitnets, "hint_loss", spied)
    plugin = Spy(target_layer=layer, source_layer=source_layer)
    model = coupled_runs.coupled(source=teacher, target=channels_last())
    trained(model, few, plugin, train_epochs=1)
    assert (plugin.regressor.in_channels, plugin.regressor.out_channels) == (6, 6)
    x, hint = seen[-1]
    net = teacher.module
    wanted = net.norm(net.conv(x).permute(0, 2, 3, 1))
    wanted = wanted.relu() if source_layer == "act" else wanted
    torch.testing.assert_close(hint, wanted.permute(0, 3, 1, 2))


def test_fitnets_listens_in_the_stages_alone_that_read_its_layer(teacher, few):
    found = {}

    class Spy(CETLPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            layer = strategy.model.target.module.features[0]
            found.setdefault(strategy.stage, set()).add(len(layer._forward_hooks))

    trained(
        coupled(teacher),
        few,
        FitNetsHints(target_layer="features.0", source_layer="0"),
        Spy(),
        train_epochs=1,
    )
    assert found == {Stage.COUPLED: {1}, Stage.CLASSIFY: {0}}


def test_passes_of_an_evaluation_within_a_stage_are_not_kept(teacher, few):
    found = []

    class Spy(CETLPlugin):
        def after_eval(self, strategy, *args, **kwargs):
            found.append(plugin._guided and len(plugin._guided.values))

    plugin = FitNetsHints(target_layer="hidden", rows="labelled")
    run = strategy(
        coupled(teacher), variant="direct", train_mb_size=4, plugins=[plugin, Spy()],
        eval_every=1, peval_mode="iteration",
    )  # fmt: skip
    run.train(few.train_stream, eval_streams=[few.test_stream])
    assert 0 in found and set(found) <= {0, None}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_a_stage_ends_the_listening(teacher, few, error):
    class Stop(CETLPlugin):
        def before_update(self, strategy, *args, **kwargs):
            raise error("stop")

    plugin = FitNetsHints(target_layer="hidden", rows="labelled")
    model = coupled(teacher)
    with pytest.raises(error, match="stop"):
        trained(model, few, plugin, Stop())
    assert not model.target.module.hidden._forward_hooks


def test_layers_that_are_not_there_are_refused(teacher, few):
    with pytest.raises(ValueError, match="target_layer='nowhere'"):
        trained(coupled(teacher), few, FitNetsHints(target_layer="nowhere"))
    with pytest.raises(ValueError, match="source_layer='nowhere'"):
        trained(
            coupled(teacher), few, FitNetsHints(target_layer="features.0", source_layer="nowhere")
        )
