import gc

import numpy as np
import pytest
import torch
from sets import labels
from torchvision.transforms.functional import to_pil_image

from avalanche_cetl import adaptation_benchmark, distillation_benchmark, transfer_benchmark


def test_transfer_has_its_streams_and_counts(digits):
    train, test, other = digits(60), digits(30, seed=1), digits(24, seed=2)
    benchmark = transfer_benchmark(
        train, test, source_train=other, source_test=other, labels_per_class=4, seed=3
    )
    assert list(benchmark.streams) == ["train", "test", "labelled", "source", "source_test"]
    found = labels(benchmark.train_stream)
    assert len(found) == 60 and found.count(-1) == 48
    assert [found.count(c) for c in range(3)] == [4, 4, 4]
    assert labels(benchmark.test_stream) == test[1].tolist()
    labelled = benchmark.labelled_stream[0].dataset
    assert len(labelled) == 12 and -1 not in list(labelled.targets)
    experience = benchmark.train_stream[0]
    assert set(experience.dataset.domain_labels) == {0}
    assert set(benchmark.source_stream[0].dataset.domain_labels) == {1}
    assert experience.classes_in_this_experience == {0, 1, 2}
    assert experience.task_labels == [0]


def test_kept_labels_are_right_and_seeded(digits):
    images, classes = digits(60)
    rows = [
        labels(
            transfer_benchmark(
                (images, classes), (images, classes), labels_per_class=4, seed=s
            ).train_stream
        )
        for s in (0, 0, 1)
    ]
    assert rows[0] == rows[1] != rows[2]
    assert all(kept in (-1, true) for kept, true in zip(rows[0], classes.tolist(), strict=True))


def _reachable(root, seen=None):
    """Everything that a Python object refers to, however deep."""
    seen = {} if seen is None else seen
    stack = [root]
    while stack:
        thing = stack.pop()
        if (
            id(thing) in seen
            or isinstance(thing, type)
            or (callable(thing) and not hasattr(thing, "__dict__"))
        ):
            continue
        seen[id(thing)] = thing
        if type(thing).__name__ in ("module", "function", "builtin_function_or_method", "frame"):
            continue
        stack.extend(gc.get_referents(thing))
    return list(seen.values())


def _holds_the_labels(root, labels):
    wanted = labels.tolist()
    for thing in _reachable(root):
        if isinstance(thing, torch.Tensor | np.ndarray):
            if tuple(thing.shape) == tuple(labels.shape) and np.array_equal(thing, labels):
                return True
        elif isinstance(thing, list | tuple) and len(thing) == len(wanted):
            numbers = all(isinstance(v, int) for v in thing)
            if numbers and list(thing) == wanted:
                return True
    return False


class _Folder:
    """A data set that keeps its labels in an attribute, as torchvision's do."""

    def __init__(self, images, labels):
        self.data = [to_pil_image(image) for image in images]
        self.targets = labels.clone()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.data[i], int(self.targets[i])


@pytest.mark.parametrize("kind", ["tensors", "arrays", "map-style"])
def test_hidden_labels_are_absent_from_the_training_stream(digits, kind):
    images, labels = digits(120)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    data = {
        "tensors": lambda: (images, labels),
        "arrays": lambda: (images.numpy(), labels.numpy()),
        "map-style": lambda: _Folder(images, labels),
    }[kind]()
    assert _holds_the_labels(data, labels), "the search itself has to find them"
    test = digits(30, seed=5)
    for benchmark in (
        transfer_benchmark(data, test, labels_per_class=2),
        adaptation_benchmark(digits(33, seed=4), data, test),
    ):
        dataset = benchmark.train_stream[0].dataset
        assert not _holds_the_labels(dataset, labels)
        assert [dataset[i][1] for i in range(120)] == [int(t) for t in dataset.targets][:120]
        assert sum(dataset[i][1] >= 0 for i in range(120)) in (0, 6)


