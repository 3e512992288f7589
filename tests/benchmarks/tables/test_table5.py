"""Table 5 in a small form, on images made here."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.data.digits import Pair
from benchmarks.methods.job import AdaptationBudget
from benchmarks.tables import board
from benchmarks.tables.board import TUNING_SEED, Place
from benchmarks.tables.table5 import ROWS, TABLE


def _job(row, direction="MN-US", **settings):
    place = Place("table5", "smoke", "nowhere", row, direction, **settings)
    return TABLE.job(place, 0, ROWS[row].strengths[0])


def test_every_row_trains_and_leaves_its_result(pairs, results, monkeypatch):
    # Two strengths to choose from, of two rows, show as much as three of all.
    few = {
        id: replace(row, strengths=row.strengths[: 2 if id in ("mcc", "cdan") else 1])
        for id, row in ROWS.items()
    }
    monkeypatch.setattr(TABLE, "rows", few)
    back = ["source only", "CDAN"]  # the other way round
    with monkeypatch.context() as one_way:
        one_way.setattr(TABLE, "columns", {"smoke": ("MN-US",)})
        board.run(TABLE, "smoke", "nowhere", 1)
    board.run(TABLE, "smoke", "nowhere", 1, back)
    found = {path.name for path in (results / "table5" / "smoke").iterdir()}
    for direction, rows in (
        ("MN-US", few.values()),
        ("US-MN", [row for row in few.values() if row.title in back]),
    ):
        for row in rows:
            name = f"{direction}_{row.title.replace(' ', '_')}"
            assert f"{name}-seed0.json" in found
            tuned = f"{name}_(tuning)-seed{TUNING_SEED}.json" in found
            assert tuned == (len(row.strengths) > 1 and row.tuned_as in (None, row.id))
    first, others = TABLE.render("smoke").split("\n\n")
    for part in (first, others):
        assert all(f"| {row.title} |" in part for row in ROWS.values())
    cells = [line.split("|") for line in first.splitlines()[2:]]
    assert not any("not run" in line[2] for line in cells)
    assert sum("not run" not in line[3] for line in cells) == len(back)
    # digits-mini and MN-MM
    assert all(cell.strip() == "not run" for line in cells for cell in line[-3:-1])
    assert others.count("not run") == 4 * len(ROWS)
    document = json.loads((results / "table5/smoke/MN-US_MCC-seed0.json").read_text())
    assert 0 <= document["figures"]["accuracy"] <= 100 and document["versions"]["skada"]
    assert document["settings"]["strength"] in ROWS["mcc"].strengths


def test_what_is_there_is_not_run_again(pairs, monkeypatch):
    board.run(TABLE, "smoke", "nowhere", 1, ["source only"])
    first = TABLE.render("smoke")
    monkeypatch.setattr(TABLE, "figures", None)
    board.run(TABLE, "smoke", "nowhere", 1, ["source only"])
    assert TABLE.render("smoke") == first and "not run" in first
    other = {"smoke": AdaptationBudget(counts=None, epochs=2, width=0.05)}
    monkeypatch.setattr(TABLE, "budgets", other)
    pairs.shared_job.cache_clear()
    with pytest.raises(ValueError, match="other settings"):
        board.run(TABLE, "smoke", "nowhere", 1, ["source only"])


def test_pairs_that_are_not_there_are_not_run(pairs, monkeypatch, capsys):
    def pair(direction, _root, _counts, seed):
        if direction == "SV-MN":
            raise FileNotFoundError("SVHN is not there")
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(40) % 8
        sets = [(torch.rand(40, 3, 32, 32, generator=generator), labels) for _ in range(4)]
        return Pair(sets[0], sets[1], sets[2][0], sets[3])

    monkeypatch.setattr(pairs, "read_pair", pair)
    monkeypatch.setattr(TABLE, "columns", {"smoke": ("SV-MN", "ST-CI")})
    board.run(TABLE, "smoke", "nowhere", 1, ["source only", "CDAN", "CETL e"])
    assert "SV-MN: not run. SVHN is not there" in capsys.readouterr().out
    job = _job("source_only", "ST-CI")
    assert job.photographs and job.network().num_classes == 8
    table = TABLE.render("smoke")
    monkeypatch.setattr(TABLE, "columns", {"smoke": ("SV-MN",)})
    with pytest.raises(FileNotFoundError):
        board.run(TABLE, "smoke", "nowhere", 1)
    (row,) = [line for line in table.splitlines() if line.startswith("| source only | not run (62")]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2:4] == ["not run (62.33)", "not run (25.95)"]
    assert cells[4].endswith("(54.17)") and "not run" not in cells[4]


@pytest.mark.parametrize("row", ["dan", "dann", "deep_coral", "cdan", "mcc", "adda", "wda"])
def test_the_strength_of_a_method_matters(pairs, row):
    job, found = _job(row), []
    budget = replace(job.budget, batch=8, epochs=3, width=0.25)
    for strength in (ROWS[row].strengths[i] for i in (0, 0, -1)):
        torch.manual_seed(0)
        network = ROWS[row].method(replace(job, budget=budget, strength=strength))
        found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], atol=1e-4)


@pytest.mark.parametrize("row", ["source_only", "dann", "adda", "wda", "association", "cetl_gfi"])
def test_half_precision_reaches_every_method(pairs, fast, row):
    job = _job(row, where=fast)
    job.budget = replace(job.budget, batch=16)  # SKADA drops what is no whole batch
    network = job.network()
    seen = []
    network.features[0].register_forward_hook(
        lambda module, _inputs, output: seen.append(output.dtype) if module.training else None
    )
    job.network = lambda: network
    before = [p.detach().clone() for p in network.parameters()]
    trained = ROWS[row].method(job)
    assert torch.bfloat16 in seen
    moved = zip(before, trained.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved if a.dim() > 1)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in trained.parameters())
