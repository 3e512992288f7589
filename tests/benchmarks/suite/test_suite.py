"""The suite's rows on a tiny task, and its page from result files made here."""

import dataclasses
import json

import pytest
import torch

from avalanche_cetl import CICNN, ModuleEncoder
from benchmarks.data.views import strong_views
from benchmarks.suite import page, runs
from benchmarks.suite.rows import ROWS
from benchmarks.suite.tasks import TASKS, Data

SHAPE = (1, 8, 8)

SEEDS = (0, 1, 2)


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *SHAPE, generator=generator), torch.arange(count) % 10


def data(kind):
    torch.manual_seed(0)
    source = ModuleEncoder(CICNN(10, SHAPE, width=0.05), input_shape=SHAPE)
    x, y = images(40)
    y = torch.where(torch.arange(40) < 20, y, -1) if kind == "few" else torch.full_like(y, -1)
    other = images(40, 2) if kind == "adaptation" else None
    return Data((x, y), images(10, 3), images(20, 4), source, other)


@pytest.mark.parametrize("kind", ["few", "adaptation", "free"])
def test_every_row_trains_the_same_network_on_its_kinds_of_tasks(kind):
    task = next(task for task in TASKS.values() if task.kind == kind)
    task = dataclasses.replace(task, rounds=1, augment=strong_views)
    given = data(kind)
    sizes = set()
    for row in ROWS.values():
        if row.fits(task):
            network = row.train(task, given, 0, row.strengths[0])
            assert all(torch.isfinite(p).all() for p in network.parameters())
            sizes.add(sum(p.numel() for p in network.parameters()))
    assert len(sizes) == 1


def test_both_halves_have_tasks_of_every_kind():
    for development in (True, False):
        kinds = {task.kind for task in TASKS.values() if task.development is development}
        assert kinds == {"few", "adaptation", "free"}


def _score(row, best):
    """Say that a strength of a rival was the best on the development tasks."""
    for name in runs.choosing_tasks(row):
        for strength in ROWS[row].strengths:
            runs.kept_runs(name).add(
                {"row": row, "strength": strength, "seed": runs.CHOOSING, "part": runs.VALIDATION,
                 "accuracy": 60.0 if strength == best else 50.0, "seconds": 1.0}
            )  # fmt: skip


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    kept = runs.kept_runs("digits-mini")
    figures = {"T2 alone": 70, "soft targets": 80, "MCC, SKADA": 84, page.BEST: 85}
    for row, accuracy in figures.items():
        for seed in SEEDS:
            kept.add(
                {
                    "row": row,
                    "strength": ROWS[row].strengths[0],
                    "seed": seed,
                    "part": runs.TEST,
                    "accuracy": accuracy + seed,
                    "seconds": accuracy,
                }
            )
    (tmp_path / "before").mkdir()
    old = [{"task": "digits-mini", "seed": seed, "accuracy": 60.0 + seed} for seed in SEEDS]
    for file, found in {"preset.json": old, "centroids.json": []}.items():
        (tmp_path / "before" / file).write_text(json.dumps({"runs": found}))
    kept.add({"row": page.DEFAULTS, "strength": 0.0, "seed": 0, "part": runs.TEST, "accuracy": 1})
    return tmp_path


def test_the_page_shows_means_and_which_bars_hold(written):
    _score("MCC, SKADA", 0.1)
    page.render()
    text = (written / "table.md").read_text()
    assert "| 71.0 ± 0.6 |" in text and "**86.0 ± 0.6**" in text
    assert "| digits-mini | development | 61.0 ± 0.6 |  | 86.0 ± 0.6 |" in text
    assert "| +5.0 ± 0.0 |" in text and "| +1.0 ± 0.0 |" in text


def test_a_row_that_lacks_a_seed_is_not_shown(written):
    _score("MCC, SKADA", 0.1)
    assert page.DEFAULTS not in page.tested("digits-mini")
    names = page.GROUPS["Development tasks"]
    lines, _, missing = page.table(names).partition("Not run: ")
    assert page.DEFAULTS in missing and f"| {page.DEFAULTS} |" not in lines
    assert f"| {page.BEST} |" in lines


def test_runs_with_a_strength_that_is_not_chosen_do_not_count(written):
    row = "MCC, SKADA"
    with pytest.raises(ValueError, match="no run on digits-mini with strength"):
        page.tested("digits-mini")
    _score(row, 3.0)
    assert runs.chosen(row) == 3.0
    kept = runs.kept_runs("digits-mini")
    assert row not in page.tested("digits-mini")
    for seed in SEEDS:
        kept.add(
            {"row": row, "strength": 3.0, "seed": seed, "part": runs.TEST, "accuracy": 60.0,
             "seconds": 1.0}
        )  # fmt: skip
    assert page.accuracies(page.tested("digits-mini")[row]) == [60.0] * 3


def test_a_rivals_strength_is_the_best_of_the_mean_over_development_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    given = data("adaptation")
    names = [name for name, task in TASKS.items() if task.kind == "adaptation"]
    for name in names:
        task = dataclasses.replace(
            TASKS[name], make=lambda root, seed: given, rounds=1, seeds=SEEDS
        )
        monkeypatch.setitem(runs.TASKS, name, task)
    row = "MCC, SKADA"
    monkeypatch.setitem(
        runs.ROWS, row, dataclasses.replace(ROWS[row], strengths=ROWS[row].strengths[:2])
    )
    runs.try_strengths(".", [row])
    developed = [n for n in names if TASKS[n].development and TASKS[n].rivals_choose]
    assert runs.choosing_tasks(row) == developed and runs.choosing_tasks("T2 alone") == []
    for name in names:
        tried = {(run["strength"], run["part"]) for run in runs.kept_runs(name).runs}
        wanted = {(s, runs.VALIDATION) for s in ROWS[row].strengths} if name in developed else set()
        assert tried == wanted
    runs.run_task(names[-1], ".", (row, runs.S_ITSELF))
    made = runs.kept_runs(names[-1]).runs
    assert {run["strength"] for run in made} == {0.0, runs.chosen(row)}
    runs.run_task(names[-1], ".", (row, runs.S_ITSELF))
    assert len(runs.kept_runs(names[-1]).runs) == len(made) == 4
