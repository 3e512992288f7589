"""Images and labels out of folders, arrays, data sets and items of all kinds."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from PIL import Image
from sets import both, labels
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Resize, ToTensor

from avalanche_cetl import (
    adaptation_benchmark,
    distillation_benchmark,
    transfer_benchmark,
)
from avalanche_cetl.scenarios.images import LabelledImages, read_images


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_folder_of_images_has_its_folders_as_classes(folder, kind):
    benchmark = transfer_benchmark(kind(folder), kind(folder), labels_per_class=2)
    assert benchmark.classes == ["ant", "bee"]
    assert sorted(labels(benchmark.test_stream)) == [0] * 4 + [1] * 4
    image, label, _ = benchmark.test_stream[0].dataset[5]
    assert image.shape == (3, 8, 8) and label == 1
    torch.testing.assert_close(image, torch.full((3, 8, 8), (40 * 1 + 20) / 255))


def test_a_file_that_is_no_image_is_named_with_its_row(folder):
    (folder / "bee" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"row 6 .*2\.png cannot be read"):
        transfer_benchmark(folder, folder)


def test_folders_that_are_not_there_or_empty_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        transfer_benchmark(tmp_path / "missing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="one folder a class"):
        transfer_benchmark(tmp_path / "empty", tmp_path / "empty")


def test_bytes_stay_bytes_in_memory_and_come_as_floats():
    pixels = np.random.default_rng(0).integers(0, 255, (10, 5, 4, 3), dtype=np.uint8)
    read = read_images((pixels, np.arange(10) % 2))
    assert read.images.dtype == torch.uint8 and read.shape == (3, 5, 4)
    assert read[0][0].dtype == torch.float32 and read[0][0].max() <= 1
    assert read_images((pixels[..., 0], [0] * 10)).images.shape == (10, 1, 5, 4)
    benchmark = transfer_benchmark((pixels, np.arange(10) % 2), (pixels, np.arange(10) % 2))
    image = benchmark.train_stream[0].dataset[3][0]
    torch.testing.assert_close(image, torch.tensor(pixels[3]).permute(2, 0, 1) / 255)


def same(image):
    return image


@pytest.mark.parametrize("transforms", [{}, {"train_transform": same, "eval_transform": same}])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK", "LA", "RGBA", "PA", "I;16", "F"])
def test_pictures_of_every_mode_are_read_with_and_without_transforms(mode, transforms):
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 8), 65535, np.uint16))
    elif mode == "F":
        image = Image.fromarray(np.full((6, 8), 1, np.float32))
    else:
        white = Image.new("RGB", (8, 6), "white")
        image = white.convert("P").convert("PA") if mode == "PA" else white.convert(mode)
    assert image.mode == mode
    grey = mode in ("1", "L", "LA", "I;16", "F")
    assert torch.equal(both(image, **transforms), torch.ones(1 if grey else 3, 6, 8))


def test_pictures_may_be_a_list_beside_labels():
    image = Image.new("RGB", (8, 6), (200, 40, 90)).quantize(4)
    data = ([image] * 4, [0, 1, 0, 1])
    for benchmark in (
        transfer_benchmark(data, data),
        distillation_benchmark(data, data, unlabelled=data),
    ):
        found = benchmark.train_stream[0].dataset[1]
        wanted = (torch.tensor([200, 40, 90]) / 255).view(3, 1, 1).expand(3, 6, 8)
        torch.testing.assert_close(found[0], wanted, atol=1 / 255, rtol=0)
        assert found[1] == 1


@pytest.mark.parametrize("shape", [(3, 8, 6), (8, 6, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_arrays_as_items_may_have_channels_on_either_side(shape, dtype):
    array = np.full(shape, 51 if dtype == "uint8" else 0.2).astype(dtype)
    assert torch.equal(both(array), torch.full((3, 8, 6), 0.2))
    assert torch.equal(
        both(array, train_transform=lambda a: a[..., ::-1], eval_transform=None),
        torch.full((3, 8, 6), 0.2),
    )


def test_items_of_a_data_set_become_single_floats_with_a_channel(digits):
    x, y = digits(12)
    flat = TensorDataset(x[:, 0].double(), y)
    read = read_images(flat)
    assert read.images.dtype == torch.float32 and read.shape == (1, 8, 8)
    mixed = [((x[i] * 255).to(torch.uint8) if i % 2 else x[i], int(y[i])) for i in range(12)]
    assert float(read_images(mixed).images.max()) <= 1
    assert isinstance(read_images(TensorDataset(x, y)), LabelledImages)


def test_unlabelled_images_may_come_alone(digits):
    x, y = digits(12)
    for unlabelled in (x, (x, y), (x, y[:, None]), TensorDataset(x, y), list(x), x.numpy()):
        benchmark = distillation_benchmark((x, y), (x, y), unlabelled=unlabelled)
        assert len(benchmark.train_stream[0].dataset) == 24
    with pytest.raises(ValueError, match="no labels of theirs"):
        distillation_benchmark((x, y), (x, y), unlabelled=(x, x))
    with pytest.raises(ValueError, match="empty"):
        distillation_benchmark((x, y), (x, y), unlabelled=x[:0])


def test_opened_files_leave_no_name_behind(folder):
    """The folder's name is the class."""
    rows = tuple((Image.open(path), i % 2) for i, path in enumerate(sorted(folder.rglob("*.png"))))
    assert all("bee" in image.filename or "ant" in image.filename for image, _ in rows)
    kept = read_images(rows, keep_pil=True).images
    assert len(kept) == 8 and not any(hasattr(image, "filename") for image in kept)