def test_adaptation_has_its_streams(digits):
    source, target, test = digits(45, seed=1), digits(60), digits(30, seed=2)
    benchmark = adaptation_benchmark(source, target, test, source_test=digits(9, seed=3))
    assert list(benchmark.streams) == ["train", "test", "source", "source_test"]
    dataset = benchmark.train_stream[0].dataset
    domains = [int(d) for d in dataset.domain_labels]
    assert domains == [0] * 60 + [1] * 45
    assert labels(benchmark.train_stream) == [-1] * 60 + source[1].tolist()
    torch.testing.assert_close(dataset[61][0], source[0][1])


def test_adaptation_may_have_labels_and_test_images(digits):
    test = digits(30, seed=2)
    benchmark = adaptation_benchmark(
        digits(45, seed=1), digits(60), test, labels_per_class=2, transductive=True
    )
    found = labels(benchmark.train_stream)
    assert len(found) == 60 + 30 + 45
    assert sum(label >= 0 for label in found[:60]) == 6
    assert found[60:90] == [-1] * 30
    assert len(benchmark.labelled_stream[0].dataset) == 6


def test_class_subsets_are_remapped(digits):
    benchmark = adaptation_benchmark(digits(45), digits(60), digits(30), classes=[2, 0])
    assert set(labels(benchmark.test_stream)) == {0, 1}
    assert len(benchmark.test_stream[0].dataset) == 20
    with pytest.raises(ValueError, match="do not occur"):
        adaptation_benchmark(digits(45), digits(60), digits(30), classes=[0, 8])


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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda d: transfer_benchmark((d[0], d[1] * 0), d), ValueError, "one class only"),
        (lambda d: transfer_benchmark((d[0], d[1] + 1), d), ValueError, "start at 1"),
        (lambda d: adaptation_benchmark((d[0], d[1] + 2), d, d), ValueError, "start at 2"),
        (lambda d: transfer_benchmark((d[0], d[1] - 2), d), ValueError, "class indices from 0"),
        (lambda d: transfer_benchmark((d[0], d[1][:-1]), d), ValueError, "but 11 labels"),
        (lambda d: transfer_benchmark(42, d), TypeError, "got int"),
        (lambda d: transfer_benchmark((torch.zeros(3, 2), [0, 1, 2]), d), ValueError, "N, C, H"),
        (lambda d: transfer_benchmark([], []), ValueError, "0 training sets"),
        (lambda d: transfer_benchmark(d, d, labels_per_class=0), ValueError, "leaves no label"),
        (lambda d: distillation_benchmark(d, d, labels_per_class=0), ValueError, "leaves no label"),
        (lambda d: transfer_benchmark(d, d, labels_per_class=5), ValueError, "fewer than 5"),
        (
            lambda d: transfer_benchmark(d, d, labelled_fraction=0.0),
            ValueError,
            r"outside \(0, 1\]",
        ),
        (lambda d: transfer_benchmark(d, d, labelled_fraction=1.01), ValueError, "outside"),
        (
            lambda d: transfer_benchmark(d, d, labels_per_class=2, labelled_fraction=0.5),
            ValueError,
            "not both",
        ),
        (lambda d: transfer_benchmark(d, d, classes=[]), ValueError, r"classes=\[\]"),
        (lambda d: transfer_benchmark(d, d, fit="crop"), ValueError, "fit='crop'"),
        (
            lambda d: transfer_benchmark((d[0].repeat(1, 4, 1, 1), d[1]), d, image_shape=(2, 4, 4)),
            ValueError,
            "images of 4 channels cannot become images of 2",
        ),
    ],
)
def test_data_and_arguments_that_do_not_fit_are_one_clear_error(digits, make, error, message):
    with pytest.raises(error, match=message):
        make(digits(12))


def test_rows_without_a_label_train_but_do_not_test(digits):
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


def test_an_experience_with_all_labels_stays_in_the_labelled_stream(digits):
    benchmark = transfer_benchmark(
        [digits(6), digits(30)], [digits(6), digits(6)], labels_per_class=2
    )
    assert [len(e.dataset) for e in benchmark.labelled_stream] == [6, 6]
    assert [e.current_experience for e in benchmark.labelled_stream] == [0, 1]
