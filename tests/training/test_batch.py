import torch

from avalanche_cetl.training.batch import Batch


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


def test_the_share_of_target_rows_is_that_of_the_batch_beside():
    both = batch(2, share=0.5, beside=batch(3, share=1.5))
    assert both.share_of("labelled") == 0.5 and both.share_of("target") == 1.5
    assert both.beside.share_of("target") == both.beside.share_of("labelled") == 1.5
