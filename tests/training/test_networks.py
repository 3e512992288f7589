import copy

import pytest
import torch
from coupled_runs import batch, coupled, strategy
from torch import nn

from avalanche_cetl import CETLPlugin
from avalanche_cetl.training import Stage


def test_noise_hides_pixels_from_the_target_only(transfer):
    model = coupled()
    seen = []
    handle = model.target.module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    s = strategy(model, input_noise=0.5, variant="e", warmup_epochs=0)
    s.train(transfer.train_stream)
    handle.remove()
    zeros = [float((x == 0).float().mean()) for x in seen]
    assert max(zeros) > 0.4 and min(zeros) < 0.01


@pytest.mark.parametrize("augment", [lambda x: x + 10.0, lambda x: x.add_(10.0)])
@pytest.mark.parametrize("variant", ["e", "joint"])
def test_augmented_views_reach_the_target_only(transfer, variant, augment):
    model = coupled()
    seen = {"target": [], "source": [], "L_rs": []}

    class Watch(CETLPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            if strategy.coupled is not None:
                seen["L_rs"].append(strategy.coupled.images)

    def watch(name):
        return lambda _m, args: seen[name].append(args[0])

    model.source.register_forward_pre_hook(watch("source"))
    model.target.module.register_forward_pre_hook(watch("target"))
    s = strategy(model, variant=variant, augment=augment, plugins=[Watch()])
    s.train(transfer.train_stream)
    assert all(x.max() < 5 for x in seen["source"] + seen["L_rs"])
    training = [x for x in seen["target"] if x.max() > 5]
    assert sum(map(len, training)) == 36 + (15 if variant == "e" else 3 * 15)
    with pytest.raises(ValueError, match="augment= changed"):
        strategy(coupled(), augment=lambda x: x[:, :, 1:]).train(transfer.train_stream)


def test_noise_sets_a_share_of_the_pixels_to_zero_in_all_channels():
    networks = strategy(input_noise=0.25).networks
    hidden = networks.noisy(torch.ones(40, 3, 10, 10)) == 0
    assert (hidden == hidden[:, :1]).all()
    assert 0.2 < float(hidden.float().mean()) < 0.3


def test_noise_goes_on_where_its_state_was_kept():
    first, second = (strategy(input_noise=0.5).networks for _ in range(2))
    x = torch.ones(2, 1, 8, 8)
    first.noisy(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.noisy(x), second.noisy(x))


def test_a_fixed_target_is_what_stage_1_made_of_s(transfer):
    model = coupled()
    targets, wanted = [], []

    class Watch(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            self.old = copy.deepcopy(model)

        def before_backward(self, strategy, *args, **kwargs):
            if strategy.stage is Stage.COUPLED:
                step = strategy.coupled
                targets.append(step.reconstruction_target)
                wanted.append(self.old.reconstruct_source(features=step.features).detach())

    settings = {"variant": "e", "train_epochs": 2, "plugins": [Watch()]}
    strategy(model, fixed_goal=True, **settings).train(transfer.train_stream)
    torch.testing.assert_close(targets, wanted)
    assert all(not p.requires_grad for p in model.source.parameters())
    targets.clear(), wanted.clear()
    strategy(model, **settings).train(transfer.train_stream)
    assert not torch.allclose(targets[-1], wanted[-1])


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_t1_whose_weights_have_a_graph_is_fixed():
    model = coupled()
    nn.utils.weight_norm(model.decoder.layers[0])
    networks, rows = strategy(model, fixed_goal=True).networks, batch()
    wanted = model.reconstruct_source(rows.images)
    networks.fix_target()
    torch.testing.assert_close(networks.reconstruction_target(rows)[0], wanted.detach())


def test_a_fixed_target_is_that_of_the_weights_when_it_was_fixed_last():
    networks, rows = strategy(fixed_goal=True).networks, batch()
    model = networks.model

    def image():
        return networks.reconstruction_target(rows)[0]

    networks.fix_target()
    first = model.reconstruct_source(rows.images).detach()
    with torch.no_grad():
        for parameter in model.decoder_parameters().values():
            parameter.mul_(1.1)
    assert torch.equal(image(), first)
    networks.fix_target()
    assert torch.equal(image(), model.reconstruct_source(rows.images))
    assert not image().requires_grad
