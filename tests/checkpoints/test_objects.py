import pytest
import torch
from torch import nn

from avalanche_cetl import CheckpointError
from avalanche_cetl.checkpoints.objects import Restorer
from avalanche_cetl.checkpoints.objects import Collector


class Thing:
    """An object with any attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def through(value, current):
    """Take the state of a value, and put it into another one."""
    network = nn.Linear(2, 2)
    return Restorer(network).restore(current, Collector(network).collect(value, "plugin"), "plugin")


def test_containers_and_objects_change_in_place():
    saved = {"list": [1, 2], "thing": Thing(count=5, names={"a"})}
    current = {"list": [0], "thing": Thing(count=0, names=set())}
    numbers, thing, names = current["list"], current["thing"], current["thing"].names
    assert through(saved, current) is current
    assert current == {"list": [1, 2], "thing": thing} and current["list"] is numbers
    assert vars(thing) == {"count": 5, "names": {"a"}} and thing.names is names


def test_two_places_that_shared_an_object_share_one_again():
    part, parts = Thing(count=5), [Thing(count=n) for n in range(2)]
    found = through([part, part], parts)
    assert found[0] is found[1] and found[0].count == 5


@pytest.mark.parametrize(
    ("saved", "current", "message"),
    [
        ([1], {"a": 1}, "is a dict, in the checkpoint a list"),
        (Thing(count=1), nn.Identity(), "is a Identity, in the checkpoint a Thing"),
        ((nn.Identity(),), (), "has 0 entries, in the checkpoint 1"),
        ([torch.Generator()], [], r"plugin\[0\] is not there, in the checkpoint a generator"),
    ],
    ids=["another container", "another class", "fewer entries", "nothing there"],
)
def test_the_state_of_another_thing_is_refused(saved, current, message):
    with pytest.raises(CheckpointError, match=message):
        through(saved, current)


@pytest.mark.parametrize("name", ["update", "__class__", "no name"])
def test_methods_and_inner_attributes_are_never_overwritten(name):
    class Other:
        def update(self):
            """Do nothing."""

    state = {"how": "object", "type": Other.__qualname__}
    state["attributes"] = {name: {"how": "plain", "value": 1}}
    with pytest.raises(CheckpointError, match="has no attribute"):
        Restorer(nn.Linear(1, 1)).restore(Other(), state, "plugin")
