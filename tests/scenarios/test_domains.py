"""Sets of different size, colour, range and classes meet, or are refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from sets import labels, rgb
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from avalanche_cetl import (
    adaptation_benchmark,
    distillation_benchmark,
    plot_benchmark,
    transfer_benchmark,
)
from avalanche_cetl.scenarios.domains import choose_classes, fit
from avalanche_cetl.scenarios.images import LabelledImages


def test_domains_meet_in_the_targets_size_and_in_colour(digits):
    benchmark = adaptation_benchmark(rgb(), digits(30), digits(12))
    for stream in benchmark.streams.values():
        for row in stream[0].dataset:
            assert row[0].shape == (3, 8, 8)
    other = adaptation_benchmark(digits(30), rgb(), rgb())
    assert other.train_stream[0].dataset[0][0].shape == (3, 6, 10)


def test_colour_becomes_grey_by_luma_in_a_named_shape(digits):
    source = rgb()
    benchmark = adaptation_benchmark(source, digits(30), digits(12), image_shape=(1, 6, 10))
    image = benchmark.source_stream[0].dataset[4][0]
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close(image, (source[0][4] * weights).sum(0, keepdim=True))


def test_padding_keeps_the_aspect_and_centres():
    data = LabelledImages(torch.ones(2, 1, 4, 8), [0, 1])
    padded = fit(data, (1, 9, 12), "pad").images
    assert padded.shape == (2, 1, 9, 12) and padded.sum() == 2 * 32
    assert padded[0, 0, 2:6, 2:10].min() == 1
    shrunk = fit(data, (1, 4, 4), "pad").images
    assert shrunk.shape == (2, 1, 4, 4) and shrunk[0, 0, 1:3].min() == 1
    assert shrunk[0, 0, 0].max() == 0


def test_resizing_is_antialiased_bilinear():
    data = LabelledImages(torch.rand(3, 1, 12, 12), [0, 1, 0])
    wanted = torch.nn.functional.interpolate(data.images, (5, 5), mode="bilinear", antialias=True)
    assert torch.equal(fit(data, (1, 5, 5), "resize").images, wanted)


def test_images_of_mixed_size_need_a_shape(digits):
    class Mixed:
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return Image.new("L", (8 + i, 8), 10 * i), i % 2

    with pytest.raises(ValueError, match=r"several shapes.*image_shape="):
        transfer_benchmark(Mixed(), Mixed())
    benchmark = transfer_benchmark(Mixed(), Mixed(), image_shape=(1, 8, 8))
    assert benchmark.train_stream[0].dataset[5][0].shape == (1, 8, 8)
    resized = transfer_benchmark(
        Mixed(), Mixed(), train_transform=lambda i: i.resize((4, 4)), eval_transform=lambda i: i
    )
    assert resized.train_stream[0].dataset[5][0].shape == (1, 4, 4)


def bytes_as_floats():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8))).float()


def test_bytes_as_floats_are_refused_before_training():
    x, y = bytes_as_floats(), torch.arange(12) % 2
    good = (x / 255, y)
    for make in (
        lambda: transfer_benchmark((x, y), good),
        lambda: transfer_benchmark(good, (x, y)),
        lambda: transfer_benchmark(TensorDataset(x, y), good),
        lambda: distillation_benchmark(good, good, unlabelled=x),
        lambda: adaptation_benchmark((x, y), good, good),
        lambda: transfer_benchmark(good, (x, y), train_transform=v2.RandomHorizontalFlip()),
    ):
        with pytest.raises(ValueError, match=r"floats from 0 to 255.*divide them by 255"):
            make()


def test_floats_far_above_one_are_warned_of():
    x, y = bytes_as_floats() * 0.99, torch.arange(12) % 2
    with pytest.warns(UserWarning, match=r"'train 0' have values from 0 to 252"):
        transfer_benchmark((x, y), (x, y))


@pytest.mark.filterwarnings("error")
def test_standardised_floats_and_those_that_a_transform_scales_are_right():
    x, y = bytes_as_floats(), torch.arange(12) % 2
    standardised = (x - x.mean()) / x.std()
    benchmark = transfer_benchmark((standardised, y), (standardised, y))
    assert torch.equal(benchmark.train_stream[0].dataset[3][0], standardised[3])
    scale = v2.Normalize([0.0] * 3, [255.0] * 3)
    scaled = transfer_benchmark((x, y), (x, y), train_transform=scale, eval_transform=scale)
    torch.testing.assert_close(scaled.train_stream[0].dataset[3][0], x[3] / 255)


def test_images_that_are_not_finite_are_refused(digits):
    x, y = digits(12)
    x[5, 0, 2, 2] = float("nan")
    with pytest.raises(ValueError, match=r"'train 0'.*not finite"):
        transfer_benchmark((x, y), digits(12))


def named(names, rows=12):
    data = LabelledImages(torch.rand(rows, 1, 4, 4), [i % len(names) for i in range(rows)], names)
    return data


def test_classes_are_chosen_by_name_whatever_their_numbers(digits):
    benchmark = adaptation_benchmark(
        named(["ship", "cat", "automobile"]), named(["car", "cat", "frog", "ship"]),
        named(["cat", "car", "ship"]), classes=["car|automobile", "ship"],
    )  # fmt: skip
    assert benchmark.classes == ["car", "ship"]
    assert labels(benchmark.source_stream) == [1, 0] * 4
    assert labels(benchmark.test_stream) == [0, 1] * 4
    assert len(benchmark.train_stream[0].dataset) == 6 + 8


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog"], "'dog' is not among"),
        (["cat", "cat"], "named twice"),
        ([0, 7], "do not occur"),
    ],
)
def test_classes_that_are_not_there_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        choose_classes(named(["cat", "ship"]), classes)


def test_a_class_without_a_name_has_its_number():
    data = LabelledImages(torch.rand(6, 1, 4, 4), [0, 1, 2] * 2, ["cat", "ship"])
    assert choose_classes(data, [2, 0]).classes == ["2", "cat"]


def test_names_of_classes_need_a_set_that_has_them(digits):
    with pytest.raises(ValueError, match="does not know its classes' names"):
        transfer_benchmark(digits(12), digits(12), classes=["cat"])


def counted(count, names, digits, seed=0):
    """Rows whose labels count the given names."""
    images, labels = digits(count, classes=len(names), size=12, seed=seed)
    return LabelledImages(images, labels.tolist(), names)


def test_sets_that_number_their_classes_differently_are_refused(digits):
    animals, fewer = ["cat", "dog", "horse"], ["cat", "horse"]
    with pytest.raises(ValueError, match=r"'horse' is number 2 .* and 1 in another"):
        transfer_benchmark(counted(30, animals, digits), counted(20, fewer, digits))
    with pytest.raises(ValueError, match="'horse'"):
        adaptation_benchmark(
            counted(20, fewer, digits), counted(30, animals, digits), counted(30, animals, digits)
        )
    both = transfer_benchmark(
        counted(30, animals, digits), counted(20, fewer, digits), classes=["horse", "cat"]
    )
    assert both.classes == ["horse", "cat"]
    targets = [counted(30, animals, digits), counted(20, fewer, digits)]
    with pytest.raises(ValueError, match="the targets"):
        transfer_benchmark(targets, targets)
    heads = transfer_benchmark(targets, targets, task_labels=True)
    assert len(heads.train_stream) == 2


def test_source_classes_are_their_own_in_transfer(digits):
    benchmark = transfer_benchmark(
        counted(20, ["cat", "dog"], digits),
        counted(20, ["cat", "dog"], digits),
        source_train=counted(30, ["a", "b", "c"], digits),
    )
    assert benchmark.source_classes == ["a", "b", "c"] and benchmark.classes == ["cat", "dog"]
    titles = [axis.get_title() for axis in plot_benchmark(benchmark).axes]
    assert set(titles[-10:]) == {"a", "b", "c"} and "c" not in titles[:-10]


@pytest.mark.parametrize("make", [
    lambda d: transfer_benchmark(d(12), (d(12)[0], d(12)[1] + 1)),
    lambda d: distillation_benchmark(d(12), (d(12)[0], d(12)[1] + 1)),
    lambda d: adaptation_benchmark(
        d(12), (d(12)[0], d(12)[1] + 1), d(12), labels_per_class=1
    ),
    lambda d: adaptation_benchmark(d(12), d(12), (d(12)[0], d(12)[1] + 1)),
    lambda d: adaptation_benchmark(d(12), d(12), d(12), source_test=(d(12)[0], d(12)[1] + 1)),
])  # fmt: skip
def test_labels_that_are_never_trained_on_are_refused(digits, make):
    with pytest.raises(ValueError, match=r"has the labels \[3\]"):
        make(digits)


@pytest.mark.parametrize(("source", "where"), [
    (True, "the source training data"), (False, "the target test data"),
])  # fmt: skip
def test_an_unknown_label_says_where_it_is_missing(digits, source, where):
    other = digits(12)
    shifted = other[0], other[1] + 1
    with pytest.raises(ValueError, match=rf"do not occur in {where}: there are \[0, 1, 2\]"):
        adaptation_benchmark(other if source else None, shifted, other, labels_per_class=1)


# ------------------------------------------------------------------ classes by their names


@pytest.mark.parametrize(("make", "message"), [
    (lambda a, b: transfer_benchmark(a([0, 1, 0, 1]), b([0, 1, 2, 1])),
     r"\['cow' \(2\)\].*there are \['ant' \(0\), 'bee' \(1\)\]"),
    (lambda a, b: transfer_benchmark(b([1, 2, 1, 2]), a([1, 2, 1, 2])), r"start at 'bee' \(1\)"),
    (lambda a, b: transfer_benchmark(b([0, 0, 0, 0]), a([0] * 4)), r"one class only, 'ant' \(0\)"),
    (lambda a, b: transfer_benchmark(b([0, 1] * 2), a([0, 1] * 2), classes=[0, 2]),
     r"target_train: classes \['cow' \(2\)\] do not occur"),
    (lambda a, b: transfer_benchmark(b([0, 1] * 2), a([0, 1] * 2), classes=["ant", 0]),
     r"the class 'ant' \(0\) is named twice"),
    (lambda a, b: adaptation_benchmark(
        a([0, 1, 0, 1]), b([0, 1, 2, 1]), b([0, 1, 0, 1]), labels_per_class=1),
     r"\['cow' \(2\)\], which do not occur in the source training data"),
])  # fmt: skip
def test_errors_name_a_class_where_it_has_a_name(make, message):
    """By whichever of the sets has the names."""

    def without(targets):
        return LabelledImages(torch.rand(4, 1, 4, 4), targets)

    def with_names(targets):
        return LabelledImages(torch.rand(4, 1, 4, 4), targets, ["ant", "bee", "cow"])

    with pytest.raises(ValueError, match=message):
        make(without, with_names)


def test_classes_chosen_by_index_keep_their_names():
    data = named(["ant", "bee", "cow"])
    assert transfer_benchmark(data, data, classes=[2, 0]).classes == ["cow", "ant"]
    plain = LabelledImages(data.images, data.targets)
    assert transfer_benchmark(plain, plain, classes=[2, 0]).classes == ["2", "0"]
    mixed = adaptation_benchmark(plain, data, plain, classes=[2, 0])
    assert mixed.classes == ["cow", "ant"] and mixed.source_classes is None


@pytest.mark.parametrize(("classes", "error", "message"), [
    ("cat", TypeError, r"classes='cat' has to be a list.*\['cat'\]"),
    ([0, 1.5], ValueError, "class indices from 0"),
    ([0, -1], ValueError, "-1 stands for rows without a label"),
])  # fmt: skip
def test_classes_that_are_no_classes_are_refused(classes, error, message):
    with pytest.raises(error, match=message):
        choose_classes(named(["cat", "ship"]), classes)


def test_a_number_with_two_names_is_told(recwarn):
    def of(names):
        return LabelledImages(torch.rand(4, 1, 4, 4), [0, 1, 0, 1], names)

    def told():
        texts = [str(one.message) for one in recwarn]
        recwarn.clear()
        return [text for text in texts if "they are taken for one" in text]

    transfer_benchmark(of(["cat", "dog"]), of(["Cat", "dog"]))
    transfer_benchmark(of(["cat", "dog"]), of(None))
    one, other = of(["cat", "dog"]), of(["bird", "fish"])
    transfer_benchmark([one, other], [one, other], task_labels=True)
    assert not told()
    transfer_benchmark(of(["healthy", "sick"]), of(["ill", "normal"]))
    (text,) = told()
    assert "class 0 is 'healthy' in one part of the targets and 'ill' in" in text
    transfer_benchmark([one, other], [one, other])
    (text,) = told()
    assert "task_labels=True" in text


def test_labels_of_the_target_are_not_read_where_none_is_kept(digits):
    source, test = digits(12), digits(12)
    cameras = LabelledImages(torch.rand(6, 1, 8, 8), [0, 1, 2] * 2, ["cam1", "cam2", "cam3"])
    named = LabelledImages(source[0], source[1].tolist(), ["ant", "bee", "cow"])
    for target in (cameras, torch.rand(6, 1, 8, 8), (torch.rand(6, 1, 8, 8), ["?"] * 6)):
        made = adaptation_benchmark(named, target, test)
        assert labels(made.train_stream)[:6] == [-1] * 6
        assert made.classes == ["ant", "bee", "cow"]
        alone = adaptation_benchmark(None, target, test)
        assert labels(alone.train_stream) == [-1] * 6


@pytest.mark.parametrize("make", [
    lambda known, none: transfer_benchmark([known, none], [known, known]),
    lambda known, none: adaptation_benchmark(
        known, [known, none], [known, known], labels_per_class=1),
])  # fmt: skip
def test_an_experience_without_any_label_is_named(digits, make):
    images, known = digits(12)
    with pytest.raises(ValueError, match=r"target_train\[1\] has no label .* and 12 images"):
        make((images, known), (images, torch.full((12,), -1)))
    with pytest.raises(ValueError, match=r"target_train has no label"):
        none = images, torch.full((12,), -1)
        adaptation_benchmark((images, known), none, (images, known), labels_per_class=1)
