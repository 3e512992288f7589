import pytest
import torch

from avalanche_cetl.allocation import Sample
from avalanche_cetl.allocation.sample import in_turn


def test_images_take_the_heads_of_an_old_experience_in_turn():
    assert in_turn((4, 7), torch.zeros(5, dtype=torch.long)).tolist() == [4, 7, 4, 7, 4]
    assert in_turn((2,), torch.arange(3)).tolist() == [2, 2, 2]


def test_images_keep_their_tasks_without_heads_by_task():
    tasks = torch.tensor([3, 1])
    assert in_turn((), tasks) is tasks


def test_a_sample_of_version_0_2_is_a_batch():
    images, labels, tasks, features = (
        torch.ones(2, 1),
        *torch.tensor([[1, 0], [3, 4]]),
        torch.ones(2),
    )
    with pytest.warns(DeprecationWarning, match="import it from avalanche_cetl.plugins"):
        batch = Sample(images, labels, tasks, features)
    found = (batch.images, batch.labels, batch.tasks, batch.features)
    assert all(a is b for a, b in zip(found, (images, labels, tasks, features), strict=True))
