import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training.plugins import LwFPlugin, ReplayPlugin
from saved_runs import assert_resumed_as_straight, make_stock, three_experiences, weights

from avalanche_cetl import CheckpointError, load_checkpoint
from avalanche_cetl.checkpoints.codec import Decoder, encode
from avalanche_cetl.checkpoints.datasets import (
    _digest,
    dataset_from,
    dataset_state,
    indices_of,
    rows_at,
)


def again(dataset, experiences=None):
    tensors = {}
    encoded = encode(dataset_state(dataset, "plugin.buffer"), tensors)
    return dataset_from(Decoder(tensors).decode(encoded), experiences, "plugin.buffer")


def assert_same_rows(one, other):
    assert type(one) is type(other)
    for mine, its in zip(one, other, strict=True):
        for a, b in zip(mine, its, strict=True):
            assert type(a) is type(b)
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def shaken(image):
    return image + 0.1 * torch.randn_like(image)


def shaken_stream():
    return three_experiences(train_transform=shaken, eval_transform=torch.neg).train_stream


# ------------------------------------------------------------------ rows as they read


def test_rows_and_their_attributes_come_back_without_the_data():
    benchmark = three_experiences(
        train_transform=lambda image: image - 0.5, eval_transform=lambda image: image - 0.5
    )
    old, new = (experience.dataset for experience in benchmark.train_stream[:2])
    old = old.subset([7, 3, 7, 50])
    found = again(old)
    assert_same_rows(old, found)
    assert list(found.targets) == list(old.targets)
    assert list(found.targets_task_labels) == list(found.domain_labels) == [0, 0, 0, 0]
    assert_same_rows(new.concat(old), new.concat(found))
    assert_same_rows(old.concat(new), found.concat(new))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [(torch.rand(3, dtype=torch.float64), np.float32(0.5), 1.5, "a")] * 3,
        [(torch.rand(1 + n), n, None, (n, True)) for n in range(3)],
        [(np.arange(3.0), torch.tensor(True))] * 2,
    ],
    ids=["none", "numbers and words", "tensors of several shapes", "arrays"],
)
def test_items_keep_their_types(rows):
    found = again(AvalancheDataset([rows] if rows else []))
    for mine, its in zip(rows, found, strict=True):
        assert [type(value) for value in mine] == [type(value) for value in its]
        assert repr(tuple(mine)) == repr(tuple(its))


@pytest.mark.parametrize(
    ("kind", "attributes", "told"),
    [
        (type("Mine", (AvalancheDataset,), {}), [], r"plugin\.buffer is a Mine"),
        (AvalancheDataset, [DataAttribute([object()], "origin")], "'origin'"),
    ],
    ids=["a class of the user's", "an attribute that is no data"],
)
def test_a_data_set_that_cannot_be_made_again_is_refused(kind, attributes, told):
    with pytest.raises(CheckpointError, match=told):
        dataset_state(kind([[(1, 2)]], data_attributes=attributes), "plugin.buffer")


@pytest.mark.parametrize(
    "change",
    [
        {"type": "Path"},
        {"count": 10**12},
        {"count": 10**12, "items": [], "attributes": []},
        {"items": [{}]},
    ],
    ids=str,
)
def test_forged_rows_make_nothing_large_or_foreign(change):
    dataset = three_experiences().train_stream[0].dataset.subset([1])
    state = dataset_state(dataset, "plugin.buffer")
    with pytest.raises((CheckpointError, KeyError)):
        dataset_from({**state, **change}, None, "plugin.buffer")


# ------------------------------------------------------------------ rows by their indices


def test_rows_by_index_pass_through_both_groups_of_transforms():
    one = shaken_stream()
    dataset = one[1].dataset.subset([9, 4]).concat(one[2].dataset.subset([5]))
    before = torch.get_rng_state()
    found = again(dataset, shaken_stream())
    assert torch.equal(before, torch.get_rng_state())
    for wanted, its in ((dataset, found), (dataset.eval(), found.eval())):
        torch.manual_seed(3)
        images = [wanted[n][0] for n in range(3)]
        torch.manual_seed(3)
        assert all(torch.equal(images[n], its[n][0]) for n in range(3))
    assert type(found) is type(dataset) and list(found.targets) == [9, 4, 5]


def test_indices_are_the_data_set_and_the_number_of_every_row():
    one = shaken_stream()
    indices = indices_of(one[1].dataset.subset([9, 4]).concat(one[2].dataset.subset([5])))
    assert indices["leaf"].tolist() == [0, 0, 1] and indices["row"].tolist() == [9, 4, 5]
    assert [leaf["rows"] for leaf in indices["leaves"]] == [60, 60]
    first, *others = (experience.dataset for experience in shaken_stream())
    found = rows_at(indices, [first.subset([1, 1]), *others], "buffer")  # a row that is there twice
    assert list(found.targets) == [9, 4, 5]


def test_attributes_that_a_plugin_added_are_kept_with_rows_by_index():
    stream = shaken_stream()
    logits = DataAttribute([torch.ones(2), torch.zeros(2)], "logits")
    dataset = stream[0].dataset.subset([1, 2]).update_data_attribute("logits", logits)
    found = again(dataset, stream)
    assert [value.tolist() for value in found.logits] == [[1, 1], [0, 0]]


def test_other_data_than_those_of_the_run_are_refused():
    stream = shaken_stream()
    with pytest.raises(CheckpointError, match=r"plugin\.buffer .* 60 rows"):
        again(stream[0].dataset.subset([1, 2]), stream[1:])


AUGMENTATIONS = {
    "torch": shaken,
    "random": lambda image: image * random.random(),
    "numpy": lambda image: image + np.random.rand(),
}


@pytest.mark.parametrize("draws", AUGMENTATIONS)
def test_a_buffer_with_augmentation_is_resumed_with_the_data_alone(tmp_path, draws):
    def make():
        return make_stock(lambda model: [ReplayPlugin(20), LwFPlugin()])

    benchmark = three_experiences(train_transform=AUGMENTATIONS[draws])
    stream = three_experiences(train_transform=AUGMENTATIONS[draws]).train_stream
    assert_resumed_as_straight(make, benchmark, tmp_path / "c", experiences=stream)
    other = make()
    before = weights(other)
    with pytest.raises(CheckpointError, match=r"experiences=benchmark\.train_stream"):
        load_checkpoint(other, tmp_path / "c")
    assert all(torch.equal(before[name], p) for name, p in weights(other).items())
    assert len(other.plugins[0].storage_policy.buffer) == 0


def test_rows_that_are_drawn_at_random_have_no_digest_and_draw_nothing():
    class Drawn:
        def __getitem__(self, row):
            return torch.rand(3), row

    steady = [(torch.arange(3.0) + row, row) for row in range(4)]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert _digest(Drawn(), [0, 1]) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert _digest(steady, [0, 1]) == _digest(steady, [0, 1]) != _digest(steady, [0, 2])