def test_errors_in_a_row_have_its_number(digits):
    x, _ = digits(3)
    with pytest.raises(ValueError, match=r"row 0 of list.*keys \['image'\].*\(image, label\)"):
        read_images([{"image": x[0]}])


@pytest.mark.parametrize(("images", "message"), [
    (torch.rand(6, 8, 8, 3), "channels last"),
    (torch.zeros(6, 8, 8, 4, dtype=torch.uint8), "channels last"),
    (np.zeros((6, 8, 8, 5), dtype="float32"), "channels last"),
    ([np.zeros((8, 6, 2), dtype="float32")] * 6, "channels last"),
    (torch.zeros(6, 1, 8, 8, dtype=torch.int64), "uint8 or floats"),
])  # fmt: skip
def test_arrays_of_other_layouts_are_refused(digits, images, message):
    with pytest.raises(ValueError, match=message):
        transfer_benchmark((images, torch.arange(6) % 2), digits(6))


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((8, 8, 5), (5, 8, 8)),
        ((8, 6, 2), (2, 8, 6)),
        ((5, 8, 8), (5, 8, 8)),
        ((4, 8, 2), (4, 8, 2)),
        ((9, 5, 5), (9, 5, 5)),
    ],
)
def test_arrays_of_any_number_of_channels_have_them_first(shape, read):
    pixels = np.arange(2 * np.prod(shape)).reshape(2, *shape).astype(np.uint8)
    wanted = pixels if shape == read else pixels.transpose(0, 3, 1, 2)
    found = read_images((pixels, [0, 1])).images
    assert found.shape[1:] == read and np.array_equal(found.numpy(), wanted)
    assert read_images((torch.tensor(pixels), [0, 1])).shape == shape
    assert read_images(([torch.tensor(p) for p in pixels], [0, 1])).shape == shape


def test_avalanche_datasets_are_read_too(digits):
    inner = transfer_benchmark(digits(12), digits(12)).train_stream[0].dataset
    assert len(transfer_benchmark(inner, inner).train_stream[0].dataset) == 12


# ------------------------------------------------------------------ names of classes


