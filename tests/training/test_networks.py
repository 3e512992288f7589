import pytest
import torch
from coupled_runs import coupled, strategy

from avalanche_cetl import CETLPlugin


def test_noise_hides_pixels_from_the_target_only(transfer):
    model = coupled()
    seen = []
    handle = model.target.module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    s = strategy(model, input_noise=0.5, variant="e", warmup_epochs=0)
    s.train(transfer.train_stream)
    handle.remove()
    zeros = [float((x == 0).float().mean()) for x in seen]
    assert max(zeros) > 0.4 and min(zeros) < 0.01


@pytest.mark.parametrize("variant", ["e", "joint"])
def test_augmented_views_reach_the_target_only(transfer, variant):
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
    s = strategy(model, variant=variant, augment=lambda x: x + 10.0, plugins=[Watch()])
    s.train(transfer.train_stream)
    assert all(x.max() < 5 for x in seen["source"] + seen["L_rs"])
    training = [x for x in seen["target"] if x.max() > 5]
    assert sum(map(len, training)) == 60 + (15 if variant == "e" else 60)
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
