import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training.plugins import LwFPlugin, ReplayPlugin

from avalanche_cetl import CheckpointError, load_checkpoint, save_checkpoint
from avalanche_cetl.checkpoints.codec import Decoder, encode
from avalanche_cetl.checkpoints.datasets import dataset_from, dataset_state


def through_a_file(state):
    tensors = {}
    encoded = encode(state, tensors)
    return Decoder(tensors).decode(encoded)


def again(dataset, experiences=None):
    return dataset_from(
        through_a_file(dataset_state(dataset, "plugin.buffer")), experiences, "plugin.buffer"
    )


def assert_same_rows(one, other):
    assert type(one) is type(other)
    assert len(one) == len(other)
    for mine, its in zip(one, other, strict=True):
        assert len(mine) == len(its)
        for a, b in zip(mine, its, strict=True):
            assert type(a) is type(b)
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def shaken(image):
    return image + 0.1 * torch.randn_like(image)


def shaken_by_python(image):
    return image * random.random()


def shaken_by_numpy(image):
    return image + np.random.rand()


AUGMENTATIONS = [shaken, shaken_by_python, shaken_by_numpy]


def test_rows_and_their_attributes_come_back_without_the_data(small):
    dataset = small.benchmark(
        train_transform=lambda image: image - 0.5, eval_transform=lambda image: image - 0.5
    )
    dataset = dataset.train_stream[0].dataset.subset([7, 3, 7, 50])
    found = again(dataset)
    assert_same_rows(dataset, found)
    assert list(found.targets) == list(dataset.targets)
    assert list(found.targets_task_labels) == [0, 0, 0, 0]
    assert list(found.domain_labels) == [0, 0, 0, 0]


def test_an_empty_data_set_comes_back():
    assert len(again(AvalancheDataset([]))) == 0


@pytest.mark.parametrize(
    "rows",
    [
        [(torch.rand(3, dtype=torch.float64), np.float32(0.5), 1.5, "a")] * 3,
        [(torch.rand(1 + n), n, None, (n, True)) for n in range(3)],
        [(np.arange(3.0), torch.tensor(True))] * 2,
    ],
    ids=["numbers and words", "tensors of several shapes", "arrays"],
)
def test_items_keep_their_types(rows):
    found = again(AvalancheDataset([rows]))
    for mine, its in zip(rows, found, strict=True):
        assert [type(value) for value in mine] == [type(value) for value in its]
        assert repr(tuple(mine)) == repr(tuple(its))


def test_reading_rows_moves_no_random_state(small):
    dataset = small.benchmark(train_transform=shaken).train_stream[0].dataset
    before = torch.get_rng_state()
    dataset_state(dataset, "plugin.buffer")
    assert torch.equal(before, torch.get_rng_state())


def test_rows_that_came_back_are_joined_with_new_data(small):
    stream = small.benchmark().train_stream
    old, new = stream[0].dataset.subset([1, 2, 3]), stream[1].dataset
    assert_same_rows(new.concat(old), new.concat(again(old)))
    assert_same_rows(old.concat(new), again(old).concat(new))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_buffer_with_augmentation_is_resumed(small, tmp_path, augment):
    def benchmark():
        return small.benchmark(train_transform=augment)

    def make():
        return small.strategy(lambda model: [ReplayPlugin(20), LwFPlugin()])

    stream = benchmark().train_stream
    small.resumed_as_straight(make, benchmark(), tmp_path / "c", experiences=stream)


def test_attributes_that_a_plugin_added_are_kept_with_rows_by_place(small):
    stream = small.benchmark(train_transform=shaken).train_stream
    logits = DataAttribute([torch.ones(2), torch.zeros(2)], "logits")
    dataset = stream[0].dataset.subset([1, 2]).update_data_attribute("logits", logits)
    found = again(dataset, stream)
    assert [value.tolist() for value in found.logits] == [[1, 1], [0, 0]]


def test_rows_by_place_without_their_data_are_refused_with_the_remedy(small, tmp_path):
    def make():
        return small.strategy(lambda model: [ReplayPlugin(20)])

    benchmark, strategy = small.benchmark(train_transform=shaken), make()
    strategy.train(benchmark.train_stream[0])
    save_checkpoint(strategy, tmp_path / "c")
    other = make()
    before = [p.clone() for p in other.model.parameters()]
    with pytest.raises(CheckpointError, match=r"experiences=benchmark\.train_stream"):
        load_checkpoint(other, tmp_path / "c")
    assert all(map(torch.equal, before, other.model.parameters()))
    assert len(other.plugins[0].storage_policy.buffer) == 0


def test_a_data_set_of_a_class_of_the_users_own_is_refused():
    class Mine(AvalancheDataset):
        pass

    with pytest.raises(CheckpointError, match=r"plugin\.buffer is a Mine"):
        dataset_state(Mine([[(1, 2)]]), "plugin.buffer")


def test_an_attribute_that_is_no_data_is_refused():
    dataset = AvalancheDataset([[(1, 2)]], data_attributes=[DataAttribute([object()], "origin")])
    with pytest.raises(CheckpointError, match="'origin'"):
        dataset_state(dataset, "plugin.buffer")


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
def test_forged_rows_make_nothing_large_or_foreign(small, change):
    state = dataset_state(small.benchmark().train_stream[0].dataset.subset([1]), "plugin.buffer")
    with pytest.raises((CheckpointError, KeyError)):
        dataset_from({**state, **change}, None, "plugin.buffer")
