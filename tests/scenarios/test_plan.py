"""Transforms, tensors and experiences: how sets become streams."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sets import both, labels, rgb
from torchvision.transforms import v2

from avalanche_cetl import (
    adaptation_benchmark,
    transfer_benchmark,
)


def test_transforms_of_pictures_see_colours_and_not_places_in_a_palette():
    image = Image.new("RGB", (8, 6), (200, 40, 90)).quantize(4)
    found = both(image, train_transform=v2.PILToTensor(), eval_transform=v2.PILToTensor())
    wanted = (torch.tensor([200, 40, 90]) / 255).view(3, 1, 1).expand(3, 6, 8)
    torch.testing.assert_close(found, wanted, atol=1 / 255, rtol=0)


def test_transforms_that_give_bytes_as_floats_or_long_integers_are_refused():
    image = Image.fromarray(np.full((6, 8), 40000, np.uint16))
    to_long = v2.Lambda(lambda picture: torch.from_numpy(np.asarray(picture).astype("int64")))
    with pytest.raises(ValueError, match="uint8"):
        both(image, train_transform=to_long, eval_transform=to_long)
    forgot = v2.Lambda(lambda picture: torch.from_numpy(np.asarray(picture).astype("float32")))
    with pytest.raises(ValueError, match=r"after its transform.*divide them by 255"):
        both(Image.new("L", (8, 6), 200), train_transform=forgot, eval_transform=forgot)
    own = v2.Lambda(lambda picture: torch.from_numpy(np.asarray(picture) / 65535)[None])
    torch.testing.assert_close(
        both(image, train_transform=own, eval_transform=own), torch.full((1, 6, 8), 40000 / 65535)
    )


def test_pictures_become_tensors_where_no_transform_follows(folder):
    benchmark = transfer_benchmark(folder, folder, train_transform=v2.RandomHorizontalFlip())
    for dataset in (benchmark.test_stream[0].dataset, benchmark.train_stream[0].dataset):
        for image in (dataset.train()[0][0], dataset.eval()[0][0]):
            assert isinstance(image, torch.Tensor) and image.dtype == torch.float32
    pickle.dumps(benchmark)


def test_several_targets_are_several_experiences(digits):
    sets = [digits(30, seed=seed) for seed in range(3)]
    benchmark = transfer_benchmark(sets, sets, labels_per_class=2, task_labels=True)
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == 3
    for number, experience in enumerate(benchmark.train_stream):
        assert experience.task_labels == [number]
        assert sum(label >= 0 for label in labels(benchmark.train_stream, number)) == 6
        torch.testing.assert_close(experience.dataset[7][0], sets[number][0][7])
        assert experience.dataset[7][-1] == number
    assert [e.task_labels for e in benchmark.labelled_stream] == [[0], [1], [2]]
    plain = transfer_benchmark(sets, sets)
    assert [e.task_labels for e in plain.train_stream] == [[0]] * 3


def test_several_targets_of_adaptation_each_have_the_source_rows(digits):
    sets = [digits(30, seed=1), rgb(12, (8, 8))]
    benchmark = adaptation_benchmark(digits(15), sets, sets)
    assert [len(e.dataset) for e in benchmark.train_stream] == [45, 27]
    assert benchmark.train_stream[1].dataset[0][0].shape == (3, 8, 8)
    assert labels(benchmark.train_stream, 1) == [-1] * 12 + [i % 3 for i in range(15)]
    with pytest.raises(ValueError, match="2 training sets, but 1 test sets"):
        adaptation_benchmark(digits(15), sets, digits(15))


def test_transforms_apply_in_their_own_mode(digits):
    benchmark = transfer_benchmark(
        digits(12), digits(12), train_transform=lambda x: x + 10, eval_transform=lambda x: x - 10
    )
    dataset = benchmark.train_stream[0].dataset
    assert dataset.train()[0][0].min() >= 10 and dataset.eval()[0][0].max() <= 0


def test_images_are_floats_whatever_they_and_their_transforms_are():
    arrays = torch.rand(4, 1, 8, 8), torch.arange(4) % 2
    pictures = tuple((Image.new("L", (8, 8), 40 * i), i % 2) for i in range(4))
    flip = v2.RandomHorizontalFlip(0.0)
    for source, target in ((arrays, pictures), (pictures, arrays), (arrays, arrays)):
        for transform in (flip, v2.ToDtype(torch.uint8, scale=True), lambda image: image):
            wide = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float64, scale=True)])
            for one in (transform, v2.Compose([v2.ToImage(), transform]), wide):
                made = adaptation_benchmark(source, target, target, train_transform=one)
                for row in made.train_stream[0].dataset:
                    assert row[0].dtype == torch.float32 and row[0].shape == (1, 8, 8)
                    assert row[0].max() <= 1
    with pytest.raises(ValueError, match="bytes that were not"):
        made = transfer_benchmark(arrays, arrays, train_transform=lambda i: (i * 255).round())
        list(made.train_stream[0].dataset)


@pytest.mark.parametrize("shape", [8, (8, 8), (32, 32, 3), (0, 8, 8), (1.0, 8, 8), "abc"])
def test_a_shape_that_is_none_is_refused(shape):
    data = torch.rand(4, 1, 8, 8), torch.arange(4) % 2
    with pytest.raises(ValueError, match=r"has to be \(C, H, W\)"):
        transfer_benchmark(data, data, image_shape=shape)
