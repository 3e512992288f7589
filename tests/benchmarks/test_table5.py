"""Table 5 in a small form, on images made here."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(
        not (ROOT / "benchmarks" / "tables").is_dir(), reason="the benchmarks are in the repository"
    ),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def table5(monkeypatch, digits, tmp_path):
    """The module, with data made here and results in a folder of the test."""
    monkeypatch.syspath_prepend(str(ROOT))
    found = sys.modules.get("benchmarks")
    if found is not None and str(ROOT) not in str(found.__file__):
        monkeypatch.delitem(sys.modules, "benchmarks")
    module = importlib.import_module("benchmarks.tables.table5")
    runs = importlib.import_module("benchmarks.records")
    data = importlib.import_module("benchmarks.data.digits")

    def pair(_direction, _root, _counts, seed):
        source, source_test = (digits(40, 10, 28, seed + i) for i in (0, 1))
        target, target_test = (digits(40, 10, 28, seed + i, shift=0.1) for i in (2, 3))
        return data.Pair(source, source_test, target[0], target_test)

    monkeypatch.setattr(module, "read_pair", pair)
    monkeypatch.setattr(runs, "TABLES", tmp_path)
    module.job_of.cache_clear()
    yield module
    module.job_of.cache_clear()


def test_every_row_trains_and_leaves_its_result(table5, tmp_path, capsys, monkeypatch):
    # Two strengths to choose from show as much as three.
    rows = {row: (train, strengths[:2]) for row, (train, strengths) in table5.ROWS.items()}
    monkeypatch.setattr(table5, "ROWS", rows)
    table5.run("smoke", "nowhere", 1)
    found = {path.name for path in (tmp_path / "table5" / "smoke").iterdir()}
    for direction in ("MN-US", "US-MN"):
        for row, (_, strengths) in table5.ROWS.items():
            name = f"{direction}_{row.replace(' ', '_')}"
            assert f"{name}-seed0.json" in found
            tuned = f"{name}_(tuning)-seed{table5.TUNING_SEED}.json" in found
            assert tuned == (len(strengths) > 1 and row not in table5.TUNED_AS)
    table = table5.render("smoke")
    first, others = table.split("\n\n")
    for part in (first, others):
        assert all(f"| {row} |" in part for row in table5.ROWS)
    cells = [line.split("|") for line in first.splitlines()[2:]]
    assert not any("not run" in cell for line in cells for cell in line[:-2])
    assert all(line[-2].strip() == "not run" for line in cells)  # digits-mini
    assert others.count("not run") == 4 * len(table5.ROWS)
    document = json.loads((tmp_path / "table5/smoke/MN-US_MCC-seed0.json").read_text())
    assert 0 <= document["figures"]["accuracy"] <= 100 and document["versions"]["skada"]
    assert document["settings"]["strength"] in table5.ROWS["MCC"][1]


def test_what_is_there_is_not_run_again(table5, monkeypatch, capsys):
    table5.run("smoke", "nowhere", 1, ["source only"])
    first = table5.render("smoke")
    monkeypatch.setattr(table5, "predictions", None)
    table5.run("smoke", "nowhere", 1, ["source only"])
    assert table5.render("smoke") == first and "not run" in first
    other = {"smoke": table5.Budget(None, 2, 0.05, 0.05, 1, 1, 64)}
    monkeypatch.setattr(table5, "BUDGETS", other)
    table5.job_of.cache_clear()
    with pytest.raises(ValueError, match="other settings"):
        table5.run("smoke", "nowhere", 1, ["source only"])


def test_the_choice_of_a_strength_reads_no_target_label(table5, tmp_path):
    def scores():
        table5.tune("MN-US", "smoke", "nowhere", "CETL gfi", table5.HERE)
        (path,) = (tmp_path / "table5" / "smoke").glob("*tuning*")
        found = json.loads(path.read_text())["figures"]
        path.unlink()
        return found

    first = scores()
    job = table5.job_of("MN-US", "smoke", "nowhere", table5.TUNING_SEED)
    x, y = job.pair.target_test
    job.pair = dataclasses.replace(job.pair, target_test=(x, y.roll(3)))
    assert scores() == first


@pytest.mark.parametrize("row", ["DAN", "DANN", "DeepCORAL", "CDAN", "MCC", "ADDA", "WDA"])
def test_the_strength_of_a_method_matters(table5, row):
    job = table5.job_of("MN-US", "smoke", "nowhere", 0)
    job.budget = dataclasses.replace(job.budget, batch=8, epochs=3, width=0.25)
    train, strengths = table5.ROWS[row]
    found = []
    for strength in (strengths[0], strengths[0], strengths[-1]):
        torch.manual_seed(0)
        found.append(torch.cat([p.detach().flatten() for p in train(job, strength).parameters()]))
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], atol=1e-4)


def test_pairs_of_photographs_and_pairs_that_are_not_there(table5, monkeypatch, capsys):
    data = importlib.import_module("benchmarks.data.digits")
    read = []

    def pair(direction, _root, _counts, seed):
        read.append(direction)
        if "SV" in direction:
            raise FileNotFoundError("SVHN is not there")
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(40) % 8
        sets = [(torch.rand(40, 3, 32, 32, generator=generator), labels) for _ in range(4)]
        return data.Pair(sets[0], sets[1], sets[2][0], sets[3])

    monkeypatch.setattr(table5, "read_pair", pair)
    monkeypatch.setattr(table5, "PAIRS", {"smoke": ("SV-MN", "ST-CI")})
    table5.run("smoke", "nowhere", 1, ["source only", "CDAN", "CETL e"])
    assert "SV-MN: not run. SVHN is not there" in capsys.readouterr().out
    monkeypatch.setattr(table5, "PAIRS", {"smoke": ("SV-MN",)})
    with pytest.raises(FileNotFoundError):
        table5.run("smoke", "nowhere", 1)
    job = table5.job_of("ST-CI", "smoke", "nowhere", 0)
    assert job.photographs and job.network().num_classes == 8
    table = table5.render("smoke")
    (row,) = [line for line in table.splitlines() if line.startswith("| source only | not run (62")]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2:4] == ["not run (62.33)", "not run (25.95)"]
    assert cells[4].endswith("(54.17)") and "not run" not in cells[4]


@pytest.mark.parametrize("row", ["source only", "DANN", "ADDA", "WDA", "Association", "CETL gfi"])
def test_half_precision_reaches_every_method(table5, row):
    where = importlib.import_module("benchmarks.where")
    fast = where.Where("cpu", "bfloat16", True)
    job = table5.job_of("MN-US", "smoke", "nowhere", 0, fast)
    job.budget = dataclasses.replace(job.budget, batch=16)  # SKADA drops what is no whole batch
    network = job.network()
    seen = []
    network.features[0].register_forward_hook(
        lambda module, _inputs, output: seen.append(output.dtype) if module.training else None
    )
    job.network = lambda: network
    train, strengths = table5.ROWS[row]
    before = [p.detach().clone() for p in network.parameters()]
    trained = train(job, strengths[0])
    assert torch.bfloat16 in seen
    moved = zip(before, trained.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved if a.dim() > 1)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in trained.parameters())


def test_half_precision_sees_the_weights_as_they_are(table5):
    """One context around a whole loop keeps no copies of weights of an earlier step."""
    where = importlib.import_module("benchmarks.where").Where("cpu", "bfloat16")
    layer = torch.nn.Linear(4, 4)
    x = torch.ones(2, 4)
    with where.casting():
        first = layer(x)
        first.sum().backward()
        with torch.no_grad():
            layer.weight -= 1.0
        assert (layer(x) - first).abs().min() > 1
