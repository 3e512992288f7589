"""AdaMatch's pseudo labels by hand."""

import torch

from benchmarks.methods.adamatch import pseudo_labels


def test_pseudo_labels_by_hand():
    known = torch.tensor([[0.8, 0.2], [0.8, 0.2]])
    guessed = torch.tensor([[0.5, 0.5], [0.3, 0.7]])
    aligned, counts = pseudo_labels(known.log().requires_grad_(), guessed.log().requires_grad_())
    # Means 0.8 and 0.2 over 0.4 and 0.6: class 0 counts double, class 1 a third.
    first, second = [1.0, 0.5 / 3], [0.6, 0.7 / 3]
    wanted = [[a / (a + b), b / (a + b)] for a, b in (first, second)]
    torch.testing.assert_close(aligned, torch.tensor(wanted))
    assert counts[0] == 1  # 0.857 against 0.9 times 0.8
    assert not aligned.requires_grad and not counts.requires_grad


def test_images_that_the_network_is_not_sure_of_do_not_count():
    known = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    guessed = torch.tensor([[0.85, 0.15], [0.15, 0.85], [0.6, 0.4], [0.4, 0.6]])
    aligned, counts = pseudo_labels(known.log(), guessed.log())
    torch.testing.assert_close(aligned, guessed)  # both means are even
    assert counts.tolist() == [1, 1, 0, 0]  # 0.9 times 0.9 is 0.81
