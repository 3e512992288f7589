import random

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import loss_metrics
from avalanche.logging import InteractiveLogger, TextLogger
from avalanche.models import DynamicModule, MTSimpleMLP, MultiHeadClassifier
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin
from networks import growing
from saved_runs import assert_resumed_as_straight, make_stock, three_experiences, weights

from avalanche_cetl import CheckpointError, load_checkpoint, save_checkpoint, transfer_benchmark
from avalanche_cetl.checkpoints.objects import Collector, Restorer
from avalanche_cetl.checkpoints.parts import (
    copy_with,
    evaluator_state,
    load_evaluator_state,
    load_optimizer_state,
    load_random_states,
    network_state,
    optimizer_state,
    random_states,
)


def growing_benchmark(task_labels=False):
    """Three experiences of two new classes each; by task, each has the classes 0 to 2."""
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = [torch.arange(30) % (2 + number) for number in range(3)]
    parts = [(images / (1 + number), labels[number]) for number in range(3)]
    benchmark = transfer_benchmark(parts, parts, task_labels=task_labels)
    for experience in benchmark.train_stream:  # multi-head masks take no set
        experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return benchmark


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
@pytest.mark.parametrize("network", [growing, mlp_by_task], ids=["one head", "by task"])
def test_a_network_that_has_grown_is_resumed(tmp_path, network, plugin):
    straight, resumed = assert_resumed_as_straight(
        lambda: make_stock(lambda model: [plugin()], network=network),
        growing_benchmark(network is mlp_by_task),
        tmp_path / "c",
    )
    if network is mlp_by_task:
        heads = resumed.model.classifier
        assert heads.known_train_tasks_labels == {0, 1, 2}
        assert heads.active_units == straight.model.classifier.active_units


def test_a_module_of_the_users_own_grows_with_the_training_data(tmp_path):
    stream, file = growing_benchmark().train_stream, tmp_path / "c"
    assert_resumed_as_straight(
        lambda: make_stock(network=Own), growing_benchmark(), file, experiences=stream
    )
    strategy = make_stock(network=Own)
    shapes = {name: p.shape for name, p in strategy.model.named_parameters()}
    with pytest.raises(CheckpointError, match=r"experiences=benchmark\.train_stream"):
        load_checkpoint(strategy, file)
    assert shapes == {name: p.shape for name, p in strategy.model.named_parameters()}


def test_a_strategy_that_refuses_a_grown_network_stays_as_it_was(tmp_path):
    straight, other = make_stock(network=growing), make_stock(network=growing)
    for experience in growing_benchmark().train_stream:
        straight.train(experience)
    straight.clock.train_exp_counter = "three"
    save_checkpoint(straight, tmp_path / "c")
    before = weights(other)
    with pytest.raises(CheckpointError):
        load_checkpoint(other, tmp_path / "c")
    after = weights(other)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    covered = other.optimizer.param_groups[0]["params"]
    assert list(map(id, covered)) == list(map(id, other.model.parameters()))
    other.train(growing_benchmark().train_stream[0])


def normed():
    """Its first weight is made anew at every pass, and has a graph."""
    network = growing()
    torch.nn.utils.weight_norm(network.trunk[1])
    return network


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_network_whose_weights_have_a_graph_is_loaded_and_copied(tmp_path):
    straight, other = make_stock(network=normed), make_stock(network=normed)
    for experience in growing_benchmark().train_stream:
        straight.train(experience)
    save_checkpoint(straight, tmp_path / "c")
    other.model(torch.rand(2, 1, 8, 8))
    load_checkpoint(other, tmp_path / "c")
    for network in (straight.model, other.model):
        network(torch.rand(2, 1, 8, 8))
        made = copy_with(network, network_state(straight.model), [], "plugin.old")
        assert all(map(torch.equal, made.state_dict().values(), weights(straight).values()))


def test_weights_that_are_frozen_in_training_are_frozen_after_loading(tmp_path):
    strategy, again = make_stock(), make_stock()
    strategy.model.classifier.requires_grad_(False)
    save_checkpoint(strategy, tmp_path / "c")
    load_checkpoint(again, tmp_path / "c")
    frozen = [name for name, p in again.model.named_parameters() if not p.requires_grad]
    assert frozen == ["classifier.weight", "classifier.bias"]


def test_a_copy_has_the_weights_and_the_modes_of_what_was_saved_or_is_refused():
    torch.manual_seed(0)
    network, saved = growing(), growing()
    saved.trunk.eval()
    saved.head.requires_grad_(False)
    made = copy_with(network, network_state(saved), [], "plugin.old")
    assert made is not network
    assert all(map(torch.equal, made.state_dict().values(), saved.state_dict().values()))
    assert [m.training for m in made.modules()] == [m.training for m in saved.modules()]
    assert [p.requires_grad for p in made.parameters()] == [True, True, False, False]
    with pytest.raises(CheckpointError, match=r"plugin\.old is a copy of another network"):
        copy_with(network, network_state(MultiHeadClassifier(5)), [], "plugin.old")


