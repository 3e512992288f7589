from collections import Counter, OrderedDict, deque

import numpy as np
import torch
from networks import Of
from torch import nn

from avalanche_cetl.common.state import ModelState, state_kept


class Changing(nn.Module):
    """Writes everywhere that a forward pass may write."""

    def __init__(self):
        super().__init__()
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(3))
        self.layer = nn.Linear(3, 3)
        self.average = torch.zeros(3)
        self.count = 0
        self.history = []
        self.recent = deque([1, 2], maxlen=2)
        self.table = {"rows": torch.zeros(2), "names": ["a"]}

    def forward(self, x):
        self.written += 1
        self.replaced = self.replaced + 1
        self.average.add_(1)
        self.count += 1
        self.history.append(x)
        self.recent.append(3)
        self.table["rows"] += 1
        self.table["names"].append("b")
        self.fresh = x
        return self.layer(x)


def test_a_forward_pass_leaves_no_trace():
    model = Changing()
    buffers = {name: (id(b), b.clone()) for name, b in model.named_buffers()}
    average, history = model.average, model.history
    with state_kept(model):
        model(torch.ones(2, 3))
        model(torch.ones(2, 3))
        assert model.count == 2 and len(model.history) == 2
    for name, buffer in model.named_buffers():
        assert (id(buffer), buffer.tolist()) == (buffers[name][0], buffers[name][1].tolist())
    assert model.average is average and not average.any()
    assert model.count == 0 and model.history is history and history == []
    assert list(model.recent) == [1, 2] and model.recent.maxlen == 2
    assert not model.table["rows"].any() and model.table["names"] == ["a"]
    assert not hasattr(model, "fresh")


def test_state_can_be_put_back_more_than_once():
    model = Changing()
    state = ModelState(model)
    for _ in range(3):
        model(torch.ones(2, 3))
        state.put_back()
        assert model.count == 0 and not model.written.any() and not model.average.any()


def test_state_comes_back_after_an_exception():
    model = Changing()
    try:
        with state_kept(model):
            model(torch.ones(2, 3))
            model(torch.ones(2, 7))
    except RuntimeError:
        assert model.count == 0
    else:
        raise AssertionError("the wrong width has to fail")


def test_weights_that_a_forward_pass_writes_come_back():
    model = nn.Embedding(20, 6, max_norm=1.0)
    before = model.weight.clone()
    with state_kept(model):
        model(torch.arange(20))
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


def test_arrays_sets_and_counters_come_back():
    model = nn.Linear(2, 2)
    model.array, model.seen = np.zeros(3), {1}
    model.counts, model.order = Counter("a"), OrderedDict(a=1, b=2)
    with state_kept(model):
        model.array += 1
        model.seen.add(2)
        model.counts.update("ab")
        model.order.move_to_end("a")
    assert not model.array.any() and model.seen == {1}
    assert model.counts == Counter("a") and isinstance(model.counts, Counter)
    assert list(model.order) == ["a", "b"]


def test_a_list_that_holds_itself_ends():
    model = nn.Linear(2, 2)
    model.loop = []
    model.loop.append(model.loop)
    with state_kept(model):
        model.loop.append(1)
    assert len(model.loop) == 1


def test_running_statistics_come_back_where_a_network_trains_its_norm_by_itself():
    model = Of(lambda m, x: m.norm.train()(x), norm=nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with state_kept(model) as state:
        model(torch.randn(4, 3))
        state.put_back()
        assert all(torch.equal(model.state_dict()[n], value) for n, value in before.items())
        model(torch.randn(4, 3))
    assert all(torch.equal(model.state_dict()[n], value) for n, value in before.items())