def test_parts_and_joins_of_a_data_set_know_its_classes(folder):
    whole = ImageFolder(str(folder), ToTensor())
    part, more = Subset(whole, range(4)), ImageFolder(str(folder), ToTensor())
    taken = as_classification_dataset(whole)
    for data in (part, ConcatDataset([part, more]), Subset(part, [0]), taken, taken.subset([1, 5]),
                 taken.concat(as_classification_dataset(more)),
                 as_classification_dataset(whole, TransformGroups({"train": (Resize(4), None)}))
                 ):  # fmt: skip
        assert read_images(data).classes == ["ant", "bee"]


def test_names_of_classes_are_not_taken_where_labels_change_or_parts_differ(folder, digits):
    whole = ImageFolder(str(folder), ToTensor())
    changed = TransformGroups({"train": (None, lambda y: 1 - y)})
    assert read_images(as_classification_dataset(whole, changed)).classes is None
    other = ImageFolder(str(folder), ToTensor())
    other.classes = ["bee", "ant"]
    assert read_images(ConcatDataset([whole, other])).classes is None
    x, y = digits(6)
    assert read_images(Subset(TensorDataset(x, y), [0, 1])).classes is None


# ------------------------------------------------------------------ empty sets


class Nothing:
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


@pytest.mark.parametrize("empty", [
    lambda x, y: (x[:0], y[:0]),
    lambda x, y: (x[:0].numpy(), []),
    lambda x, y: Nothing(),
    lambda x, y: Subset(TensorDataset(x, y), []),
    lambda x, y: LabelledImages(x[:0], []),
    lambda x, y: transfer_benchmark((x, y), (x, y)).train_stream[0].dataset.subset([]),
], ids=["tensors", "arrays", "map-style", "subset", "images", "avalanche"])  # fmt: skip
def test_an_empty_set_is_named(digits, empty):
    good = digits(6)
    nothing = empty(*good)
    for make, name in (
        (lambda: transfer_benchmark(nothing, good), "target_train"),
        (lambda: transfer_benchmark(good, nothing), "target_test"),
        (lambda: transfer_benchmark([good, nothing], [good, good]), r"target_train\[1\]"),
        (lambda: transfer_benchmark([good, good], [nothing, good]), r"target_test\[0\]"),
        (lambda: transfer_benchmark(good, good, source_train=nothing), "source_train"),
        (lambda: distillation_benchmark(nothing, good), "train"),
        (lambda: distillation_benchmark(good, nothing), "test"),
        (lambda: distillation_benchmark(good, good, unlabelled=nothing), "unlabelled"),
        (lambda: adaptation_benchmark(nothing, good, good), "source_train"),
        (lambda: adaptation_benchmark(good, nothing, good), "target_train"),
        (lambda: adaptation_benchmark(good, good, nothing), "target_test"),
        (lambda: adaptation_benchmark(good, good, good, source_test=nothing), "source_test"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: the data set is empty"):
            make()


def test_every_error_about_a_set_says_which_argument_it_was(digits, tmp_path):
    good = digits(6)
    with pytest.raises(TypeError, match=r"^target_test\[1\]: .*got int"):
        transfer_benchmark([good, good], [good, 42])
    with pytest.raises(ValueError, match=r"^source_train: .*no such folder"):
        adaptation_benchmark(tmp_path / "no", good, good)
    with pytest.raises(ValueError, match=r"^unlabelled: .*no labels of theirs"):
        distillation_benchmark(good, good, unlabelled=(good[0], good[0]))


def test_names_of_labels_that_a_target_transform_changes_are_not_those_of_the_classes(tmp_path):
    for number, name in enumerate(("cat", "dog", "fox")):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("L", (8, 8), 80 * number).save(tmp_path / name / f"{i}.png")
    turned = ImageFolder(tmp_path, target_transform=lambda label: 2 - label)
    assert transfer_benchmark(turned, turned).classes is None
    with pytest.raises(ValueError, match="cat"):
        transfer_benchmark(turned, turned, classes=["cat", "dog"])
    assert transfer_benchmark(ImageFolder(tmp_path), tmp_path).classes == ["cat", "dog", "fox"]
