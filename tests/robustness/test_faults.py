import importlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

trials = pytest.importorskip("benchmarks.faults.trials")  # in the repository only


@pytest.mark.parametrize("name", trials.TRIALS)
def test_a_fault_ends_in_a_clear_error_or_a_right_result(name, tmp_path):
    assert trials.TRIALS[name](tmp_path)


#: With 64 images for 96, as few as have all chosen moments in them, and a smaller network.
SCRIPT = """
from torch import nn
from benchmarks.faults import subject
from benchmarks.faults.__main__ import main
digits = subject.digits
subject.digits = lambda count, start=0: digits(min(count, 64), start)
subject.CICNN = lambda classes, shape, width, dropout: nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout),
    nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes),
)
main()
"""


@pytest.fixture
def run(partners, tmp_path):
    """The script has a process of its own: it forks, which a process with threads must not."""

    def run(part, *arguments):
        partners.start(SCRIPT, part, "--out", tmp_path, *arguments)
        partners.succeed()
        return json.loads((tmp_path / f"{part}.json").read_text())

    return run


def test_killed_runs_end_as_if_nothing_had_happened(run):
    found = run("kills", "--kills", "1")["found"]
    assert found["killed"] == found["same end"] == 1 + found["at chosen moments"]
    assert found["at chosen moments"] >= 9


@pytest.fixture(scope="module")
def mutable(tmp_path_factory):
    files = importlib.import_module("benchmarks.faults.files")
    folder, watch = tmp_path_factory.mktemp("files"), files.Watch()
    return {"checkpoint": files.Checkpoints(folder, watch), "store": files.Stores(folder, watch)}


FUZZ = settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
generators = st.randoms(use_true_random=False)


@settings(FUZZ, max_examples=60)
@given(generator=generators)
def test_a_damaged_checkpoint_is_refused(mutable, generator):
    found = mutable["checkpoint"].read("damaged", generator)
    assert found in ("damaged, refused", "damaged, unchanged")
    assert mutable["checkpoint"].watch.opened == []


@settings(FUZZ, max_examples=60)
@given(generator=generators)
def test_a_forged_checkpoint_is_read_or_refused(mutable, generator):
    assert mutable["checkpoint"].read("forged", generator).startswith("forged")
    assert mutable["checkpoint"].watch.opened == []


@settings(FUZZ, max_examples=60)
@given(generator=generators)
def test_a_store_with_a_mutated_file_gives_the_right_features_or_refuses(mutable, generator):
    assert mutable["store"].read("damaged", generator) in ("right features", "refused")
    assert mutable["store"].watch.opened == []


def test_mutated_files_are_counted(run):
    found = run("files", "--checkpoints", "40", "--stores", "10")["found"]
    for part, count in (("checkpoints", 40), ("feature stores", 10)):
        assert found[part]["mutated"] == count
        assert found[part]["other errors"] == {}
        assert found[part]["memory stays below its bound"]
    kinds = ("damaged, refused", "damaged, unchanged", "forged, refused", "forged, read")
    counts = [found["checkpoints"].get(kind, 0) for kind in kinds]
    assert sum(counts) + found["checkpoints"].get("forged, unchanged", 0) == 40
    assert "WRONG FEATURES" not in found["feature stores"]
    assert found["opened elsewhere"] == []
