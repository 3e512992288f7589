import pytest
import torch

from avalanche_cetl.common.batch import Batch


def batch(rows, **fields):
    labels = torch.arange(rows)
    return Batch([torch.zeros(rows, 1, 2, 2), labels, labels + 10], **fields)


def test_a_batch_is_read_by_the_places_of_its_tensors():
    found = batch(3)
    assert len(found) == 3 and found.images.shape == (3, 1, 2, 2)
    assert found.labels.tolist() == [0, 1, 2] and found.tasks.tolist() == [10, 11, 12]


def test_rows_that_belong_to_no_process_do_not_count():
    assert batch(4).counted == 4 and batch(4, share=0.5).counted == 4
    assert batch(1, share=0.0).counted == 0


def test_a_step_begins_without_what_another_computed():
    one = batch(3)
    one.logits, one.reconstruction, one.hidden = torch.zeros(3, 2), torch.zeros(3), [torch.zeros(1)]
    one.begin_step()
    assert one.latest is None and one.reconstruction is None and one.hidden == []


def test_logits_of_rows_that_t2_has_not_run_on_are_refused_with_the_remedy():
    one = batch(3)
    with pytest.raises(ValueError, match="T2 has not run"):
        _ = one.logits
    one.logits = torch.zeros(6, 2)
    with pytest.raises(ValueError, match=r"6 rows for a mini-batch of 3.*set batch.logits"):
        _ = one.logits
    one.logits = torch.zeros(3, 2)
    assert one.logits.shape == (3, 2)


def test_earlier_names_are_read_with_a_warning():
    one = batch(2)
    one.reconstruction_target, one.hidden_target = one.images, [one.images]
    with pytest.warns(DeprecationWarning, match="reconstruction_target"):
        assert one.goal is one.images
    with pytest.warns(DeprecationWarning, match="hidden_target"):
        assert one.goal_hidden == [one.images]
