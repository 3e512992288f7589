import copy
import math

import pytest
import torch
from avalanche.training.losses import MaskedCrossEntropy
from networks import Of
from torch import nn

from avalanche_cetl import (
    CETLStrategy,
    CoupledModel,
    ModuleEncoder,
    PrecomputedEncoder,
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.training.data import TrainingData
from avalanche_cetl.training.estimate import Estimate, held_out_rows

SHAPE = (1, 8, 8)


def data(labelled=24, more=16):
    """Three classes: the first row of pixels says which, but for T2 it is hidden by noise."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(labelled + more) % 3
    x = 3 * torch.randn(len(labels), *SHAPE, generator=g)
    x[:, 0, 0, :3] = nn.functional.one_hot(labels, 3).float()
    labels[labelled:] = -1
    return transfer_benchmark((x, labels), (x[:3], torch.arange(3)))


def strategy(knows=True, source=None, **options):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    # Features of S are a row's first pixels, which tell the class, or noise.
    says = Of(lambda m, x: x[:, 0, 0 if knows else 5, :3], num_features=3)
    encoder = source or ModuleEncoder(says, layer="", input_shape=SHAPE)
    model = CoupledModel.build(encoder, target, SHAPE)
    options = {"train_mb_size": 8, "train_epochs": 4, "evaluator": None} | options
    return CETLStrategy(model=model, optimizer=torch.optim.Adam(model.parameters()), **options)


def test_an_s_that_knows_the_classes_is_ahead_of_t2_alone():
    found = strategy().estimate(data().train_stream[0], share=0.5)
    assert found.probe == 1.0 and found.rows == 12
    assert found.alone < 0.8 and found.probe - found.alone > 2 * found.error
    assert "S knows more than T2 learns alone" in str(found)


def test_an_s_that_knows_nothing_is_not_ahead():
    found = strategy(knows=False).estimate(data().train_stream[0], share=0.5)
    assert found.probe < 0.8
    assert "too few rows to tell them apart" in str(found)


def test_stored_features_are_read_and_s_does_not_run():
    plain = data()
    rows = torch.stack([row[0][0, 0, :3] for row in plain.train_stream[0].dataset])
    source = PrecomputedEncoder({"train": [rows]})
    stored = with_source_features(plain, source, streams=["train"])
    assert strategy(source=source).estimate(stored.train_stream[0]).probe == 1.0


def test_nothing_of_the_strategy_changes():
    one = strategy()
    before = {k: v.clone() for k, v in one.model.state_dict().items()}
    state = torch.random.get_rng_state()
    first = one.estimate(data().train_stream[0], seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == one.estimate(data().train_stream[0], seed=3)
    assert all(torch.equal(v, one.model.state_dict()[k]) for k, v in before.items())
    assert not one.optimizer.state and one.clock.train_exp_counter == 0


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_t2_whose_weights_have_a_graph_is_trained_alone():
    one = strategy(train_epochs=1)
    nn.utils.weight_norm(one.model.target.module[1])
    one.optimizer = torch.optim.Adam(one.model.parameters())
    one.model(torch.randn(2, *SHAPE))
    assert one.estimate(data().train_stream[0]).rows == 6


def test_a_criterion_that_is_a_plugin_keeps_its_classes():
    criterion = MaskedCrossEntropy(mask="seen")
    one = strategy(criterion=criterion)
    before = copy.deepcopy(vars(criterion))
    one.estimate(data().train_stream[0])
    assert one._criterion is criterion and vars(criterion) == before


def test_s_reads_rows_on_the_strategys_device_before_any_training(monkeypatch):
    class Reached(Exception):
        pass

    def read(self, source, size, device):
        raise Reached(next(source.parameters()).device, device)

    monkeypatch.setattr(TrainingData, "labelled_features", read)
    source = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), input_shape=SHAPE)
    with pytest.raises(Reached) as found:
        strategy(source=source, device="meta").estimate(data().train_stream[0])
    assert found.value.args == (torch.device("meta"), torch.device("meta"))


def test_t2_alone_makes_as_many_steps_as_training_would():
    made = []

    class Counted(torch.optim.SGD):
        def step(self, *args, **kwargs):
            made.append(len(self.param_groups))
            return super().step(*args, **kwargs)

    one = strategy(train_epochs=3)
    one.optimizer = Counted(one.model.parameters(), lr=0.1)
    one.estimate(data(labelled=12, more=28).train_stream[0], share=0.25)  # 9 rows: 2 mini-batches
    assert len(made) == 16  # 3 rounds of 5 mini-batches: 15, rounded up to whole passes


def optimizer_by_groups(kind, model):
    # Two of T2's parameters learn, at a rate that a scheduler has set.
    first, *_, last = model.target.parameters()
    rest = [p for p in model.parameters() if p is not first and p is not last]
    groups = [{"params": rest, "lr": 0.0}, {"params": [first, last], "lr": 0.0}]
    made = kind(groups)
    made.param_groups[1]["lr"] = 0.01
    return made


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_t2_alone_learns_at_the_rates_of_its_own_groups(monkeypatch, kind):
    made = []
    monkeypatch.setattr(CETLStrategy, "train", lambda self, stream: made.append(self))
    one = strategy()
    one.optimizer = optimizer_by_groups(kind, one.model)
    one.estimate(data().train_stream[0])
    rates = {id(p): g["lr"] for g in made[0].optimizer.param_groups for p in g["params"]}
    assert [rates[id(p)] for p in made[0].model.target.parameters()] == [0.01, 0, 0, 0.01]
    monkeypatch.undo()
    one.estimate(data().train_stream[0])


@pytest.mark.parametrize("counts", [[1, 5, 10], [2, 2, 2]])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_every_class_keeps_a_row_and_gives_one_where_it_has_two(counts, share):
    labels = [-1, *(c for c, count in enumerate(counts) for _ in range(count)), -1]
    fitted, held = held_out_rows(labels, share, seed=1)
    assert sorted([*fitted, *held]) == [i for i, label in enumerate(labels) if label >= 0]
    for c, count in enumerate(counts):
        out = sum(labels[i] == c for i in held)
        assert out == min(count - 1, max(1, round(share * count)))


def test_one_row_leaves_the_error_open():
    assert Estimate(1.0, 0.0, 1, math.inf).error == math.inf
    assert "too few rows" in str(Estimate(1.0, 0.0, 1, math.inf))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match="outside"):
        strategy().estimate(data().train_stream[0], share=share)


def test_without_s_or_without_rows_to_hold_out_there_is_no_estimate():
    with pytest.raises(ValueError, match="no source network"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        model = CoupledModel.build(None, network, SHAPE)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        CETLStrategy(model=model, optimizer=optimizer, variant="direct").estimate(
            data().train_stream[0]
        )
    with pytest.raises(ValueError, match="one of them with two rows"):
        strategy().estimate(data(labelled=3).train_stream[0])
