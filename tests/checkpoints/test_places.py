import pytest
import torch

from avalanche_cetl import CheckpointError
from avalanche_cetl.checkpoints.datasets import indices_of, rows_at
from avalanche_cetl.checkpoints.codec import Decoder, encode
from avalanche_cetl.checkpoints.datasets import dataset_from, dataset_state


def through_a_file(state):
    tensors = {}
    encoded = encode(state, tensors)
    return Decoder(tensors).decode(encoded)


def again(dataset, experiences):
    state = through_a_file(dataset_state(dataset, "plugin.buffer"))
    assert "places" in state
    return dataset_from(state, experiences, "plugin.buffer")


def shaken(image):
    return image + 0.1 * torch.randn_like(image)


def stream(small):
    return small.benchmark(train_transform=shaken, eval_transform=torch.neg).train_stream


def test_rows_by_place_pass_through_both_groups_of_transforms(small):
    one = stream(small)
    dataset = one[1].dataset.subset([9, 4]).concat(one[2].dataset.subset([5]))
    found = again(dataset, stream(small))
    for wanted, its in ((dataset, found), (dataset.eval(), found.eval())):
        torch.manual_seed(3)
        images = [wanted[n][0] for n in range(3)]
        torch.manual_seed(3)
        assert all(torch.equal(images[n], its[n][0]) for n in range(3))
    assert type(found) is type(dataset)
    assert list(found.targets) == [9, 4, 5]


def test_places_are_the_data_set_and_the_number_of_every_row(small):
    one = stream(small)
    places = indices_of(one[1].dataset.subset([9, 4]).concat(one[2].dataset.subset([5])))
    assert places["leaf"].tolist() == [0, 0, 1] and places["row"].tolist() == [9, 4, 5]
    assert [leaf["rows"] for leaf in places["leaves"]] == [60, 60]
    found = rows_at(places, [experience.dataset for experience in stream(small)], "buffer")
    assert list(found.targets) == [9, 4, 5]


def test_other_data_than_those_of_the_run_are_refused(small):
    dataset = stream(small)[0].dataset.subset([1, 2])
    others = stream(small)[1:]
    with pytest.raises(CheckpointError, match=r"plugin\.buffer .* 60 rows"):
        again(dataset, others)
