"""Accuracies of a stream by hand, strengths, and the results that are kept in the repository."""

import statistics

import pytest
import torch

from benchmarks.continual import page, runs, streams
from benchmarks.continual.methods import Method, methods, network
from benchmarks.continual.streams import STREAMS, Part, Stream

DATA = {"cifar-task": "CIFAR-10, JPEG", "cifar-domain": "CIFAR-10, JPEG"}
KEPT = [name for name in STREAMS if (runs.FOLDER / f"{name}.json").exists()]


def test_average_accuracy_forgetting_and_transfer_by_hand():
    matrix = [[10.0, 20.0], [90.0, 30.0], [70.0, 80.0]]  # before, after the first, the second
    found = runs.summary(matrix, heads=False)
    assert found == {"average_accuracy": 75.0, "forgetting": 20.0, "forward_transfer": 10.0}
    found = runs.summary([[90.0], [70.0, 80.0]], heads=True)
    assert found == {"average_accuracy": 75.0, "forgetting": 20.0}
    assert runs.summary([[1.0, 2.0], [70.0, 80.0]], False, together=True) == {
        "average_accuracy": 75.0
    }


def test_the_average_so_far_is_that_of_the_tasks_that_were_trained():
    alone = [[10.0, 20.0], [90.0, 30.0], [70.0, 80.0]]
    assert page.so_far({"accuracy": alone}) == [90.0, 75.0]
    assert page.so_far({"accuracy": [[90.0], [70.0, 80.0]]}) == [90.0, 75.0]


