"""Results are written once, found again by what made them, and else refused."""

import json

import pytest
import torch

from benchmarks import records


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "TABLES", tmp_path)
    return records.Run("table0", "smoke", "a row, 3/4", 2)


def test_a_run_is_named_by_its_row_and_seed(run, tmp_path):
    assert run.path == tmp_path / "table0" / "smoke" / "a_row,_3-4-seed2.json"


def test_a_run_keeps_all_that_made_it_and_is_not_made_again(run):
    def job():
        return {"accuracy": 50.0, "drawn": float(torch.rand(()))}

    first = records.run_once(run, {"lambda": (0.1, 0.2)}, job)
    assert first["settings"] == {"lambda": [0.1, 0.2]} and first["seed"] == 2
    assert first["versions"]["torch"] and first["machine"] and first["seconds"] >= 0
    torch.manual_seed(2)
    assert first["figures"]["drawn"] == float(torch.rand(()))  # seeded by the run
    assert records.run_once(run, {"lambda": (0.1, 0.2)}, None) == first
    assert records.results("table0", "smoke") == {"a row, 3/4": {2: first}}


def test_a_run_of_other_settings_is_refused(run):
    records.run_once(run, {"epochs": 1}, dict)
    with pytest.raises(ValueError, match="other settings"):
        records.run_once(run, {"epochs": 2}, dict)


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "folder" / "x.json"
    with pytest.raises(TypeError):
        records.write(path, {"not for JSON": object()})
    assert not path.exists()
    records.write(path, {"a": 1})
    assert records.read(path) == {"a": 1} and [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_many_runs_of_one_file_are_found_by_their_keys(tmp_path):
    def opened(settings=(1, 2)):
        return records.Runs(tmp_path / "x.json", ("method", "seed"), {"s": settings}, ["torch"])

    kept = opened()
    assert kept.find("EWC", 0) is None
    kept.add({"method": "EWC", "seed": 0, "accuracy": 1.0})
    again = opened()
    assert again.find("EWC", 0)["accuracy"] == 1.0 and again.find("EWC", 1) is None
    assert set(again.document["versions"]) == {"python", "torch"}
    with pytest.raises(ValueError, match="other settings"):
        opened((1, 3))


def test_a_run_of_other_versions_keeps_its_own(tmp_path):
    path = tmp_path / "x.json"
    records.Runs(path, ("seed",), {}, ["torch"]).add({"seed": 0})
    document = json.loads(path.read_text())
    document["versions"]["torch"] = "0.1"
    path.write_text(json.dumps(document))
    kept = records.Runs(path, ("seed",), {}, ["torch"])
    kept.add({"seed": 1})
    first, second = records.read(path)["runs"]
    assert "versions" not in first and second["versions"] == records.versions(["torch"])


def test_a_package_that_is_not_installed_is_said_to_be_so():
    assert records.versions(["no-such-package-here"])["no-such-package-here"] == "not installed"


def test_a_mean_by_hand():
    assert records.mean_and_error([1.0, 2.0, 3.0], 2) == "2.00 ± 0.58"
    assert records.mean_and_error([2.0], 1, sign=True) == "+2.0"
    assert records.error([2.0]) == 0.0 and records.cell([], empty="not run") == "not run"


def test_pairs_of_runs_are_of_the_same_seed():
    first = {seed: {"figures": {"accuracy": 10.0 * seed}} for seed in (0, 1, 2)}
    second = {seed: {"figures": {"accuracy": 1.0}} for seed in (1, 2, 3)}
    assert records.paired(first, second) == [9.0, 19.0]
    assert records.accuracies(first) == [0.0, 10.0, 20.0]
