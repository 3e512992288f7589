import pytest
import torch
from avalanche.models import (
    DynamicModule,
    IncrementalClassifier,
    MTSimpleMLP,
    MultiHeadClassifier,
)
from avalanche.training.plugins import EWCPlugin, LwFPlugin

from avalanche_cetl import CheckpointError, load_checkpoint, save_checkpoint, transfer_benchmark
from avalanche_cetl.checkpoints.parts import copy_with, network_state


def growing_benchmark(task_labels=False):
    """Three experiences of two new classes each; by task, each has the classes 0 to 2."""
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = [torch.arange(30) % (2 + number) for number in range(3)]
    parts = [(images / (1 + number), labels[number]) for number in range(3)]
    benchmark = transfer_benchmark(parts, parts, task_labels=task_labels)
    for experience in benchmark.train_stream:  # multi-head masks take no set
        experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return benchmark


class Growing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(64, 8), IncrementalClassifier(8, 2)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))


class Own(DynamicModule):
    """A layer of the user's that grows by a row an experience."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.scales = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(10))])

    def adaptation(self, experience):
        self.scales.append(torch.nn.Parameter(torch.ones(10)))

    def forward(self, x):
        return self.layer(x.flatten(1)) * sum(self.scales)


def mlp_by_task():
    return MTSimpleMLP(input_size=64, hidden_size=16)


@pytest.mark.parametrize("plugin", [LwFPlugin, lambda: EWCPlugin(0.1)], ids=["LwF", "EWC"])
@pytest.mark.parametrize("network", [Growing, mlp_by_task], ids=["one head", "by task"])
def test_a_network_that_has_grown_is_resumed(small, tmp_path, network, plugin):
    def make():
        return small.strategy(lambda model: [plugin()], network=network)

    straight, resumed = small.resumed_as_straight(
        make, growing_benchmark(network is mlp_by_task), tmp_path / "c"
    )
    if network is mlp_by_task:
        heads = resumed.model.classifier
        assert heads.known_train_tasks_labels == {0, 1, 2}
        assert heads.active_units == straight.model.classifier.active_units


def test_a_module_of_the_users_own_grows_with_the_training_data(small, tmp_path):
    def make():
        return small.strategy(network=Own)

    stream = growing_benchmark().train_stream
    small.resumed_as_straight(make, growing_benchmark(), tmp_path / "c", experiences=stream)
    strategy = make()
    shape = {name: tuple(p.shape) for name, p in strategy.model.named_parameters()}
    with pytest.raises(CheckpointError, match=r"experiences=benchmark\.train_stream"):
        load_checkpoint(strategy, tmp_path / "c")
    assert shape == {name: tuple(p.shape) for name, p in strategy.model.named_parameters()}


def test_a_strategy_that_refuses_a_grown_network_stays_as_it_was(small, tmp_path):
    def make(plugins=()):
        return small.strategy(lambda model: list(plugins), network=Growing)

    straight = make()
    for experience in growing_benchmark().train_stream:
        straight.train(experience)
    straight.clock.train_exp_counter = "three"
    save_checkpoint(straight, tmp_path / "c")
    other = make()
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_checkpoint(other, tmp_path / "c")
    after = other.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [id(p) for p in other.optimizer.param_groups[0]["params"]] == [
        id(p) for p in other.model.parameters()
    ]
    other.train(growing_benchmark().train_stream[0])


def test_weights_that_are_frozen_in_training_are_frozen_after_loading(small, tmp_path):
    strategy = small.strategy()
    strategy.model.classifier.requires_grad_(False)
    save_checkpoint(strategy, tmp_path / "c")
    again = small.strategy()
    load_checkpoint(again, tmp_path / "c")
    assert [n for n, p in again.model.named_parameters() if not p.requires_grad] == [
        "classifier.weight", "classifier.bias",
    ]  # fmt: skip


def test_a_copy_has_the_weights_and_the_modes_of_what_was_saved():
    torch.manual_seed(0)
    network, saved = Growing(), Growing()
    saved.body.eval()
    saved.head.requires_grad_(False)
    made = copy_with(network, network_state(saved), [], "plugin.old")
    assert made is not network
    assert all(map(torch.equal, made.state_dict().values(), saved.state_dict().values()))
    assert [m.training for m in made.modules()] == [m.training for m in saved.modules()]
    assert [p.requires_grad for p in made.parameters()] == [True, True, False, False]


def test_a_copy_of_another_network_is_refused():
    other = MultiHeadClassifier(5)
    with pytest.raises(CheckpointError, match=r"plugin\.old is a copy of another network"):
        copy_with(Growing(), network_state(other), [], "plugin.old")
