import math
from collections import deque

import numpy as np
import pytest
import torch

from avalanche_cetl import CheckpointError
from avalanche_cetl.checkpoints.codec import Decoder, encode, equal, is_plain


def through_a_file(state):
    tensors = {}
    encoded = encode(state, tensors)
    return Decoder(tensors).decode(encoded)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -(2**80),
        0.1,
        math.inf,
        "words",
        [1, [2.5, None]],
        (1, "a"),
        {2, 3},
        deque([1, 2], maxlen=4),
        {"a": 1, 2: "b", None: []},
        {"~": "tensor"},
        list(range(40)),
        tuple(float(n) for n in range(40)),
        np.arange(4, dtype=np.uint8),
        np.array(["a"])[:0].size,
        torch.arange(6.0).reshape(2, 3),
        {"nested": [(torch.ones(2, dtype=torch.bfloat16),)]},
    ],
    ids=str,
)
def test_plain_data_come_back_with_their_types(value):
    found = through_a_file(value)
    assert is_plain(value) and equal(found, value)
    assert getattr(found, "maxlen", None) == getattr(value, "maxlen", None)


@pytest.mark.parametrize(
    "value",
    [object(), len, int, np.array([object()])],
    ids=["object", "function", "class", "array"],
)
def test_values_that_are_not_plain_are_refused(value):
    assert not is_plain(value) and not is_plain([{"a": value}])
    with pytest.raises(CheckpointError):
        encode([value], {})


def test_equal_data_are_of_the_same_types_and_nan_is_the_same_as_nan():
    nan = float("nan")
    assert equal(
        [nan, torch.tensor([nan]), np.array([nan])], [nan, torch.tensor([nan]), np.array([nan])]
    )
    assert not equal(1, 1.0) and not equal([1], (1,)) and not equal({"a": 1}, {"b": 1})
    assert not equal(torch.zeros(2), torch.zeros(2, dtype=torch.int64)) 


@pytest.mark.parametrize(
    "forged",
    [
        [{"~": "tensor", "name": "0"}] * 2,
        {"~": "tensor", "name": "1"},
        {"~": "os.system", "items": ["true"]},
        {"~": "array", "name": "0", "dtype": "object"},
        {"~": "float", "is": "1e999"},
    ],
    ids=["a tensor twice", "no tensor", "another kind", "objects", "a number"],
)
def test_data_that_no_packer_makes_are_refused(forged):
    with pytest.raises(CheckpointError, match="not in order"):
        Decoder({"0": torch.zeros(2)}).decode(forged)


def test_data_that_are_nested_without_end_are_refused():
    value = []
    for _ in range(200):
        value = [value]
    assert not is_plain(value)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        Decoder({}).decode(value)


@pytest.mark.parametrize("numbers", [[7, 15], [15, 7], [8, 0], [0, 8, 16, 3], [40, 8, 24]])
def test_a_set_of_numbers_keeps_the_order_of_its_iteration(numbers):
    assert list(through_a_file(set(numbers))) == list(set(numbers))
