import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
trials = importlib.import_module("benchmarks.faults.trials")


@pytest.mark.parametrize("name", trials.TRIALS)
def test_a_fault_ends_in_a_clear_error_or_a_right_result(name, tmp_path):
    assert trials.TRIALS[name](tmp_path)


def run(part, tmp_path, *arguments):
    """The script has a process of its own: it forks, which a process with threads must not."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.faults", part, "--out", tmp_path, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / f"{part}.json").read_text())


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    found = run("kills", tmp_path, "--kills", "1")["found"]
    assert found["killed"] == found["same end"] == 1 + found["at chosen moments"]
    assert found["at chosen moments"] >= 9


def test_mutated_files_are_refused_or_right(tmp_path):
    found = run("files", tmp_path, "--checkpoints", "400", "--stores", "100")["found"]
    for part in ("checkpoints", "feature stores"):
        assert found[part]["other errors"] == {}
        assert found[part]["memory stays below its bound"]
    assert found["checkpoints"]["damaged, refused"] == 200
    assert found["checkpoints"]["forged, refused"] > 100
    assert "WRONG FEATURES" not in found["feature stores"]
    assert found["opened elsewhere"] == []
