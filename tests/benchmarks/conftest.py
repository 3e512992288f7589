"""Data made here for the benchmarks, which are in the repository only.

Where they are not, nothing of this folder is collected.
"""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

if not (Path(__file__).parents[2] / "benchmarks" / "tables").is_dir():
    collect_ignore_glob = ["*"]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The folder in which tables leave their results."""
    from benchmarks import records

    monkeypatch.setattr(records, "TABLES", tmp_path / "results")
    return tmp_path / "results"


def _photographs(per_class, seed):
    """Ten classes that differ in colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat_interleave(per_class)
    colours = torch.rand(10, 3, generator=torch.Generator().manual_seed(9))
    x = colours[labels].view(-1, 3, 1, 1) + 0.05 * torch.randn(
        len(labels), 3, 32, 32, generator=generator
    )
    return x.clamp(0, 1), labels


@pytest.fixture
def photographs(monkeypatch, results, tmp_path):
    """Tables of photographs with images made here; the module that runs them."""
    from benchmarks.data import sets
    from benchmarks.tables import photographs as module

    monkeypatch.setenv("CETL_CACHE", str(tmp_path / "cache" / "features"))
    found = (_photographs(30, 0), _photographs(5, 1), "made here")
    monkeypatch.setattr(sets, "read_cifar10", lambda root: found)
    # Two strengths to choose from show as much as five.
    for name in ("table2", "table2u", "table2l", "table3", "table4"):
        rows = importlib.import_module(f"benchmarks.tables.{name}").TABLE.rows
        for id, row in rows.items():
            monkeypatch.setitem(rows, id, replace(row, strengths=row.strengths[-2:]))
    caches = (sets.read_data, module.held_features, module.encoder_of)
    for cache in caches:
        cache.cache_clear()
    yield module
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def small_source(monkeypatch, photographs):
    """One small random S for the rows of all tables but Table 4, whose teacher trains here."""
    from avalanche_cetl import ModuleEncoder

    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 7))
    small, made = ModuleEncoder(network, input_shape=(3, 32, 32)), photographs.encoder_of
    monkeypatch.setattr(
        photographs, "encoder_of", lambda place: made(place) if place.table == "table4" else small
    )
    return small


@pytest.fixture
def pairs(monkeypatch, digits, results):
    """Tables of pairs of domains with digits made here; the module that runs them."""
    from benchmarks.data.digits import Pair
    from benchmarks.tables import adaptation

    def pair(_direction, _root, _counts, seed):
        source, source_test = (digits(40, 10, 28, seed + i) for i in (0, 1))
        target, target_test = (digits(40, 10, 28, seed + i, shift=0.1) for i in (2, 3))
        return Pair(source, source_test, target[0], target_test)

    monkeypatch.setattr(adaptation, "read_pair", pair)
    adaptation.shared_job.cache_clear()
    yield adaptation
    adaptation.shared_job.cache_clear()


@pytest.fixture
def adaptation_job(digits):
    """A small job of two domains, whose images are seen as they are."""
    from benchmarks.data.digits import Pair
    from benchmarks.methods.job import AdaptationBudget, AdaptationJob

    class Still(AdaptationJob):
        @property
        def augment(self):
            return lambda x: x

    def make(source_count=60, target_count=45, strength=1.0, **budget):
        target, test = digits(target_count, seed=1, shift=0.1), digits(45, seed=2, shift=0.1)
        pair = Pair(digits(source_count), None, target[0], test)
        spent = AdaptationBudget(counts=None, epochs=8, **{"width": 0.1, "batch": 16} | budget)
        job = Still(budget=spent, seed=0, strength=strength, pair=pair, make_source=None)
        return job, target[1]

    return make


@pytest.fixture
def fast():
    """What scale full does on a GPU, on the CPU: half precision, channels last."""
    from benchmarks.where import Where

    return Where("cpu", "bfloat16", True)
