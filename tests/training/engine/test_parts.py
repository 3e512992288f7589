import pytest
import torch

from avalanche_cetl.training.batch import Batch
from avalanche_cetl.training.engine.parts import WHOLE, parts


def batches(rows):
    """Batches of one row here, which have so many rows in all processes."""
    return [Batch([torch.zeros(1)], rows=count) for count in rows]


@pytest.mark.parametrize("together", [2, 3, 7])
def test_weights_of_parts_sum_to_one_over_a_step_and_count_the_rows_of_all_processes(together):
    rows = [8, 8, 4, 8, 1]
    found = list(parts(batches(rows), together))
    assert [batch.rows for batch, _ in found] == rows
    for start in range(0, len(rows), together):
        step = found[start : start + together]
        total = sum(batch.rows for batch, _ in step)
        assert [part.weight for _, part in step] == [batch.rows / total for batch, _ in step]
        assert sum(part.weight for _, part in step) == pytest.approx(1, abs=1e-12)


def test_batches_that_are_left_at_the_end_make_a_step_of_their_own():
    found = [part for _, part in parts(batches([2] * 5), 2)]
    assert [part.first for part in found] == [True, False, True, False, True]
    assert [part.last for part in found] == [False, True, False, True, True]


def test_a_batch_alone_is_a_whole_step():
    assert [part for _, part in parts(batches([3, 5]), 1)] == [WHOLE, WHOLE]
    assert WHOLE == (True, True, 1.0)