def tried_by(accuracy):
    """The strengths that are tried where they have these accuracies, and the one that is chosen."""
    tried = []

    def find(name, strength, seed, part):
        assert part == runs.VALIDATION
        tried.append((strength, seed))
        return {"average_accuracy": accuracy(strength) + seed}

    best = runs.strength_of("x", Method(lambda s, _: [], 1.0), find)
    assert [seed for _, seed in tried] == list(runs.VALIDATION_SEEDS) * (len(tried) // 2)
    return [strength for strength, _ in tried[::2]], best


def test_strengths_are_tried_until_the_best_is_none_of_the_ends():
    assert tried_by(lambda s: -abs(s - 1.0)) == ([1.0, 0.1, 10.0], 1.0)
    assert tried_by(lambda s: -abs(s - 100.0)) == ([1.0, 0.1, 10.0, 100.0, 1000.0], 100.0)
    assert tried_by(lambda s: -s)[0] == [1.0, 0.1, 10.0, 0.01, 0.001, 1e-4, 1e-5]
    assert tried_by(lambda s: 50.0) == ([1.0, 0.1, 10.0], 0.1)  # of equal ones the smallest
    assert runs.strength_of("x", Method(lambda s, _: []), None) == 0.0


def test_what_fails_with_one_strength_is_not_tried_with_others():
    find = {100: {"failed": "no"}, 101: {"failed": "no"}}
    best = runs.strength_of(
        "x", Method(lambda s, _: [], 3.0), lambda name, strength, seed, part: find[seed]
    )
    assert best == 3.0


@pytest.mark.parametrize("name", KEPT)
def test_kept_strengths_are_chosen_on_validation_streams_and_none_is_at_an_end(name):
    kept = runs.kept_runs(name, DATA.get(name, "MNIST"))  # refuses other settings
    for method, row in methods().items():
        mine = [run for run in kept.runs if run["method"] == method]
        tests = [run for run in mine if run["part"] == runs.TEST]
        if not mine or row.start is None:
            continue
        tried = {run["strength"] for run in mine if run["part"] == runs.VALIDATION}
        assert len({run["strength"] for run in tests}) == 1, method
        if any("failed" in run for run in mine):
            continue

        def find(method, strength, seed, part, kept=kept):
            found = kept.find(method, strength, seed, part)
            assert found is not None
            return found

        best = runs.strength_of(method, row, find)
        assert {run["strength"] for run in tests} == {best}
        means = {
            s: statistics.mean(
                kept.find(method, s, seed, runs.VALIDATION)["average_accuracy"]
                for seed in runs.VALIDATION_SEEDS
            )
            for s in tried
        }
        inside = min(tried) < best < max(tried)
        assert inside or len(set(means.values())) < len(means) or len(tried) == 3 + runs.FURTHER


@pytest.mark.parametrize("name", KEPT)
def test_kept_averages_follow_from_the_kept_accuracies(name):
    for run in runs.kept_runs(name, DATA.get(name, "MNIST")).runs:
        if "failed" not in run and run["part"] == runs.TEST:
            wanted = statistics.mean(run["accuracy"][-1])
            assert run["average_accuracy"] == pytest.approx(wanted, abs=2e-3)


def few(root=None, seed=0, tasks=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(8, 1, 4, 4, generator=generator)
    part = Part(x, torch.arange(8) % 2)
    return [(part, part, Part(x, part.y, torch.randperm(16, generator=generator)))] * tasks


def small(**settings):
    return Stream(few, ("dense", 16, 4), classes=2, epochs=1, batch=3, seeds=1, **settings)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", ["Naive", "EWC", "GFIPlugin, Kronecker", "joint"])
def test_every_method_trains_on_every_kind_of_stream(name, heads):
    found = runs.run(small(heads=heads), name, 0.1, 0, few(), runs.TEST)
    assert 0 <= found["average_accuracy"] <= 100
    assert len(found["accuracy"]) == (1 if name == "joint" else 2) + (not heads)


def test_a_batch_has_images_of_all_parts_with_their_task_labels():
    (first, _, second), _ = few()
    dataset = runs._dataset([first, second], [3, 5])
    seen = list(runs._Batches(dataset, 3))
    x, y, t = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(seen) == 6 and {3, 5} == set(t.tolist()) and len(x) == 16
    for task, part in ((3, first), (5, second)):
        mine = x[t == task].flatten(1).sum(1).sort().values
        torch.testing.assert_close(mine, part.batch(slice(None)).flatten(1).sum(1).sort().values)
    assert y.sum() == 8


def test_pixels_are_permuted_when_they_are_read():
    part = Part(
        torch.arange(8.0).reshape(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(3, -1, -1)
    )
    assert part.batch(slice(None)).tolist() == [[[[3, 2], [1, 0]]], [[[7, 6], [5, 4]]]]
    image, label = part[1]
    assert image.tolist() == [[[7, 6], [5, 4]]] and label == 1


@pytest.mark.parametrize("name", STREAMS)
def test_streams_have_networks_for_their_images(name, monkeypatch):
    stream = STREAMS[name]
    size = {"dense": (1, 28, 28), "convolutional": (1, 28, 28), "residual": (3, 32, 32)}
    shape = size[stream.network[0]]
    if stream.network[1:2] == (256,):
        shape = (1, 16, 16)
    labels = (torch.zeros(2, dtype=torch.long),) if stream.heads else ()
    model = network(stream, 0)
    assert model(torch.rand(2, *shape), *labels).shape[1] == stream.classes


def test_rotations_turn_the_same_images(monkeypatch):
    x, y = torch.rand(60, 1, 28, 28), torch.arange(60) % 10
    monkeypatch.setattr(streams, "mnist", lambda root: ((x, y), (x, y)))
    first, *others = STREAMS["rotated"].tasks(None, 0)
    assert len(others) == 5 and len(first[0]) == 50
    for turned, part in ((x, first[0]), (x.flip(-1, -2), others[2][0])):  # 0 and 180 degrees
        far = torch.cdist(part.x.flatten(1), turned.flatten(1))
        assert far.min(1).values.max() < 0.1 < far.median()
        assert y[far.argmin(1)].tolist() == part.y.tolist()


def test_a_method_that_fails_is_a_result(monkeypatch, tmp_path):
    def failing(strength, stream):
        raise RuntimeError("not here")

    rows = {"Naive": Method(lambda s, _: []), "other": Method(failing, 1.0)}
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    monkeypatch.setattr(runs, "STREAMS", {"small": small()})
    monkeypatch.setattr(runs, "methods", lambda: rows)
    runs.run_stream("small", None)
    kept = runs.kept_runs("small", "MNIST-5k").runs
    assert 0 <= kept[0]["average_accuracy"] <= 100 and len(kept[0]["accuracy"]) == 3
    assert {run["failed"] for run in kept[1:]} == {"RuntimeError: not here"}
    monkeypatch.setattr(runs, "run", None)  # what is there is not run again
    runs.run_stream("small", None)
    assert len(runs.kept_runs("small", "MNIST-5k").runs) == len(kept)


def test_tables_and_figures_are_made_of_what_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    for module in (runs, page):
        monkeypatch.setattr(module, "STREAMS", {"permuted-10": small()})
    runs.run_stream("permuted-10", None, only="Naive;GFIPlugin, Kronecker")
    page.render()
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "continual.png", "tasks.png", "matrices.png"
    }  # fmt: skip
    assert "| GFIPlugin, Kronecker |" in (tmp_path / "table.md").read_text()
    assert "| Naive |" in page.average_accuracies()
