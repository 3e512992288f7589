import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_cetl import adaptation_benchmark, distillation_benchmark, transfer_benchmark
from avalanche_cetl.scenarios.images import LabelledImages, read_images
from avalanche_cetl.scenarios.labels import choose_labelled, class_indices

KINDS = [
    list,
    tuple,
    np.array,
    torch.tensor,
    lambda v: np.array(v, float),
    lambda v: torch.tensor(v).double(),
]


@pytest.mark.parametrize("kind", KINDS)
def test_class_indices_may_be_of_every_kind(kind):
    found = class_indices(kind([0, 2, -1, 1]))
    assert found == [0, 2, -1, 1] and all(type(label) is int for label in found)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_a_column_of_class_indices_is_taken_as_such(digits, kind):
    assert class_indices(kind([[0], [2], [1]])) == [0, 2, 1]
    x, y = digits(6)
    column = transfer_benchmark((x, y[:, None]), (x, y))
    assert [int(t) for t in column.train_stream[0].dataset.targets] == y.tolist()
    items = read_images([(x[i], y[i : i + 1]) for i in range(6)])
    assert items.targets == y.tolist()


def test_columns_of_pandas_are_labels():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"label": [0, 1, 1]}, index=[7, 8, 9])
    assert class_indices(frame) == class_indices(frame["label"]) == [0, 1, 1]


BAD = [
    ([0, 1, "cat"], r"row 2: the label 'cat' is a text.*numpy\.unique"),
    (np.array(["0", "1"]), r"row 0: .*'0'.* is a text"),
    (np.eye(3), r"shape \(3, 3\).*row 0.*argmax"),
    (torch.eye(3), r"shape \(3, 3\).*row 0.*argmax"),
    ([[0, 1], [1, 0]], r"row 0: .*2 numbers.*argmax"),
    (torch.tensor([0.0, float("nan")]), r"row 1: .*no finite number.*-1 where they are unknown"),
    ([0, float("inf")], "row 1: .*no finite number"),
    ([0, None], "row 1: the label None"),
    (np.array([0, 1.5]), "row 1: .*class indices from 0"),
    ([0, -2], "row 1: .*class indices from 0"),
    (torch.tensor(3), "are no class indices"),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "message"), BAD)
def test_other_labels_are_refused_with_their_row_and_the_remedy(labels, message):
    with pytest.raises(ValueError, match=message):
        class_indices(labels)


@pytest.mark.parametrize(
    "label", ["cat", np.eye(3)[1], torch.eye(3)[1], float("nan"), None, 1.5, -2]
)
def test_a_row_of_a_data_set_with_another_label_is_named(digits, label):
    x, _ = digits(3)
    with pytest.raises(ValueError, match=r"row 2 of list: ValueError: .*label"):
        read_images([(x[0], 0), (x[1], 1), (x[2], label)])


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


# ------------------------------------------------------------------ how many labels are kept

MAKERS = {
    "transfer": transfer_benchmark,
    "distillation": distillation_benchmark,
    "adaptation": lambda train, test, **options: adaptation_benchmark(
        train, train, test, **options
    ),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every
@pytest.mark.parametrize(
    "given", [{0: 3}, {"cat": 3}, {0: 3, 1: 3, 2: 3}, [3, 3, 3], (3,), "3", 3.0, 0.5, True],
    ids=repr,
)  # fmt: skip
def test_labels_per_class_is_one_whole_number(digits, make, given):
    with pytest.raises(TypeError, match=r"labels_per_class=.* is a \w+; .*one whole number.*same"):
        make(digits(12), digits(6), labels_per_class=given)


@every
@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, torch.tensor, np.array])
def test_labels_per_class_may_be_a_whole_number_of_every_kind(digits, make, kind):
    plain = make(digits(12), digits(6), labels_per_class=2)
    found = make(digits(12), digits(6), labels_per_class=kind(2))
    for stream in ("train", "labelled"):
        pair = [list(b.streams[stream][0].dataset.targets) for b in (plain, found)]
        assert pair[0] == pair[1]


@every
def test_arguments_about_labels_are_checked_before_data_is_read(make):
    with pytest.raises(TypeError, match="labels_per_class"):
        make(None, None, labels_per_class={0: 3})
    with pytest.raises(ValueError, match="labels_per_class=-1 has to be >= "):
        make(None, None, labels_per_class=-1)


@pytest.mark.parametrize("make", [transfer_benchmark, distillation_benchmark])
@pytest.mark.parametrize("given", [{0: 0.5}, "0.5", [0.5, 0.5], True], ids=repr)
def test_the_labelled_fraction_is_one_number(digits, make, given):
    with pytest.raises(TypeError, match=r"labelled_fraction=.* is a \w+; .*one number in \(0, 1\]"):
        make(digits(12), digits(6), labelled_fraction=given)


def test_adaptation_hides_all_target_labels_unless_a_number_is_given(digits):
    for options in ({}, {"labels_per_class": 0}, {"labels_per_class": None}):
        benchmark = adaptation_benchmark(digits(12), digits(9), digits(6), **options)
        assert set(benchmark.train_stream[0].dataset.targets[:9]) == {-1}
        assert "labelled" not in benchmark.streams


@every
def test_a_class_with_too_few_rows_is_named(digits, make):
    x, y = digits(12)
    data = LabelledImages(x[:11], y[:11].tolist(), ["ant", "bee", "cat"])
    with pytest.raises(
        ValueError, match=r"class 'cat' \(2\) has 3 rows .*fewer than 4.* 3 at most"
    ):
        make(data, data.select(range(6)), labels_per_class=4)
    with pytest.raises(ValueError, match=r"class 0 has 4 rows .*fewer than 5"):
        make(digits(12), digits(6), labels_per_class=5)
