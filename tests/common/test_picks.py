"""What can be picked out of a network's output, and how it is named in errors."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch

from avalanche_cetl.common.picks import check_output, described, pick

ONE, TWO = torch.zeros(2, 3), torch.ones(2, 3)
Both = namedtuple("Both", ["features", "logits"])


@pytest.mark.parametrize(
    ("found", "output"),
    [
        ({"features": ONE, "logits": TWO}, "logits"),
        (OrderedDict(features=ONE, logits=TWO), "logits"),
        ((ONE, TWO), 1),
        ((ONE, TWO), -1),
        (Both(ONE, TWO), "logits"),
        (Both(ONE, TWO), 1),
        (SimpleNamespace(logits=TWO), "logits"),
        ((ONE, {"a": TWO}), lambda found: found[1]["a"]),
        (TWO, None),
    ],
)
def test_a_part_is_picked_by_index_key_name_or_function(found, output):
    assert pick(found, output) is TWO


@pytest.mark.parametrize("output", ["none", 5])
@pytest.mark.parametrize("found", [{"logits": ONE}, (ONE,), SimpleNamespace(logits=ONE)])
def test_a_part_that_is_not_there_is_an_error(found, output):
    with pytest.raises((LookupError, TypeError, AttributeError)):
        pick(found, output)


@pytest.mark.parametrize("output", [True, 1.5, ["logits"]])
def test_other_kinds_of_output_are_refused(output):
    with pytest.raises(TypeError, match="index or a key"):
        check_output(output)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"logits": ONE}, "a dict with the keys ['logits']"),
        ((ONE, 3), "a tuple of 2 (Tensor, int)"),
        (SimpleNamespace(logits=ONE), "a SimpleNamespace with the attributes ['logits']"),
        (ONE, "a tensor of shape (2, 3)"),
        (None, "a NoneType"),
    ],
)
def test_an_output_is_described_with_its_parts(found, told):
    assert described(found) == told
