import math
from collections import deque

import numpy as np
import pytest
import torch

from avalanche_cetl import CheckpointError
from avalanche_cetl.checkpoints import codec
from avalanche_cetl.checkpoints.codec import (
    Decoder,
    encode,
    equal,
    is_plain,
    read_checkpoint_file,
    write_checkpoint_file,
)


def there_and_back(value):
    tensors = {}
    encoded = encode(value, tensors)
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
        deque([1, 2], maxlen=4),
        {"a": 1, 2: "b", None: []},
        {"~": "tensor"},
        list(range(40)),
        [2**70] * 40,
        tuple(float(n) for n in range(40)),
        np.arange(4, dtype=np.uint8),
        torch.arange(6.0).reshape(2, 3),
        {"nested": [(torch.ones(2, dtype=torch.bfloat16),)]},
    ],
    ids=str,
)
def test_plain_data_come_back_with_their_types(value):
    found = there_and_back(value)
    assert is_plain(value) and equal(found, value)
    assert getattr(found, "maxlen", None) == getattr(value, "maxlen", None)


@pytest.mark.parametrize("numbers", [[7, 15], [15, 7], [8, 0], [0, 8, 16, 3], [40, 8, 24]])
def test_a_set_of_numbers_keeps_the_order_of_its_iteration(numbers):
    assert list(there_and_back(set(numbers))) == list(set(numbers))


@pytest.mark.parametrize(
    "value",
    [object(), len, int, np.array([object()])],
    ids=["object", "function", "class", "array"],
)
def test_values_that_are_not_plain_are_refused(value):
    assert not is_plain(value) and not is_plain([{"a": value}])
    with pytest.raises(CheckpointError, match="cannot be kept"):
        encode([value], {})


def test_equal_data_are_of_the_same_types_and_nan_is_the_same_as_nan():
    nan = float("nan")
    data = [[nan, torch.tensor([nan, 1.0]), np.array([nan])] for _ in range(2)]
    assert equal(*data) and equal(torch.tensor([True]), torch.tensor([True]))
    assert not equal(1, 1.0) and not equal([1], (1,)) and not equal({"a": 1}, {"b": 1})
    assert not equal(torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    assert not equal(torch.zeros(2), torch.tensor([0.0, 1e-30]))


@pytest.mark.parametrize(
    "forged",
    [
        [{"~": "tensor", "name": "0"}] * 2,
        {"~": "tensor", "name": "1"},
        {"~": "os.system", "items": ["true"]},
        {"~": "array", "name": "0", "dtype": "object"},
        {"~": "numbers", "name": "0"},
        {"~": "float", "is": "1e999"},
    ],
    ids=["a tensor twice", "no tensor", "another kind", "objects", "small numbers", "a number"],
)
def test_data_that_the_codec_does_not_make_are_refused(forged):
    with pytest.raises(CheckpointError, match="not in order"):
        Decoder({"0": torch.zeros(2)}).decode(forged)


def nested(wrap, levels):
    value = 1
    for _ in range(levels):
        value = wrap(value)
    return value


WRAPS = {"lists": lambda one: [one], "tuples": lambda one: (one,), "dicts": lambda one: {"a": one}}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_data_that_are_nested_without_end_are_refused(wrap):
    assert is_plain(nested(wrap, codec.MAX_DEPTH))
    assert not is_plain(nested(wrap, codec.MAX_DEPTH + 1))
    with pytest.raises(CheckpointError, match="nested too deeply"):
        Decoder({}).decode(nested(wrap if wrap is not WRAPS["tuples"] else WRAPS["lists"], 200))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_data_that_are_nested_as_deeply_as_they_may_be_come_back(wrap):
    value = nested(wrap, codec.MAX_DEPTH)
    assert there_and_back(value) == value


def test_arrays_are_equal_by_type_and_value():
    one = np.array([1.0, math.nan])
    assert equal(one, one.copy())
    assert not equal(one, np.array([2.0, math.nan]))
    assert not equal(one, one.astype(np.float32))
    assert not equal(np.arange(3), np.arange(4))


# ------------------------------------------------------------------ the file


def write(path):
    tensors = {"0": torch.arange(6.0).reshape(2, 3), "1": torch.zeros(0)}
    write_checkpoint_file(path, tensors, {"words": [1, "two"]})
    return tensors


def test_a_file_is_read_as_it_was_written_and_a_change_of_any_byte_is_found(tmp_path):
    tensors = write(tmp_path / "a")
    found, state = read_checkpoint_file(tmp_path / "a")
    assert state == {"words": [1, "two"]} and equal(found, tensors)
    content = (tmp_path / "a").read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "b").write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_checkpoint_file(tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64], ids=["empty", "short", "noise"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint_file(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors cannot be read"):
        read_checkpoint_file(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("VERSION", 999, "has version '999' of the format"),
        ("FORMAT", "another program's", "is no checkpoint of avalanche-cetl"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path, monkeypatch, name, value, told):
    monkeypatch.setattr(codec, name, value)
    write(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint_file(tmp_path / "a")


def test_plain_data_that_outgrow_the_header_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "MAX_HEADER_BYTES", 100)
    with pytest.raises(CheckpointError, match="keeps too much"):
        write(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("value", [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**63 + 1.0])
@pytest.mark.parametrize("many", [False, True])
def test_whole_numbers_of_any_size_come_back(value, many):
    given = [value] * 40 if many else value
    found = there_and_back(given)
    assert found == given and type(found) is type(given)
