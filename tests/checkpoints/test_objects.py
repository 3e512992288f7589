import pytest
import torch
from torch import nn

from avalanche_cetl import CheckpointError
from avalanche_cetl.checkpoints import adapters
from avalanche_cetl.checkpoints.objects import Collector, Restorer


class Thing:
    """An object with any attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


class Own:
    """An object with state of its own making."""

    def __init__(self, count):
        self.hidden = iter(range(count))
        self.count = count

    def state_dict(self):
        return {"count": torch.tensor(self.count)}

    def load_state_dict(self, state):
        self.count = int(state["count"])


def collect(value):
    return Collector(nn.Linear(2, 2)).collect(value, "plugin.value")


def through(value, current):
    """Collect the state of a value, and restore it in another one."""
    return Restorer(nn.Linear(2, 2)).restore(current, collect(value), "plugin")


def test_an_object_is_kept_by_its_attributes_without_those_that_hold_nothing():
    state = collect(Thing(count=3, kind=int, call=len))
    assert state["how"] == "object" and state["type"] == "Thing"
    assert state["attributes"] == {"count": {"how": "plain", "value": 3}}


def test_a_state_by_attributes_goes_to_the_state_functions_that_an_object_has_got_since():
    before = {"how": "object", "type": "Own", "attributes": {"count": {"how": "plain", "value": 5}}}
    thing = Thing(part=Own(1))
    part = thing.part
    state = {"how": "object", "type": "Thing", "attributes": {"part": before}}
    Restorer(nn.Linear(2, 2)).restore(thing, state, "plugin")
    assert thing.part is part and part.count == 5


def test_an_object_that_is_met_twice_is_kept_once_and_shared_again():
    part, parts = Thing(count=5), [Thing(count=n) for n in range(2)]
    first, second = collect([part, part])["items"]
    assert first["how"] == "object" and second == {"how": "same", "number": first["number"]}
    found = through([part, part], parts)
    assert found[0] is found[1] and found[0].count == 5


def test_an_object_that_holds_itself_is_kept():
    thing = Thing(count=1)
    thing.own = thing
    assert collect(thing)["attributes"].keys() == {"count"}


def test_containers_and_objects_change_in_place():
    numbers, names, own = [0], set(), Own(0)
    thing = Thing(count=0, names=names, own=own)
    saved = {"list": [1, 2], "thing": Thing(count=5, names={"a"}, own=Own(4))}
    current = {"list": numbers, "thing": thing}
    assert through(saved, current) is current
    assert current == {"list": [1, 2], "thing": thing} and current["list"] is numbers
    assert thing.count == 5 and thing.names == {"a"} and thing.names is names
    assert thing.own is own and own.count == 4


@pytest.mark.parametrize(
    ("saved", "current", "message"),
    [
        ([1], {"a": 1}, "is a dict, in the checkpoint a list"),
        (Thing(count=1), nn.Identity(), "is a Identity, in the checkpoint a Thing"),
        (Own(1), Thing(count=1), "is a Thing, in the checkpoint a own"),
        ((nn.Identity(),), (), "has 0 entries, in the checkpoint 1"),
        ([len], [Thing(), Thing()], "has 2 entries, in the checkpoint 1"),
        ([torch.Generator()], [], r"plugin\[0\] is not there, in the checkpoint a generator"),
        ([Thing(), len], [Thing()], r"plugin\[1\] is not there"),
    ],
    ids=["container", "class", "own", "fewer", "more", "nothing there", "a function"],
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


@pytest.mark.parametrize("more", [7, nn.Identity()], ids=["number", "module"])
def test_what_can_be_made_again_may_follow_the_entries_of_the_checkpoint(more):
    current = [Thing(count=0), more]
    found = through([Thing(count=1)], current)
    assert found is current and len(found) == 1 and found[0].count == 1


def test_a_generator_goes_on_where_its_state_was_kept():
    kept, current = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    torch.rand(3, generator=kept)
    assert through(Thing(draws=kept), Thing(draws=current)).draws is current
    assert torch.equal(torch.rand(4, generator=current), torch.rand(4, generator=kept))


def test_a_class_that_makes_things_with_a_state_has_none_itself():
    assert collect(Thing(count=1, kind=Own))["attributes"].keys() == {"count"}


class Opaque:
    """An object that only an adapter keeps."""

    __slots__ = ("count",)


def own_functions(state_dict, load_state_dict, kind=Own):
    return type(kind.__name__, (kind,), {
        "state_dict": state_dict, "load_state_dict": load_state_dict,
    })(1)  # fmt: skip


@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "methods"])
@pytest.mark.parametrize(
    ("gives", "takes", "told"),
    [
        (lambda o: {"a": 1}, lambda o, state: state["nope"], "load_state_dict{} failed: KeyError"),
        (lambda o: {"a": 1}, lambda o: None, "load_state_dict{} failed: TypeError"),
        (lambda o: o.nope, lambda o, state: None, "state_dict{} failed: AttributeError.*nope"),
        (
            lambda o: {"best": [1, len]},
            lambda o, state: None,
            r"state_dict{} of plugin.value returned a builtin_function_or_method at \['best'\]\[1",
        ),
        (lambda o: len, lambda o, state: None, "state_dict{} of plugin.value returned a builtin"),
    ],
    ids=["key", "arguments", "saving", "inside", "no plain data"],
)
def test_an_error_of_a_users_state_functions_names_them(monkeypatch, adapted, gives, takes, told):
    if adapted:
        monkeypatch.setitem(adapters._ADAPTERS, Opaque, adapters.Adapter(gives, takes))
        value, whose = Opaque(), " of Opaque \\(registered adapter\\)"
    else:
        value, whose = own_functions(gives, takes), "\\(\\)"
        told = f"Own.{told}"
    with pytest.raises(CheckpointError, match=told.format(whose)):
        through(value, value)


def test_what_cannot_be_kept_is_told_the_two_remedies():
    with pytest.raises(CheckpointError, match=r"state_dict\(\) and .*, or register_state_adapter"):
        collect(Opaque())