# ------------------------------------------------------------------ optimisers


class Late(torch.optim.SGD):
    """Makes settings of a group, shared state and moments of other shapes when it first steps."""

    def step(self, closure=None):
        self.state["shared"] = {"steps": self.state.get("shared", {}).get("steps", 0) + 1}
        for group in self.param_groups:
            group["d"] = group.get("d", 1.0) * 0.9
            for p in group["params"]:
                rows = p.detach().reshape(len(p), -1).mean(1)
                seen = self.state[p].get("seen", 0) + torch.stack([rows, rows**2])
                self.state[p] = {"seen": seen, "first": None}
                p.data -= 1e-3 * group["d"] * self.state["shared"]["steps"] * seen.mean()
        return super().step(closure)


OPTIMIZERS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01},
    "Adafactor": {"lr": 0.01},
    "Adadelta": {},
    "Adagrad": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "ASGD": {"lr": 0.05},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "centered": True, "momentum": 0.5},
    "Rprop": {"lr": 0.01},
    "Late": {"lr": 0.05},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_the_optimiser_ends_as_one_that_was_never_stopped(
    tmp_path, name, trains_in_avalanche
):
    kind = Late if name == "Late" else getattr(torch.optim, name)
    trains_in_avalanche(kind)
    assert_resumed_as_straight(
        lambda: make_stock(optimizer=lambda p: kind(p, **OPTIMIZERS[name])),
        three_experiences(),
        tmp_path / "c",
    )


def test_moments_and_shared_state_that_the_checkpoint_has_not_are_gone():
    network = torch.nn.Linear(3, 2)
    optimizer = Late(network.parameters(), lr=0.05)
    before = optimizer_state(optimizer, network)
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 3
    load_optimizer_state(optimizer, before, network)
    assert not optimizer.state


def test_a_setting_of_another_kind_is_refused(tmp_path):
    strategy = make_stock()
    strategy.optimizer.param_groups[0]["nesterov"] = "yes"
    save_checkpoint(strategy, tmp_path / "c")
    with pytest.raises(CheckpointError, match="nesterov"):
        load_checkpoint(make_stock(), tmp_path / "c")


# ------------------------------------------------------------------ random states


def test_all_generators_go_on_where_their_states_were_kept():
    def draws():
        return [float(torch.rand(())), float(np.random.rand()), random.random()]

    states = random_states()
    first = draws()
    assert draws() != first
    load_random_states(states)
    assert draws() == first


@pytest.mark.parametrize(
    "change",
    [{"torch": torch.zeros(3, dtype=torch.uint8)}, {"python": (3, (1, 2), None)}],
    ids=list,
)
def test_states_of_no_generator_are_refused(change):
    states = random_states()
    with pytest.raises(CheckpointError, match="random states are not in order"):
        load_random_states(states | change)
    load_random_states(states)


def evaluator_with(log=None):
    """An evaluator whose log holds a line."""
    loggers = [InteractiveLogger() if log is None else TextLogger(log)]
    found = EvaluationPlugin(loss_metrics(stream=True), loggers=loggers)
    if log is not None:
        log.write("a line")
    return found


def test_what_was_measured_before_loading_is_replaced():
    network, kept, current = torch.nn.Linear(2, 2), evaluator_with(), evaluator_with()
    kept.all_metric_results["Loss"] = ([0, 1], [2.0, 1.0])
    current.all_metric_results.update(Loss=([0], [9.0]), Other=([0], [9.0]))
    state = evaluator_state(kept, Collector(network))
    load_evaluator_state(current, state, Restorer(network))
    assert dict(current.all_metric_results) == {"Loss": ([0, 1], [2.0, 1.0])}


def test_a_log_of_which_no_end_was_kept_stays_whole(tmp_path):
    network = torch.nn.Linear(2, 2)
    state = evaluator_state(evaluator_with(), Collector(network))
    with (tmp_path / "log.txt").open("w+") as log:
        load_evaluator_state(evaluator_with(log), state, Restorer(network))
    assert (tmp_path / "log.txt").read_text() == "a line"


@pytest.mark.parametrize("mine", [False, True])
def test_an_optimiser_on_one_side_alone_is_refused(mine):
    network = torch.nn.Linear(2, 2)
    load_optimizer_state(None, None, network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1) if mine else None
    with pytest.raises(CheckpointError, match="only one of strategy and checkpoint has an opt"):
        load_optimizer_state(optimizer, None if mine else {}, network)
