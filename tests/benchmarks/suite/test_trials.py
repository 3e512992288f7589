"""What was tried on the way."""

import torch

from benchmarks.suite import trials


class Networks:
    """Stands for the networks of a step, whose view mirrors the image."""

    def goal(self, batch):
        return batch.images * 10, ["hidden"]

    def view(self, x):
        return x.flip(3)


def test_a_moved_goal_goes_through_the_view_of_its_image():
    class Batch:
        images = torch.rand(2, 3, 4, 4)

    moving = trials._Moving(Networks())
    goal, hidden = moving.goal(Batch)
    assert torch.equal(goal, Batch.images.flip(3) * 10) and hidden == ["hidden"]
    assert torch.equal(moving.view(Batch.images), Batch.images.flip(3))


def test_the_kept_table_is_that_of_the_kept_runs():
    assert (trials.FOLDER / "trials.md").read_text() == trials.table()


def test_trials_read_no_task_that_is_read_once():
    assert all(task.development for task in trials.TASKS.values())
    kept = trials.kept_trials()
    assert kept.document["settings"]["part"] == "validation"
    assert {run["task"] for run in kept.runs} <= trials.TASKS.keys()
    assert {run["row"] for run in kept.runs} <= trials.ROWS.keys()
