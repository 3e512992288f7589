"""Inputs, shapes, classes, several targets, summaries; hypothesis over splits."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from avalanche_cetl import (
    adaptation_benchmark,
    distillation_benchmark,
    plot_benchmark,
    transfer_benchmark,
)
from avalanche_cetl.scenarios.domains import choose_classes, fit
from avalanche_cetl.scenarios.images import LabelledImages, read_images
from avalanche_cetl.scenarios.labels import choose_labelled


def labels(stream, experience=0):
    return [int(t) for t in stream[experience].dataset.targets]


def rgb(rows=12, size=(6, 10), classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, *size, generator=generator), torch.arange(rows) % classes


@pytest.fixture
def folder(tmp_path):
    for name in ("bee", "ant"):
        for number in range(4):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 3), 40 * number + 20 * (name == "bee"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


# ------------------------------------------------------------------ inputs


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_folder_of_images(folder, kind):
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


def test_folders_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        transfer_benchmark(tmp_path / "missing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="one folder a class"):
        transfer_benchmark(tmp_path / "empty", tmp_path / "empty")


def test_bytes_stay_bytes_in_memory_and_come_as_floats():
    pixels = np.random.default_rng(0).integers(0, 255, (10, 5, 4, 3), dtype=np.uint8)
    read = read_images((pixels, np.arange(10) % 2))
    assert read.images.dtype == torch.uint8 and read.shape == (3, 5, 4)
    benchmark = transfer_benchmark((pixels, np.arange(10) % 2), (pixels, np.arange(10) % 2))
    image = benchmark.train_stream[0].dataset[3][0]
    torch.testing.assert_close(image, torch.tensor(pixels[3]).permute(2, 0, 1) / 255)


# ------------------------------------------------------------------ shapes


def test_domains_meet_in_the_targets_size_and_in_colour(digits):
    benchmark = adaptation_benchmark(rgb(), digits(30), digits(12))
    for stream in benchmark.streams.values():
        for row in stream[0].dataset:
            assert row[0].shape == (3, 8, 8)
    other = adaptation_benchmark(digits(30), rgb(), rgb())
    assert other.train_stream[0].dataset[0][0].shape == (3, 6, 10)


def test_a_named_shape_and_grey_by_luma(digits):
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


# ------------------------------------------------------------------ ranges


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


# ------------------------------------------------------------------ items of data sets


def both(image, **transforms):
    """The first image of a benchmark whose rows are all this one."""
    rows = [(image, i % 2) for i in range(4)]
    return transfer_benchmark(tuple(rows), tuple(rows), **transforms).train_stream[0].dataset[0][0]


def same(image):
    return image


@pytest.mark.parametrize("transforms", [{}, {"train_transform": same, "eval_transform": same}])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK", "LA", "RGBA", "PA", "I;16", "F"])
def test_pictures_of_every_mode_with_and_without_transforms(mode, transforms):
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


def test_a_list_of_pictures_beside_labels():
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


@pytest.mark.parametrize("shape", [(3, 8, 6), (8, 6, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_arrays_as_items_with_channels_on_either_side(shape, dtype):
    array = np.full(shape, 51 if dtype == "uint8" else 0.2).astype(dtype)
    assert torch.equal(both(array), torch.full((3, 8, 6), 0.2))
    assert torch.equal(
        both(array, train_transform=lambda a: a[..., ::-1], eval_transform=None),
        torch.full((3, 8, 6), 0.2),
    )


# ------------------------------------------------------------------ classes


def named(names, rows=12):
    data = LabelledImages(torch.rand(rows, 1, 4, 4), [i % len(names) for i in range(rows)], names)
    return data


def test_classes_by_name_whatever_their_numbers(digits):
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
def test_classes_that_are_not_there(classes, message):
    with pytest.raises(ValueError, match=message):
        choose_classes(named(["cat", "ship"]), classes)


def test_names_need_a_set_that_knows_them(digits):
    with pytest.raises(ValueError, match="does not know its classes' names"):
        transfer_benchmark(digits(12), digits(12), classes=["cat"])


# ------------------------------------------------------------------ several targets


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


# ------------------------------------------------------------------ distillation


def test_distillation_keeps_all_labels_and_takes_more_images(digits):
    benchmark = distillation_benchmark(digits(30), digits(12))
    assert list(benchmark.streams) == ["train", "test", "labelled"]
    assert -1 not in labels(benchmark.train_stream)
    for more in (digits(9, seed=4), digits(9, seed=4)[0], digits(9, seed=4)[0].numpy()):
        benchmark = distillation_benchmark(
            digits(30), digits(12), unlabelled=more, labelled_fraction=0.2
        )
        found = labels(benchmark.train_stream)
        assert len(found) == 39 and found[30:] == [-1] * 9 and found.count(-1) == 24 + 9
        assert set(benchmark.train_stream[0].dataset.domain_labels) == {0}
        assert len(benchmark.labelled_stream[0].dataset) == 6


# ------------------------------------------------------------------ summary and picture


def test_the_summary_counts_what_is_there(digits):
    benchmark = adaptation_benchmark(
        digits(45), digits(60), digits(30), labels_per_class=2, source_test=digits(9)
    )
    lines = benchmark.summary().splitlines()
    cells = {tuple(line.split()[:3]): line.split()[3:] for line in lines[1:]}
    assert cells["train", "0", "target"] == ["60", "6", "(10", "%)", "3", "1x8x8"]
    assert cells["train", "0", "source"] == ["45", "45", "(100", "%)", "3", "1x8x8"]
    assert cells["source_test", "0", "source"][0] == "9" and len(lines) == 7


def test_the_contact_sheet_has_a_row_of_every_part(digits, tmp_path):
    benchmark = adaptation_benchmark(rgb(12, (8, 8)), digits(30), digits(2))
    figure = plot_benchmark(benchmark, count=4)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(figure.axes) == 4 * 4 and len(drawn) == 4 * 4 - 2
    assert "?" in {axes.get_title() for axes in drawn}
    figure.savefig(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 2000
    with pytest.raises(ValueError, match="count=0"):
        plot_benchmark(benchmark, count=0)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: transfer_benchmark((d[0], d[1] * 0), d), "one class only"),
        (lambda d: transfer_benchmark((d[0], d[1] + 1), d), "start at 1"),
        (lambda d: transfer_benchmark(d, d, labelled_fraction=0.0), r"outside \(0, 1\]"),
        (lambda d: transfer_benchmark(d, d, labelled_fraction=1.01), r"outside \(0, 1\]"),
        (lambda d: transfer_benchmark(d, d, labels_per_class=0), "leaves no label"),
        (lambda d: transfer_benchmark(d, d, labels_per_class=5), "fewer than 5"),
        (lambda d: transfer_benchmark([], []), "0 training sets"),
        (lambda d: transfer_benchmark(d, d, image_shape=(1, 4, 4), fit="crop"), "crop"),
        (lambda d: transfer_benchmark(d, d, image_shape=(2, 4, 4)), "channels"),
        (lambda d: distillation_benchmark(d, d, labels_per_class=0), "leaves no label"),
        (lambda d: adaptation_benchmark((d[0], d[1] + 2), d, d), "start at 2"),
    ],
)
def test_bad_input_is_one_clear_error(digits, make, message):
    digits = digits(12)
    if "channels" in message:
        digits = (digits[0].repeat(1, 4, 1, 1), digits[1])
    with pytest.raises(ValueError, match=message):
        make(digits)


# ------------------------------------------------------------------ properties


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**31),
)
def test_splits_are_stratified_disjoint_and_lose_no_class(counts, fraction, seed):
    targets = [label for label, count in enumerate(counts) for _ in range(count)]
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed)).tolist()
    targets = [targets[i] for i in order]
    kept = choose_labelled(targets, None, fraction, seed)
    assert kept == sorted(set(kept)) and set(kept) <= set(range(len(targets)))
    for label, count in enumerate(counts):
        found = sum(targets[i] == label for i in kept)
        assert found >= 1 and abs(found - fraction * count) <= 1
    assert kept == choose_labelled(targets, None, fraction, seed)
    images = (torch.arange(len(targets)) / 1000).view(-1, 1, 1, 1)
    benchmark = transfer_benchmark((images, targets), (images, targets), labelled_fraction=fraction)
    dataset = benchmark.train_stream[0].dataset
    assert [round(1000 * float(row[0])) for row in dataset] == list(range(len(targets)))
    known = {i for i, label in enumerate(dataset.targets) if label >= 0}
    assert all(dataset.targets[i] == targets[i] for i in known)
    labelled = benchmark.labelled_stream[0].dataset
    assert {round(1000 * float(row[0])) for row in labelled} == known


def test_splits_are_the_same_in_another_process(partners):
    partners.start(
        """
        from avalanche_cetl.scenarios.labels import choose_labelled
        print(choose_labelled([i % 7 for i in range(300)], None, 0.13, 42))
        """
    )
    (found,) = partners.succeed()
    assert json.loads(found) == choose_labelled([i % 7 for i in range(300)], None, 0.13, 42)


def test_benchmarks_pickle(digits):
    benchmark = adaptation_benchmark(digits(30), digits(30), digits(30))
    copied = pickle.loads(pickle.dumps(benchmark.train_stream[0].dataset))
    assert torch.equal(copied[31][0], benchmark.train_stream[0].dataset[31][0])


# ------------------------------------------------------------------ what must not pass silently


def counted(count, names, digits, seed=0):
    """Rows whose labels count the given names."""
    images, labels = digits(count, classes=len(names), size=12, seed=seed)
    return LabelledImages(images, labels.tolist(), names)


def test_sets_that_count_their_classes_differently(digits):
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
    lambda d: adaptation_benchmark(d(12), (d(12)[0], d(12)[1] + 1), d(12)),
    lambda d: adaptation_benchmark(d(12), d(12), (d(12)[0], d(12)[1] + 1)),
    lambda d: adaptation_benchmark(d(12), d(12), d(12), source_test=(d(12)[0], d(12)[1] + 1)),
])  # fmt: skip
def test_labels_that_are_never_trained_on(digits, make):
    with pytest.raises(ValueError, match=r"has the labels \[3\]"):
        make(digits)


def test_rows_that_come_without_a_label(digits):
    x, y = digits(12)
    some = torch.where(torch.arange(12) < 6, y, -1)
    benchmark = transfer_benchmark((x, some), digits(12))
    assert len(benchmark.labelled_stream[0].dataset) == 6
    none = adaptation_benchmark(digits(12), (x, torch.full((12,), -1)), digits(12), classes=[0, 2])
    assert len(none.train_stream[0].dataset) == 12 + 8
    with pytest.raises(ValueError, match="rows without a label"):
        transfer_benchmark(digits(12), (x, some))
    with pytest.raises(ValueError, match="has no label"):
        transfer_benchmark((x, torch.full((12,), -1)), digits(12))


@pytest.mark.parametrize("make", [transfer_benchmark, distillation_benchmark])
def test_where_no_label_is_hidden_the_labelled_rows_are_the_training_rows(digits, make):
    sets = [digits(12), digits(9, seed=1)]
    whole = make(sets, sets)
    for train, labelled in zip(whole.train_stream, whole.labelled_stream, strict=True):
        assert list(labelled.dataset.targets) == list(train.dataset.targets)
        assert labelled.classes_in_this_experience == {0, 1, 2}
        for row in range(len(train.dataset)):
            assert torch.equal(labelled.dataset[row][0], train.dataset[row][0])
            assert labelled.dataset[row][0].data_ptr() == train.dataset[row][0].data_ptr()


def test_images_without_a_label_are_not_among_the_labelled_rows(digits):
    benchmark = distillation_benchmark(digits(12), digits(12), unlabelled=digits(6)[0])
    assert len(benchmark.train_stream[0].dataset) == 18
    assert labels(benchmark.labelled_stream) == [0, 1, 2] * 4


def test_without_a_labelled_target_row_the_missing_stream_is_explained(digits):
    benchmark = adaptation_benchmark(digits(12), digits(12), digits(12))
    assert not hasattr(benchmark, "labelled_stream")
    with pytest.raises(AttributeError, match="none of its target training rows has a label"):
        _ = benchmark.labelled_stream
    with pytest.raises(AttributeError, match="no attribute 'other_stream'"):
        _ = benchmark.other_stream
    assert pickle.loads(pickle.dumps(benchmark)).classes is None


def test_an_experience_with_all_labels_stays_in_the_labelled_stream(digits):
    benchmark = transfer_benchmark(
        [digits(6), digits(30)], [digits(6), digits(6)], labels_per_class=2
    )
    assert [len(e.dataset) for e in benchmark.labelled_stream] == [6, 6]
    assert [e.current_experience for e in benchmark.labelled_stream] == [0, 1]


@pytest.mark.parametrize(("images", "message"), [
    (torch.rand(6, 8, 8, 3), "channels last"),
    (torch.zeros(6, 8, 8, 4, dtype=torch.uint8), "channels last"),
    (torch.zeros(6, 1, 8, 8, dtype=torch.int64), "uint8 or floats"),
])  # fmt: skip
def test_arrays_of_other_layouts(digits, images, message):
    with pytest.raises(ValueError, match=message):
        transfer_benchmark((images, torch.arange(6) % 2), digits(6))


def test_items_of_a_data_set_become_single_floats_with_a_channel(digits):
    x, y = digits(12)
    flat = TensorDataset(x[:, 0].double(), y)
    read = read_images(flat)
    assert read.images.dtype == torch.float32 and read.shape == (1, 8, 8)
    mixed = [((x[i] * 255).to(torch.uint8) if i % 2 else x[i], int(y[i])) for i in range(12)]
    assert float(read_images(mixed).images.max()) <= 1


def test_unlabelled_images_alone(digits):
    x, y = digits(12)
    for unlabelled in (x, (x, y), (x, y[:, None]), TensorDataset(x, y), list(x), x.numpy()):
        benchmark = distillation_benchmark((x, y), (x, y), unlabelled=unlabelled)
        assert len(benchmark.train_stream[0].dataset) == 24
    with pytest.raises(ValueError, match="no labels of theirs"):
        distillation_benchmark((x, y), (x, y), unlabelled=(x, x))
    with pytest.raises(ValueError, match="empty"):
        distillation_benchmark((x, y), (x, y), unlabelled=x[:0])


def test_pictures_become_tensors_where_no_transform_follows(folder):
    benchmark = transfer_benchmark(folder, folder, train_transform=v2.RandomHorizontalFlip())
    for dataset in (benchmark.test_stream[0].dataset, benchmark.train_stream[0].dataset):
        for image in (dataset.train()[0][0], dataset.eval()[0][0]):
            assert isinstance(image, torch.Tensor) and image.dtype == torch.float32
    pickle.dumps(benchmark)


def test_opened_files_leave_no_name_behind(folder):
    """The folder's name is the class."""
    rows = tuple((Image.open(path), i % 2) for i, path in enumerate(sorted(folder.rglob("*.png"))))
    assert all("bee" in image.filename or "ant" in image.filename for image, _ in rows)
    kept = read_images(rows, keep_pil=True).images
    assert len(kept) == 8 and not any(hasattr(image, "filename") for image in kept)


def test_whatever_is_wrong_with_a_row_is_told_with_its_number(digits):
    x, _ = digits(3)
    for bad in ("cat", float("nan"), 1.5, -2):
        with pytest.raises(ValueError, match="row 2 of list"):
            read_images([(x[0], 0), (x[1], 1), (x[2], bad)])
    with pytest.raises(ValueError, match="row 0 of list"):
        read_images([{"image": x[0]}])


@pytest.mark.parametrize(("make", "message"), [
    (lambda d: adaptation_benchmark(d(6), d(6), d(6), labels_per_class=None), "per_class=None"),
    (lambda d: transfer_benchmark(d(6), d(6), classes=[]), r"classes=\[\]"),
    (lambda d: transfer_benchmark(d(6), d(6), fit="crop"), "fit='crop'"),
])  # fmt: skip
def test_arguments_that_ask_for_nothing(digits, make, message):
    with pytest.raises(ValueError, match=message):
        make(digits)
