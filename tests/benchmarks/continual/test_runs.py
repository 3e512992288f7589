"""Accuracies of a stream by hand, and the results that are kept in the repository."""

import pytest
import torch

from benchmarks.continual import runs, streams
from benchmarks.continual.methods import methods


def test_average_accuracy_forgetting_and_transfer_by_hand():
    matrix = [[10.0, 20.0], [90.0, 30.0], [70.0, 80.0]]  # before, after the first, the second
    found = runs.summary(matrix, "split-class")
    assert found == {"average_accuracy": 75.0, "forgetting": 20.0, "forward_transfer": 10.0}
    found = runs.summary([[90.0], [70.0, 80.0]], "split-task")
    assert found == {"average_accuracy": 75.0, "forgetting": 20.0}


@pytest.mark.parametrize("stream", streams.STREAMS)
def test_every_kept_run_is_found_by_its_settings(stream):
    kept = runs.kept_runs(stream, "MNIST")  # refuses other settings
    for name, (_, strengths) in methods().items():
        for strength in strengths if len(strengths) > 1 else ():
            assert kept.find(name, strength, runs.VALIDATION_SEED, 1) is not None
        tested = [run for run in kept.runs if run["method"] == name and run["part"] == 2]
        assert {run["seed"] for run in tested} == {0, 1, 2}
        assert {run["strength"] for run in tested} <= set(strengths)


def test_a_method_that_fails_is_a_result(monkeypatch, tmp_path):
    def tasks(stream, root, seed):
        x, y = torch.rand(8, 1, 28, 28), torch.arange(8) % 2
        return [((x, y), (x, y), (x, y))] * 2

    def failing(strength):
        raise RuntimeError("not here")

    few = {"Naive": (lambda strength: None, (0.0,)), "other": (failing, (1.0,))}
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    monkeypatch.setattr(runs, "tasks_of", tasks)
    monkeypatch.setattr(runs, "methods", lambda: few)
    runs.run_stream("split-domain", None, 1)
    first, second = runs.kept_runs("split-domain", "MNIST-5k").runs
    assert 0 <= first["average_accuracy"] <= 100 and len(first["accuracy"]) == 3
    assert second["failed"] == "RuntimeError: not here"
    monkeypatch.setattr(runs, "run", None)  # what is there is not run again
    runs.run_stream("split-domain", None, 1)
