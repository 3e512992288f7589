import pytest
from saved_runs import make, source_net
from torch import nn

from avalanche_cetl import CETLPlugin, CheckpointError, load_checkpoint, save_checkpoint
from avalanche_cetl.checkpoints.objects import Collector


def test_state_that_cannot_be_kept_is_named_when_saving(benchmark, tmp_path):
    class Keeps(CETLPlugin):
        def __init__(self):
            super().__init__()
            self.benchmark = benchmark

    strategy = make(plugins=[Keeps()])
    with pytest.raises(CheckpointError, match=r"Keeps\.benchmark"):
        save_checkpoint(strategy, tmp_path / "x.safetensors")
    save_checkpoint(strategy, tmp_path / "x.safetensors", ignore=["Keeps"])
    again = make(plugins=[Keeps()])
    load_checkpoint(again, tmp_path / "x.safetensors", ignore=["Keeps"])


def test_a_network_that_learns_beside_the_strategys_is_named_when_saving(benchmark, tmp_path):
    class Learns(CETLPlugin):
        def __init__(self):
            super().__init__()
            self.other = source_net()

    with pytest.raises(CheckpointError, match=r"Learns\.other is a network that can learn"):
        save_checkpoint(make(plugins=[Learns()]), tmp_path / "x.safetensors")


class Thing:
    """An object with any attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def take(value):
    return Collector(nn.Linear(2, 2)).collect(value, "plugin.value")


def test_an_object_is_taken_by_its_attributes_without_those_that_keep_nothing():
    thing = Thing(count=3, kind=int, call=len)
    found = take(thing)
    assert found["how"] == "object" and found["type"] == "Thing"
    assert found["attributes"] == {"count": {"how": "plain", "value": 3}}


def test_an_object_that_is_met_twice_is_taken_once():
    part = Thing(count=1)
    first, second = take([part, part])["items"]
    assert first["how"] == "object" and second == {"how": "same", "number": first["number"]}


def test_an_object_that_holds_itself_is_taken():
    thing = Thing(count=1)
    thing.own = thing
    assert take(thing)["attributes"].keys() == {"count"}
